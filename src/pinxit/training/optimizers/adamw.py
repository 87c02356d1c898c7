"""AdamW for fp32 and half-precision weights, which need more than half precision for a step."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pinxit.training import fused_adamw
from pinxit.training.optimizer import REST, Optimizer, ParameterGroup, State, in_memory

_BETAS = (0.9, 0.999)
_EPS = 1e-8

# This many half-precision weights are converted to fp32 at a time: few enough for the cache of a
# CPU, enough for a GPU.
_CPU_CHUNK, _CHUNK = 2**17, 2**25

# fp32 has 16 bits more than bf16. Before the second moment is cut to bf16, a dither is added to
# these bits, so that rounding has no bias. The dithers are multiples of the golden ratio's
# fraction of 2 ** 16, which are evenly distributed.
_DITHER = 40503


class Adamw(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101) and little memory in half precision.

    For a half-precision weight, the state `rest` is its rounding error, so that small steps add up.
    The moments are bf16; the second one is rounded with dither, because it would never decrease
    otherwise.
    """

    state_names = ("step", "exp_avg", "exp_avg_sq", REST)

    def initial_state(self, weight: Tensor) -> State:
        """The state before the first step; moments have the memory layout of their weights."""
        half = weight.dtype.itemsize == 2
        names = ("exp_avg", "exp_avg_sq", REST) if half else ("exp_avg", "exp_avg_sq")
        dtype = torch.bfloat16 if half else weight.dtype
        return {
            "step": torch.zeros((), dtype=torch.float32, device=weight.device),
            **{name: torch.zeros_like(weight, dtype=dtype) for name in names},
        }

    @torch.no_grad()
    def step(self, gradient_scale: Tensor, lr_multiplier: float = 1.0) -> None:
        """Update every weight that has a gradient, those in fp32 together."""
        for group in self.groups:
            scaled_group = group.scaled(lr_multiplier)
            fp32: list[tuple[Tensor, ...]] = []
            origins = (group.origins,) if group.origins else ()
            for weight, *origin in zip(group.weights, *origins, strict=True):
                if weight.grad is not None:
                    state = self.state.get(weight) or self.initial_state(weight)
                    self.state[weight] = state
                    tensors = (weight.detach(), weight.grad, state["exp_avg"], state["exp_avg_sq"])
                    if REST in state:
                        halves = (*tensors, state[REST], *origin)
                        _step_half(halves, state["step"], scaled_group, gradient_scale)
                    else:
                        weight.grad.mul_(gradient_scale)
                        fp32.append((*tensors, state["step"], *origin))
            if fp32:
                _fused_step(fp32, scaled_group)


def _step_half(
    tensors: Sequence[Tensor], step: Tensor, group: ParameterGroup, gradient_scale: Tensor
) -> None:
    """One step for a weight in half precision.

    `tensors` are weight, gradient, two moments and rounding error, and the origin if it has one.
    """
    weight = tensors[0]
    dither = (int(step) + 1) * _DITHER % 2**16
    if _fits_one_pass(tensors):
        scale, number = float(gradient_scale), int(step) + 1
        factors = fused_adamw.coefficients(scale, group, _BETAS, _EPS, number)
        fused_adamw.step([in_memory(tensor) for tensor in tensors], factors, dither)
        step += 1
        return
    size = _CPU_CHUNK if weight.device.type == "cpu" else _CHUNK
    buffers = [torch.empty(min(size, weight.numel()), device=weight.device) for _ in range(4)]
    parts = [in_memory(tensor).split(size) for tensor in tensors]
    for chunks in zip(*parts, strict=True):
        _step_chunk(chunks, buffers, step, group, gradient_scale, dither)
    step += 1


def _fits_one_pass(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors of `_step_half` are bf16 on a CPU, without an origin, and numba is there."""
    weight, has_origin = tensors[0], len(tensors) > len(Adamw.state_names) + 1
    is_bf16 = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return is_bf16 and not has_origin and fused_adamw.is_available()


def _step_chunk(
    chunks: Sequence[Tensor],
    buffers: Sequence[Tensor],
    step: Tensor,
    group: ParameterGroup,
    gradient_scale: Tensor,
    dither: int,
) -> None:
    """One step, in fp32, for a chunk of each tensor of `_step_half`."""
    weight, grad, mean, square, rest, *origin = chunks
    fp32 = [buffer[: len(weight)] for buffer in buffers]
    for buffer, half in zip(fp32, (weight, grad, mean, square), strict=True):
        buffer.copy_(half)
    fp32[0].add_(rest)
    fp32[1].mul_(gradient_scale)
    _fused_step([(*fp32, step.clone(), *origin)], group)
    weight.copy_(fp32[0])
    rest.copy_(fp32[0].sub_(weight))
    mean.copy_(fp32[2])
    square.view(torch.int16).copy_(fp32[3].view(torch.int32).add_(dither).bitwise_right_shift_(16))


def _fused_step(tensors: Sequence[Sequence[Tensor]], group: ParameterGroup) -> None:
    """One AdamW step for weights, and then the pull to their origins.

    Each item has a weight, gradient, two moments and number of steps, and perhaps an origin.
    """
    weights, gradients, means, squares, steps, *origins = map(list, zip(*tensors, strict=True))
    adamw(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=_BETAS[0],
        beta2=_BETAS[1],
        lr=group.learning_rate,
        weight_decay=group.weight_decay,
        eps=_EPS,
        maximize=False,
    )
    for weight, origin in zip(weights, *origins, strict=True) if origins else ():
        weight.sub_(origin).mul_(1 - group.pull).add_(origin)
