# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""What a large denoiser's layers are on a CPU, where the libraries' own are slow at its shapes.

Its convolutions have far more weights than places to use them: the libraries lay the weights out
anew at every call, which takes longer than to multiply. As one product of matrices the weights are
read as they lie (docs/performance.md).
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

# Attention whose scores take fewer bytes than this keeps them all; the library's, which computes
# them again in tiles, takes longer then. What is larger the allocator gets anew each time.
_SCORES = 2**25

# Neighbourhoods of a picture are laid side by side for so many numbers at a time.
_NUMBERS = 2**25


def suit_cpu(denoiser: Any) -> None:
    """Give a large denoiser the layers that compute fast here; its weights and names stay."""
    for module in denoiser.modules():
        if type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
            # The very same layer otherwise: adapters and files find in it what they look for.
            module.__class__ = _MatrixConv
    processors = getattr(denoiser, "attn_processors", {}).values()
    if processors and all(type(one) is AttnProcessor2_0 for one in processors):
        denoiser.set_attn_processor(_Attention())


class _MatrixConv(nn.Conv2d):
    """A convolution as products of matrices."""

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of pictures (B, C, H, W)."""
        padding: Any = self.padding
        return _Convolution.apply(input, self.weight, self.bias, self.stride, padding)


class _Convolution(torch.autograd.Function):
    """Keeps its input for the backward pass only if its weights are trained."""

    @staticmethod
    def forward(
        ctx: Any,
        pictures: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        """The convolution, (B, O, H', W') in channels_last."""
        ctx.places, ctx.shape = (stride, padding), pictures.shape
        ctx.save_for_backward(pictures if ctx.needs_input_grad[1] else None, weight)
        found = [
            F.linear(rows.flatten(0, 2).flatten(1), flat(weight), bias).unflatten(0, rows.shape[:3])
            for rows in neighbourhoods(
                pictures.permute(0, 2, 3, 1), weight.shape[2:], stride, padding
            )
        ]
        return (found[0] if len(found) == 1 else torch.cat(found, 1)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by pictures, weights and bias, each if it is wanted."""
        pictures, weight = ctx.saved_tensors
        wanted, (stride, padding) = ctx.needs_input_grad, ctx.places
        grad = grads[0].permute(0, 2, 3, 1)
        by_weight = by_bias = by_pictures = None
        if wanted[0]:
            by_pictures = scattered(
                grad,
                lambda some: some @ flat(weight),
                weight.shape[2:],
                ctx.shape,
                stride,
                padding,
            )
        if wanted[1]:
            by_weight = _products(grad, pictures, weight, stride, padding)
        if wanted[2]:
            by_bias = grad.sum((0, 1, 2))
        return by_pictures, by_weight, by_bias, None, None


def flat(weight: Tensor) -> Tensor:
    """Weights (O, C, K, K) as a matrix (O, K * K * C); in channels_last without a copy."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def neighbourhoods(
    inside: Tensor, kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Tensor, ...]:
    """What each place of the answer is made of, (B, rows, W', K, K, C), some rows at a time.

    `inside` is the pictures as (B, H, W, C).
    """
    tall, wide = kernel
    if any(padding):
        inside = F.pad(inside, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = inside.unfold(1, tall, stride[0]).unfold(2, wide, stride[1]).permute(0, 1, 2, 4, 5, 3)
    rows = max(1, _NUMBERS // (windows[:, :1].numel() or 1))
    return windows.split(rows, 1)


def scattered(
    grad: Tensor,
    product: Callable[[Tensor], Tensor],
    kernel: tuple[int, ...],
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The gradient by pictures of this shape: each place's is given back to those it was made of.

    `grad` is (B, H', W', O), and `product` makes of some rows of it the gradient by neighbourhoods.
    """
    (count, channels, height, width), (tall, wide) = shape, kernel
    inside: Tensor | None = None
    rows = max(1, _NUMBERS // (grad[:, :1, :, 0].numel() * tall * wide * channels or 1))
    for first in range(0, grad.shape[1], rows):
        parts = product(grad[:, first : first + rows]).unflatten(3, (tall, wide, channels))
        if inside is None:
            inside = parts.new_zeros(
                count, height + 2 * padding[0], width + 2 * padding[1], channels
            )
        for y in range(tall):
            for x in range(wide):
                top = first * stride[0] + y
                into = inside[
                    :,
                    top : top + stride[0] * parts.shape[1] : stride[0],
                    x : x + stride[1] * parts.shape[2] : stride[1],
                ]
                into += parts[:, :, :, y, x]
    assert inside is not None
    cut = inside[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return cut.permute(0, 3, 1, 2)


def _products(
    grad: Tensor,
    pictures: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The gradient by the weights, (O, C, K, K)."""
    total: Tensor | None = None
    first = 0
    for rows in neighbourhoods(pictures.permute(0, 2, 3, 1), weight.shape[2:], stride, padding):
        some = grad[:, first : first + rows.shape[1]].flatten(0, 2)
        found = some.T @ rows.flatten(0, 2).flatten(1)
        total = found if total is None else total + found
        first += rows.shape[1]
    assert total is not None
    tall, wide = weight.shape[2:]
    return total.view(len(weight), tall, wide, -1).permute(0, 3, 1, 2)


class _Attention:
    """Attention of one kind or the other, by how many scores it has."""

    def __init__(self) -> None:
        self._whole, self._tiled = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """What the layer makes of its states, which are told others or one another."""
        told = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        scores = len(hidden_states) * attn.heads * hidden_states.shape[1] * told.shape[1]
        whole = scores * hidden_states.element_size() < _SCORES
        way = self._whole if whole else self._tiled
        return way(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
