# pyright: standard
"""A denoiser's frozen linear layers with weights in 8 or 4 bits, on any device.

Only the weights are quantized: each call computes them again in the dtype of its input, so results
are those of the dequantized weights. Nothing but the quantized weights is kept for the backward
pass.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinxit.models.kernels.quantize import dequantized_weight


def quantize_denoiser(denoiser: nn.Module, layers: str, dtype: torch.dtype) -> None:
    """Convert linear layers of a denoiser without weights whose names match the pattern `layers`.

    Their weights are then loaded as `quantize` returns them for the dtype.
    """
    for path, module in denoiser.named_modules():
        if type(module) is nn.Linear and re.search(layers, path):
            module.__class__ = _Linear
            module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)


class _Linear(nn.Linear):
    """A linear layer with a quantized weight."""

    def forward(self, input: Tensor) -> Tensor:
        """The output for (..., features)."""
        if self.weight.is_floating_point():  # peft creates layers of the class of their base layer
            return super().forward(input)
        return _Product.apply(input, self)


class _Product(torch.autograd.Function):
    """An input times the weight of a layer."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: nn.Linear) -> Any:
        """The layer's output."""
        ctx.layer = layer
        return F.linear(input, dequantized_weight(layer).to(input.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient with respect to the input."""
        return grads[0] @ dequantized_weight(ctx.layer).to(grads[0].dtype), None
