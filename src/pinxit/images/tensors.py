"""Between picture files and tensors: crop, resize, scale, and sheets of several pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_GAP = 4


def to_pixels(
    image: "Image", width: int, height: int, centring: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """A picture's middle, or another part, in the wanted shape, (1, 3, H, W) in [-1, 1]."""
    from PIL import Image, ImageOps

    size = (width, height)
    fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS, 0, centring)
    levels = torch.from_numpy(np.array(fitted, dtype=np.float32))
    return (levels / 127.5 - 1).permute(2, 0, 1).unsqueeze(0)


def to_image(pixels: Tensor) -> "Image":
    """A picture (3, H, W) in [-1, 1] as one to look at; what lies outside is clipped."""
    from PIL import Image

    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def sheet(images: Sequence["Image"], columns: int = 0) -> "Image":
    """Several pictures on one, in rows of `columns`; as square as can be if that is 0."""
    from PIL import Image

    columns = min(columns or round(len(images) ** 0.5 + 0.499), len(images))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images) + _GAP
    height = max(image.height for image in images) + _GAP
    paper = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        paper.paste(image, (column * width + _GAP, row * height + _GAP))
    return paper
