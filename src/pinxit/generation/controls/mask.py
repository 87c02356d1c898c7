"""mask: change only the inside or outside of a region (blended latents, arXiv:2206.02779)."""

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn import functional as F

from pinxit.errors import RequestError
from pinxit.generation.control import ControlHooks, ImageControl, SamplingContext, read_image
from pinxit.images.collected import ImageFile
from pinxit.images.crop import is_photo_like
from pinxit.images.tensors import to_pixels
from pinxit.options import Option
from pinxit.rng import generator


class Mask(ImageControl):
    """Keep the source image outside of a region; works together with any other control."""

    mask: ImageFile
    """mask image: white where to generate, black where to keep the image"""
    invert_mask: bool = Option(False, aliases=("outside",))
    """generate where the mask is black instead"""

    def problems(self) -> list[str]:
        """A mask that looks like a photograph."""
        if not is_photo_like(read_image(self.mask)):
            return []
        return [
            f"mask {self.mask} is mostly grey, as a photograph: it should be white where to "
            "generate and black where to keep the image"
        ]

    def check(self) -> None:
        """Both images must exist, and have one aspect ratio."""
        mask, image = read_image(self.mask), read_image(self.image)
        if abs(mask.width * image.height / (mask.height * image.width) - 1) > 0.02:
            raise RequestError(
                f"mask {self.mask} has another aspect ratio than the image: "
                f"{mask.width}x{mask.height} and {image.width}x{image.height}",
                "give a mask of the same shape as the image, at any size",
            )

    def prepare(self, context: SamplingContext) -> Generator[Tensor, None, ControlHooks]:
        """Hooks that blend the source image in; no extra pass."""
        yield from ()
        return _Blend(context, self)


class _Blend(ControlHooks):
    def __init__(self, context: SamplingContext, control: Mask) -> None:
        control.check()
        white = to_pixels(read_image(control.mask), *context.size).mean(1, keepdim=True) / 2 + 0.5
        weight = 1 - white if control.invert_mask else white
        self._weight = weight.to(context.model.device)
        self._source = context.pixels(control.image).to(context.model.device)
        coarse = F.avg_pool2d(self._weight, context.model.vae_scale_factor)
        self._latent_weight = (coarse > 0.5).float()
        noise = context.noise([generator(seed, "mask") for seed in context.seeds])
        latents = context.model.encode(self._source).mean
        self._trajectory = context.trajectory(latents, [noise] * len(context.timesteps))

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        """Replace the latents outside of the region by those of the source image."""
        source = self._trajectory[step + 1]
        count = len(source)
        blended = torch.lerp(source, latents[:count], self._latent_weight)
        return torch.cat([blended, latents[count:]])

    def finished(self, pixels: Tensor) -> Tensor:
        """Replace the pixels outside of the region by those of the source image."""
        return torch.lerp(self._source, pixels, self._weight)
