"""Quantization of weights to 8-bit integers or 4-bit floats (NF4), and back."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MAX_INT8 = 127
_MIN_SCALE = 1e-30  # avoids a division by zero

# The values of NF4 (arXiv:2305.14314, appendix E), and how many weights have a scale together.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_NF4_BLOCK = 64
# The dtypes of stored weights: integers, and two values of NF4 in a byte.
INT8, NF4 = torch.int8, torch.uint8


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight as it is stored in a dtype, with scales: of rows for INT8, of blocks for NF4."""
    return quantize_rows(weight) if dtype == INT8 else _quantize_blocks(weight)


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


def _quantize_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in NF4, two values in each byte, and the largest absolute value of each block."""
    flat = weight.float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min_(_MIN_SCALE)
    codes = torch.tensor(_NF4, device=weight.device)
    indices = torch.bucketize(blocks / scale, (codes[1:] + codes[:-1]) / 2).to(torch.uint8)
    pairs = indices.view(-1, 2)
    return (pairs[:, :1] << 4) | pairs[:, 1:], scale.flatten()


def weight_shape(layer: nn.Module) -> torch.Size:
    """The shape of a layer's weight, quantized or not."""
    weight = _stored_weight(layer)[0]
    if weight.dtype != NF4:
        return weight.shape
    linear = cast("nn.Linear", layer)
    return torch.Size((linear.out_features, linear.in_features))


def dequantized_weight(layer: nn.Module) -> Tensor:
    """A layer's weight in fp32, quantized or not."""
    weight, scale = _stored_weight(layer)
    if scale is None:
        return weight.float()
    if weight.dtype == INT8:
        return weight * scale.view(-1, *[1] * (weight.ndim - 1))
    shape = weight_shape(layer)
    codes = torch.tensor(_NF4, device=weight.device)
    values = F.embedding(weight.flatten().int(), torch.cartesian_prod(codes, codes))
    return (values.view(-1, _NF4_BLOCK) * scale[:, None]).flatten()[: shape.numel()].view(shape)


def stored_tensors(network: nn.Module) -> Iterator[Tensor]:
    """The weights and buffers of a network, with the scales of quantized layers."""
    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        if isinstance(scale := getattr(module, "scale", None), Tensor):
            yield scale


def replace_weight(layer: nn.Module, weight: Tensor) -> Callable[[], None]:
    """Give a layer another weight, stored as its own is; the returned function undoes it.

    In place of 4 bits it has 8, because a small change would be lost in 4.
    """
    original, scale = _stored_weight(layer)
    if scale is None:
        replacement = torch.empty_like(original).copy_(weight)
    else:
        integers, layer.scale = quantize_rows(weight)
        layout = original if original.dtype == INT8 else integers  # of convolutions
        replacement = torch.empty_like(layout).copy_(integers)
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
    scale = getattr(layer, "scale", None) if weight.dtype in (INT8, NF4) else None
    assert scale is None or isinstance(scale, Tensor)
    return weight, scale
