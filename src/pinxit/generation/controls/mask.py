"""mask: change only the inside or the outside of a region (blended latents, arXiv:2206.02779)."""

from collections.abc import Generator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pinxit.errors import RequestError
from pinxit.generation.control import Hold, Pictured, Walk, opened
from pinxit.images.tensors import to_pixels
from pinxit.rng import generator


class Mask(Pictured):
    """Put the picture back, noised as much, wherever it is to stay; works beside any control."""

    mask: Path = Field(description="a picture that is white where to paint and black elsewhere")
    outside: bool = Field(default=False, description="paint outside of the mask's white instead")

    def begin(self, walk: Walk) -> Generator[Tensor, None, Hold]:
        """Nothing beforehand."""
        yield from ()
        return _Blend(walk, self)


class _Blend(Hold):
    def __init__(self, walk: Walk, control: Mask) -> None:
        mask, picture = opened(control.mask), opened(control.picture)
        if abs(mask.width * picture.height / (mask.height * picture.width) - 1) > 0.02:
            raise RequestError(
                f"mask {control.mask} has another shape than the picture: {mask.width}x"
                f"{mask.height} for {picture.width}x{picture.height}",
                "draw it on the picture, at any size",
            )
        white = to_pixels(mask, *walk.size).mean(1, keepdim=True) / 2 + 0.5
        self._free = (1 - white if control.outside else white).to(walk.model.device)
        self._own = walk.pixels(control.picture).to(walk.model.device)
        self._coarse = (F.avg_pool2d(self._free, walk.model.factor) > 0.5).float()
        noise = walk.noise([generator(seed, "mask") for seed in walk.seeds])
        latents = walk.model.encode(self._own).mean
        self._path = walk.path(latents, [noise] * len(walk.times))

    def after(self, at: int, rows: Tensor) -> Tensor:
        """What is to stay is the picture again."""
        count = len(self._path[at + 1])
        mixed = torch.lerp(self._path[at + 1], rows[:count], self._coarse)
        return torch.cat([mixed, rows[count:]])

    def finished(self, pixels: Tensor) -> Tensor:
        """The picture's own pixels, where they are to stay."""
        return torch.lerp(self._own, pixels, self._free)
