# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""A denoiser's frozen layers in int8: weights and matrix products as 8-bit integers.

CPUs multiply 8-bit integers three to four times as fast as floats. A weight is quantized with one
scale for each output channel. Its input is quantized at each call, with one scale for each position
(linear layers) or for each sample (convolutions), in the forward and the backward pass. In the
backward pass the weight's scale is applied to the gradient first, so that the same integers serve
both passes. Therefore one sample's result does not depend on the others in the batch. Trained
layers, norms and attention stay in fp32.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from pinxit.models.kernels.cpu import Geometry, convolve, scatter_patches, weight_matrix
from pinxit.models.kernels.quantize import quantize_groups


def convert_to_int8(denoiser: nn.Module, layers: str) -> None:
    """Convert the layers of a denoiser without weights whose names match the pattern `layers`.

    Their weights are then loaded as `quantize_rows` returns them.
    """
    for path, module in denoiser.named_modules():
        if not re.search(layers, path):
            continue
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
            module.__class__ = _Conv
        else:
            continue
        module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)


class _Linear(nn.Linear):
    """A linear layer computed with 8-bit integers."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The output for (..., features)."""
        if self.weight.is_floating_point():  # peft creates layers of the class of their base layer
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        output = _Int8Linear.apply(rows, self.weight, self.scale, self.bias)
        return output.view(*input.shape[:-1], -1)


class _Conv(nn.Conv2d):
    """A convolution computed with 8-bit integers."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The output for (B, C, H, W)."""
        if self.weight.is_floating_point():
            return super().forward(input)
        if self.weight.shape[2:] == (1, 1) and self.stride == (1, 1):
            channels_last = input.permute(0, 2, 3, 1)
            rows, weight = channels_last.reshape(-1, input.shape[1]), self.weight.flatten(1)
            output = _Int8Linear.apply(rows, weight, self.scale, self.bias)
            return output.view(*channels_last.shape[:3], -1).permute(0, 3, 1, 2)
        return _Int8Convolution.apply(input, self.weight, self.scale, self.bias, Geometry.of(self))


class _Int8Linear(torch.autograd.Function):
    """Rows (M, K) times weights (O, K)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
        """The product, (M, O)."""
        ctx.save_for_backward(weight, scale)
        integers, row_scale = quantize_groups(rows, 1)
        product = torch._int_mm(integers, weight.t()).float()
        return _add_bias(product.mul_(row_scale).mul_(scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient with respect to the rows."""
        weight, scale = ctx.saved_tensors
        integers, row_scale = quantize_groups(grads[0] * scale, 1)
        return torch._int_mm(integers, weight).float().mul_(row_scale), None, None, None


class _Int8Convolution(torch.autograd.Function):
    """The convolution of (B, C, H, W) with weights (O, C, K, K)."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        """The convolution, (B, O, H', W') in channels_last."""
        ctx.save_for_backward(weight, scale)
        ctx.geometry, ctx.shape = geometry, input.shape
        integers, sample_scale = quantize_groups(input.permute(0, 2, 3, 1), 3)
        product = _convolve(integers, weight_matrix(weight).t(), geometry)
        return _add_bias(product.mul_(sample_scale).mul_(scale), bias).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient with respect to the input."""
        (weight, scale), (kernel, stride, padding) = ctx.saved_tensors, ctx.geometry
        integers, sample_scale = quantize_groups(grads[0].permute(0, 2, 3, 1) * scale, 3)
        if stride == (1, 1) and integers[..., 0].numel() > len(weight):
            # A transposed convolution: with more positions than channels it moves less data
            # through memory than the gradients of all patches.
            flipped = weight.permute(2, 3, 0, 1).flip(0, 1).flatten(0, 2)
            margins = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
            product = _convolve(integers, flipped, Geometry(kernel, stride, margins))
            return product.mul_(sample_scale).permute(0, 3, 1, 2), *[None] * 4

        def patch_gradients(rows: Tensor) -> Tensor:
            product = torch._int_mm(rows.flatten(0, 2), weight_matrix(weight))
            return product.view(*rows.shape[:3], -1).float().mul_(sample_scale)

        gradient = scatter_patches(integers, patch_gradients, ctx.shape, ctx.geometry)
        return gradient, *[None] * 4


def _convolve(integers: Tensor, matrix: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of integers (B, H, W, C) with a matrix (K * K * C, O): (B, H', W', O)."""
    return convolve(integers, lambda rows: torch._int_mm(rows, matrix), geometry).float()


def _add_bias(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output.add_(bias)
