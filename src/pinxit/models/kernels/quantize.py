"""Weights in 8 bits: integers, with a scale for each row, and in full again."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_MOST = 127
_NOT_NOUGHT = 1e-30


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, ...) as integers of 8 bits, and a scale (O,), one for each of its rows."""
    whole, scale = in_groups(weight.float(), weight.ndim - 1)
    return whole, scale.flatten()


def in_groups(numbers: Tensor, sides: int) -> tuple[Tensor, Tensor]:
    """Numbers as integers of 8 bits, and the scale of each group over the last `sides` sides."""
    over = tuple(range(-sides, 0))
    size = torch.maximum(numbers.amax(over, keepdim=True), numbers.amin(over, keepdim=True).neg())
    size = size.clamp_min_(_NOT_NOUGHT) / _MOST
    return (numbers / size).round_().to(torch.int8), size


def full(layer: nn.Module) -> Tensor:
    """A layer's weight in fp32, in whatever numbers it is kept."""
    weight, scale = _kept(layer)
    return weight.float() if scale is None else weight * _beside(scale, weight)


def put(layer: nn.Module, weight: Tensor) -> Callable[[], None]:
    """Give a layer another weight, in the numbers of its own; what is returned undoes it."""
    own, scale = _kept(layer)
    other = torch.empty_like(own)
    if scale is None:
        other.copy_(weight)
    else:
        whole, layer.scale = rounded(weight)
        other.copy_(whole)
    layer.weight = nn.Parameter(other, requires_grad=False)

    def undo() -> None:
        layer.weight = own
        if scale is not None:
            layer.scale = scale

    return undo


def _kept(layer: nn.Module) -> tuple[nn.Parameter, Tensor | None]:
    """A layer's weight, and its scale if it is in 8 bits."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    scale = getattr(layer, "scale", None) if weight.dtype == torch.int8 else None
    assert scale is None or isinstance(scale, Tensor)
    return weight, scale


def _beside(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))
