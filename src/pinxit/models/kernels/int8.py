# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
"""What a denoiser's frozen layers are in 8 bits: weights kept, and products taken, as integers.

Processors multiply integers of 8 bits three to four times as fast as floats. A weight is kept with
a scale for each channel of the answer; what it is multiplied with is rounded anew each time, by the
largest number of a place (linear layers) or of a sample (convolutions), forwards and backwards: the
scale of a weight is laid on the gradient before, so that the same integers serve both ways. So one
sample's answer does not depend on others'. Trained layers beside, norms and attention are fp32.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from pinxit.models.kernels.cpu import flat, neighbourhoods, scattered
from pinxit.models.kernels.quantize import in_groups

# A layer of a block, which is used at every place of a picture; not those that say the time.
_INSIDE = re.compile(r"(\w*blocks|mid_block)\.(?!.*(time|norm))")


def in_int8(denoiser: nn.Module) -> None:
    """Make a new denoiser's layers such; their weights come as `int8.rounded` has them."""
    for path, module in denoiser.named_modules():
        if not _INSIDE.match(path):
            continue
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1):
            module.__class__ = _Conv
        else:
            continue
        module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)


class _Linear(nn.Linear):
    """A linear layer as a product of integers."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Of states (..., features)."""
        if self.weight.is_floating_point():  # peft makes its own layers of a layer's class
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        return _Rows.apply(rows, self.weight, self.scale, self.bias).view(*input.shape[:-1], -1)


class _Conv(nn.Conv2d):
    """A convolution as a product of integers."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Of pictures (B, C, H, W)."""
        if self.weight.is_floating_point():
            return super().forward(input)
        if self.weight.shape[2:] == (1, 1) and self.stride == (1, 1):
            inside = input.permute(0, 2, 3, 1)
            rows, weight = inside.reshape(-1, inside.shape[-1]), self.weight.flatten(1)
            found = _Rows.apply(rows, weight, self.scale, self.bias)
            return found.view(*inside.shape[:3], -1).permute(0, 3, 1, 2)
        return _Places.apply(input, self.weight, self.scale, self.bias, self.stride, self.padding)


class _Rows(torch.autograd.Function):
    """Rows (M, K) by weights (O, K)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
        """The products, (M, O)."""
        ctx.save_for_backward(weight, scale)
        whole, size = in_groups(rows, 1)
        return _plus(torch._int_mm(whole, weight.t()).float().mul_(size).mul_(scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the rows."""
        weight, scale = ctx.saved_tensors
        whole, size = in_groups(grads[0] * scale, 1)
        return torch._int_mm(whole, weight).float().mul_(size), None, None, None


class _Places(torch.autograd.Function):
    """Neighbourhoods of pictures (B, C, H, W) by weights (O, C, K, K)."""

    @staticmethod
    def forward(
        ctx: Any,
        pictures: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        """The convolution, (B, O, H', W') in channels_last."""
        ctx.save_for_backward(weight, scale)
        ctx.places, ctx.shape = (stride, padding), pictures.shape
        whole, size = in_groups(pictures.permute(0, 2, 3, 1), 3)
        found = _convolved(whole, flat(weight).t(), weight.shape[2:], stride, padding)
        return _plus(found.float().mul_(size).mul_(scale), bias).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by the pictures."""
        (weight, scale), (stride, padding) = ctx.saved_tensors, ctx.places
        whole, size = in_groups(grads[0].permute(0, 2, 3, 1) * scale, 3)
        tall, wide = weight.shape[2:]
        if stride == (1, 1) and whole[..., 0].numel() > len(weight):
            # The convolution that goes back: fewer numbers pass through memory than with all
            # neighbourhoods' gradients where there are more places than channels.
            turned = weight.permute(2, 3, 0, 1).flip(0, 1).flatten(0, 2)
            around = (tall - 1 - padding[0], wide - 1 - padding[1])
            found = _convolved(whole, turned, (tall, wide), stride, around).float().mul_(size)
            return found.permute(0, 3, 1, 2), *[None] * 5

        def product(some: Tensor) -> Tensor:
            found = torch._int_mm(some.flatten(0, 2), flat(weight)).view(*some.shape[:3], -1)
            return found.float().mul_(size)

        back = scattered(whole, product, (tall, wide), ctx.shape, stride, padding)
        return back, *[None] * 5


def _convolved(
    whole: Tensor,
    weight: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Integers (B, H, W, C) by weights (K * K * C, O) at every place: (B, H', W', O)."""
    found = [
        torch._int_mm(rows.flatten(0, 2).flatten(1), weight).unflatten(0, rows.shape[:3])
        for rows in neighbourhoods(whole, kernel, stride, padding)
    ]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _plus(found: Tensor, bias: Tensor | None) -> Tensor:
    return found if bias is None else found.add_(bias)
