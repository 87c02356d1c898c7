"""AdamW for weights in full and in half precision, whose steps half precision cannot show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_BETAS = (0.9, 0.999)
_EPS = 1e-8

STATE = ("step", "exp_avg", "exp_avg_sq", "rest")

# Half-precision weights are computed in full this many at a time: few enough for a processor's
# cache, enough for a GPU.
_TOGETHER = {"cpu": 2**17, "cuda": 2**25}

# The golden ratio's fraction of the 2 ** 16 steps by which fp32 is finer than bf16: its multiples
# are spread evenly, so that what is rounded with them in turn is rounded fairly.
_FAIR = 40503


@dataclass(frozen=True)
class Group:
    """Weights that learn at one rate, and how strongly they are pulled to zero."""

    weights: Sequence[nn.Parameter]
    rate: float
    decay: float = 0.0


class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101), its memory small for halves.

    A weight in half precision has `rest` beside it, what rounding took from it, so that small steps
    add up. Its moments are kept in bf16, the second rounded fairly, or it would never fall.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = tuple(groups)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, share: Tensor, pace: float = 1.0) -> None:
        """Change every weight that has a gradient: a share of it counts, and of its rate."""
        for group in self.groups:
            for weight in group.weights:
                if weight.grad is not None:
                    kept = self.state.setdefault(weight, {}) or _beginning(weight)
                    self.state[weight] = kept
                    kept["step"] += 1
                    _step(weight, kept, replace(group, rate=group.rate * pace), share)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.groups:
            for weight in group.weights:
                weight.grad = None


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all their numbers together, computed in full a part at a time."""
    parts = [
        torch.linalg.vector_norm(part.to(torch.promote_types(part.dtype, torch.float32)))
        for tensor in tensors
        for part in (_in_memory(tensor).split(2**20) if tensor.dtype.itemsize == 2 else (tensor,))
    ]
    return torch.linalg.vector_norm(torch.stack(parts))


def bytes_of_state(weight: Tensor) -> int:
    """How much memory the optimizer takes for a weight, its gradient included."""
    return weight.nbytes + sum(kept.nbytes for kept in _beginning(weight.to("meta")).values())


def _beginning(weight: Tensor) -> dict[str, Tensor]:
    """The state before the first step; moments lie in memory as their weights do."""
    half = weight.dtype.itemsize == 2
    names = ("exp_avg", "exp_avg_sq", "rest") if half else ("exp_avg", "exp_avg_sq")
    dtype = torch.bfloat16 if half else weight.dtype
    return {
        "step": torch.zeros((), dtype=torch.float32, device=weight.device),
        **{name: torch.zeros_like(weight, dtype=dtype) for name in names},
    }


def _step(weight: Tensor, kept: dict[str, Tensor], group: Group, share: Tensor) -> None:
    grad = weight.grad
    assert grad is not None
    moments = [kept["exp_avg"], kept["exp_avg_sq"]]
    if "rest" not in kept:
        _fused([weight.detach(), grad.mul_(share), *moments], kept["step"], group)
        return
    size = _TOGETHER[weight.device.type if weight.is_cuda else "cpu"]
    full = [torch.empty(min(size, weight.numel()), device=weight.device) for _ in range(4)]
    lower = int(kept["step"]) * _FAIR % 2**16
    flat = [_in_memory(one) for one in (weight.detach(), grad, *moments, kept["rest"])]
    for own, slope, mean, square, rest in zip(*(one.split(size) for one in flat), strict=True):
        some = [one[: len(own)] for one in full]
        for into, half in zip(some, (own, slope, mean, square), strict=True):
            into.copy_(half)
        some[0].add_(rest)
        some[1].mul_(share)
        _fused(some, kept["step"], group)
        own.copy_(some[0])
        rest.copy_(some[0].sub_(own))
        mean.copy_(some[2])
        # Rounded down after a part of a unit was added, another part at every step.
        finer = some[3].view(torch.int32).add_(lower)
        square.view(torch.int16).copy_(finer.bitwise_right_shift_(16))


def _fused(tensors: list[Tensor], step: Tensor, group: Group) -> None:
    """One step on a weight, its gradient and its two moments, in one pass over memory."""
    fused: Any = torch._fused_adamw_  # pyright: ignore[reportPrivateUsage]
    weight, grad, mean, square = tensors
    fused(
        [weight],
        [grad],
        [mean],
        [square],
        [],
        [step],
        lr=group.rate,
        beta1=_BETAS[0],
        beta2=_BETAS[1],
        weight_decay=group.decay,
        eps=_EPS,
        amsgrad=False,
        maximize=False,
    )


def _in_memory(tensor: Tensor) -> Tensor:
    """A dense tensor as a row of numbers in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))
