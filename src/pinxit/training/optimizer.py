"""AdamW for fp32 and half-precision weights, which need more than half precision for a step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_BETAS = (0.9, 0.999)
_EPS = 1e-8

# Names of the state tensors in checkpoints; "rest" is the rounding error of the weights.
STATE_NAMES = ("step", "exp_avg", "exp_avg_sq", "rest")

# This many half-precision weights are converted to fp32 at a time: few enough for the cache of a
# CPU, enough for a GPU.
_CPU_CHUNK, _CHUNK = 2**17, 2**25

# fp32 has 16 bits more than bf16. Before the second moment is cut to bf16, a dither is added to
# these bits, so that rounding has no bias. The dithers are multiples of the golden ratio's
# fraction of 2 ** 16, which are evenly distributed.
_DITHER = 40503


@dataclass(frozen=True)
class ParameterGroup:
    """Weights with a common learning rate and weight decay.

    After each step, the weights are moved by the fraction `pull` of the way to `origins`, which
    have their shapes.
    """

    weights: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    pull: float = 0.0
    origins: Sequence[Tensor] = ()


class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101) and little memory in half precision.

    For a half-precision weight, the state `rest` is its rounding error, so that small steps add up.
    The moments are bf16; the second one is rounded with dither, because it would never decrease
    otherwise.
    """

    def __init__(self, groups: Sequence[ParameterGroup]) -> None:
        self.groups = tuple(groups)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, gradient_scale: Tensor, lr_multiplier: float = 1.0) -> None:
        """Update every weight that has a gradient.

        Gradients are multiplied by `gradient_scale`, a scalar, and learning rates by
        `lr_multiplier`.
        """
        for group in self.groups:
            scaled_group = replace(
                group,
                learning_rate=group.learning_rate * lr_multiplier,
                pull=group.pull * lr_multiplier,
            )
            fp32: list[tuple[Tensor, ...]] = []
            origins = (group.origins,) if group.origins else ()
            for weight, *origin in zip(group.weights, *origins, strict=True):
                if weight.grad is not None:
                    state = self.state.get(weight) or _initial_state(weight)
                    self.state[weight] = state
                    tensors = (weight.detach(), weight.grad, state["exp_avg"], state["exp_avg_sq"])
                    if "rest" in state:
                        halves = (*tensors, state["rest"], *origin)
                        _step_half(halves, state["step"], scaled_group, gradient_scale)
                    else:
                        weight.grad.mul_(gradient_scale)
                        fp32.append((*tensors, state["step"], *origin))
            if fp32:
                _fused_step(fp32, scaled_group)

    def zero_grad(self) -> None:
        """Delete the gradients."""
        for group in self.groups:
            for weight in group.weights:
                weight.grad = None


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together, a scalar, computed in fp32 chunk by chunk."""
    norms = [
        torch.linalg.vector_norm(chunk.to(torch.promote_types(chunk.dtype, torch.float32)))
        for tensor in tensors
        for chunk in (_in_memory(tensor).split(2**20) if tensor.dtype.itemsize == 2 else (tensor,))
    ]
    return torch.linalg.vector_norm(torch.stack(norms))


def optimizer_bytes(weight: Tensor) -> int:
    """Bytes that the optimizer needs for a weight, including its gradient."""
    state = _initial_state(weight.to("meta"))
    return weight.nbytes + sum(tensor.nbytes for tensor in state.values())


def _initial_state(weight: Tensor) -> dict[str, Tensor]:
    """The state before the first step; moments have the memory layout of their weights."""
    half = weight.dtype.itemsize == 2
    names = ("exp_avg", "exp_avg_sq", "rest") if half else ("exp_avg", "exp_avg_sq")
    dtype = torch.bfloat16 if half else weight.dtype
    return {
        "step": torch.zeros((), dtype=torch.float32, device=weight.device),
        **{name: torch.zeros_like(weight, dtype=dtype) for name in names},
    }


def _step_half(
    tensors: Sequence[Tensor], step: Tensor, group: ParameterGroup, gradient_scale: Tensor
) -> None:
    """One step for a weight in half precision.

    `tensors` are weight, gradient, two moments and rounding error, and the origin if it has one.
    """
    weight = tensors[0]
    size = _CPU_CHUNK if weight.device.type == "cpu" else _CHUNK
    buffers = [torch.empty(min(size, weight.numel()), device=weight.device) for _ in range(4)]
    dither = (int(step) + 1) * _DITHER % 2**16
    parts = [_in_memory(tensor).split(size) for tensor in tensors]
    for chunks in zip(*parts, strict=True):
        _step_chunk(chunks, buffers, step, group, gradient_scale, dither)
    step += 1


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


def _in_memory(tensor: Tensor) -> Tensor:
    """A dense tensor as a vector in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))
