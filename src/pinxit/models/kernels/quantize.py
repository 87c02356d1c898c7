"""Quantization to 8-bit integers with a scale for each row, and back."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_MAX_INT8 = 127
_MIN_SCALE = 1e-30  # avoids a division by zero


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, ...) as 8-bit integers, and the scale of each row (O,)."""
    integers, scale = quantize_groups(weight.float(), weight.ndim - 1)
    return integers, scale.flatten()


def quantize_groups(values: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Values as 8-bit integers, with one scale for each group over the last `dims` dimensions."""
    group_dims = tuple(range(-dims, 0))
    largest = torch.maximum(
        values.amax(group_dims, keepdim=True), values.amin(group_dims, keepdim=True).neg()
    )
    scale = largest.clamp_min_(_MIN_SCALE) / _MAX_INT8
    return (values / scale).round_().to(torch.int8), scale


def dequantized_weight(layer: nn.Module) -> Tensor:
    """A layer's weight in fp32, quantized or not."""
    weight, scale = _stored_weight(layer)
    return weight.float() if scale is None else weight * scale.view(-1, *[1] * (weight.ndim - 1))


def replace_weight(layer: nn.Module, weight: Tensor) -> Callable[[], None]:
    """Give a layer another weight, stored as its own is; the returned function undoes it."""
    original, scale = _stored_weight(layer)
    replacement = torch.empty_like(original)
    if scale is None:
        replacement.copy_(weight)
    else:
        integers, layer.scale = quantize_rows(weight)
        replacement.copy_(integers)
    layer.weight = nn.Parameter(replacement, requires_grad=False)

    def undo() -> None:
        layer.weight = original
        if scale is not None:
            layer.scale = scale

    return undo


def _stored_weight(layer: nn.Module) -> tuple[nn.Parameter, Tensor | None]:
    """A layer's weight, and its scale if it is quantized."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    scale = getattr(layer, "scale", None) if weight.dtype == torch.int8 else None
    assert scale is None or isinstance(scale, Tensor)
    return weight, scale
