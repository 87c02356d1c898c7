# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""Faster layers of a large denoiser on a CPU.

The denoiser's convolutions have far more weights than output positions. The libraries reorder the
weights at every call, which takes longer than the multiplication. As one matrix product the weights
are read in the order in which they are stored (docs/results/performance.md).
"""

import ctypes
from collections.abc import Callable
from platform import libc_ver
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# If the attention scores are smaller than this (in bytes), computing them at once is faster than
# the library's tiled attention. Larger ones would be allocated anew at each call.
_MAX_SCORES_BYTES = 2**25

# Maximum number of values in a group of unfolded image patches.
_MAX_PATCH_VALUES = 2**25


# Parameters of glibc's mallopt: maximum number of mapped blocks, and how much free memory to keep.
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for later, if it is glibc.

    It would give large blocks back and get them again, page by page, in every step.
    """
    if libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, 2**26)


def release_freed_memory() -> None:
    """Give freed memory back to the system, if the C library is glibc."""
    if libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def optimize_for_cpu(denoiser: Any) -> None:
    """Replace a large denoiser's layers by faster ones; names and weights stay the same."""
    keep_freed_memory()
    for module in denoiser.modules():
        if type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
            # Still the same object and an nn.Conv2d, as adapters and file formats expect.
            module.__class__ = _MatrixConv
    from diffusers.models.attention_processor import AttnProcessor2_0

    processors = getattr(denoiser, "attn_processors", {}).values()
    if processors and all(type(processor) is AttnProcessor2_0 for processor in processors):
        denoiser.set_attn_processor(_Attention())


class Geometry(NamedTuple):
    """Kernel size, stride and padding of a convolution, (height, width) each."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "Geometry":
        """The geometry of a layer, whose padding is given in numbers."""
        return cls(layer.weight.shape[2:], layer.stride, cast("Any", layer.padding))


class _MatrixConv(nn.Conv2d):
    """A convolution computed as matrix products."""

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of (B, C, H, W)."""
        return _Convolution.apply(input, self.weight, self.bias, Geometry.of(self))


class _Convolution(torch.autograd.Function):
    """Saves its input for the backward pass only if its weights are trained."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        """The convolution, (B, O, H', W') in channels_last."""
        ctx.geometry, ctx.shape = geometry, input.shape
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)
        matrix = weight_matrix(weight)
        channels_last = input.permute(0, 2, 3, 1)
        output = convolve(channels_last, lambda rows: F.linear(rows, matrix, bias), geometry)
        return output.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients with respect to input, weight and bias, each only if needed."""
        input, weight = ctx.saved_tensors
        input_needed, weight_needed, bias_needed = ctx.needs_input_grad[:3]
        grad, matrix = grads[0].permute(0, 2, 3, 1), weight_matrix(weight)
        input_grad = weight_grad = bias_grad = None
        if input_needed:
            input_grad = scatter_patches(grad, lambda rows: rows @ matrix, ctx.shape, ctx.geometry)
        if weight_needed:
            weight_grad = _weight_gradient(grad, input, weight, ctx.geometry)
        if bias_needed:
            bias_grad = grad.sum((0, 1, 2))
        return input_grad, weight_grad, bias_grad, None


def weight_matrix(weight: Tensor) -> Tensor:
    """Weights (O, C, K, K) as a matrix (O, K * K * C); without a copy in channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def convolve(input: Tensor, product: Callable[[Tensor], Tensor], geometry: Geometry) -> Tensor:
    """The convolution of an input (B, H, W, C): (B, H', W', O).

    `product` multiplies some patches, (N, K * K * C), with the weights.
    """
    outputs = [
        product(rows.flatten(0, 2).flatten(1)).unflatten(0, rows.shape[:3])
        for rows in patches(input, geometry)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def patches(input: Tensor, geometry: Geometry) -> tuple[Tensor, ...]:
    """The input patch of each output position, (B, rows, W', K, K, C), in groups of rows.

    `input` is (B, H, W, C).
    """
    (kernel_height, kernel_width), stride, padding = geometry
    if any(padding):
        input = F.pad(input, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = input.unfold(1, kernel_height, stride[0]).unfold(2, kernel_width, stride[1])
    windows = windows.permute(0, 1, 2, 4, 5, 3)
    rows = max(1, _MAX_PATCH_VALUES // (windows[:, :1].numel() or 1))
    return windows.split(rows, 1)


def scatter_patches(
    grad: Tensor, product: Callable[[Tensor], Tensor], shape: torch.Size, geometry: Geometry
) -> Tensor:
    """The gradient with respect to an input of this shape: the sum over all its patches.

    `grad` is (B, H', W', O). `product` computes the patches' gradient from some rows of `grad`.
    """
    (batch, channels, height, width), (kernel, stride, padding) = shape, geometry
    kernel_height, kernel_width = kernel
    total: Tensor | None = None
    row_values = grad[:, :1, :, 0].numel() * kernel_height * kernel_width * channels
    rows = max(1, _MAX_PATCH_VALUES // (row_values or 1))
    for first in range(0, grad.shape[1], rows):
        group = product(grad[:, first : first + rows])
        group = group.unflatten(3, (kernel_height, kernel_width, channels))
        if total is None:
            total = group.new_zeros(
                batch, height + 2 * padding[0], width + 2 * padding[1], channels
            )
        for y in range(kernel_height):
            for x in range(kernel_width):
                top = first * stride[0] + y
                view = total[
                    :,
                    top : top + stride[0] * group.shape[1] : stride[0],
                    x : x + stride[1] * group.shape[2] : stride[1],
                ]
                view += group[:, :, :, y, x]
    assert total is not None
    cropped = total[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return cropped.permute(0, 3, 1, 2)


def _weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient with respect to the weight, (O, C, K, K)."""
    total: Tensor | None = None
    first = 0
    for rows in patches(input.permute(0, 2, 3, 1), geometry):
        grad_rows = grad[:, first : first + rows.shape[1]].flatten(0, 2)
        product = grad_rows.T @ rows.flatten(0, 2).flatten(1)
        total = product if total is None else total + product
        first += rows.shape[1]
    assert total is not None
    kernel_height, kernel_width = weight.shape[2:]
    return total.view(len(weight), kernel_height, kernel_width, -1).permute(0, 3, 1, 2)


class _Attention:
    """Plain or tiled attention, depending on the size of the scores."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self._plain, self._tiled = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The layer's output: self-attention, or cross-attention to `encoder_hidden_states`."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        scores = len(hidden_states) * attn.heads * hidden_states.shape[1] * context.shape[1]
        small = scores * hidden_states.element_size() < _MAX_SCORES_BYTES
        processor = self._plain if small else self._tiled
        return processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
