"""Convert between images and tensors, with crop and resize; contact sheets of several images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pinxit.arguments import checked
from pinxit.errors import RequestError

_MARGIN = 4


def to_pixels(
    image: Image.Image, width: int, height: int, center: tuple[float, float] = (0.5, 0.5)
) -> Tensor:
    """Crop and resize an image to a tensor (1, 3, height, width) in [-1, 1].

    `center` is the position (x, y) of the crop: 0 = left or top, 1 = right or bottom.
    """
    size = (width, height)
    fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS, 0, center)
    levels = torch.from_numpy(np.array(fitted, dtype=np.float32))
    return (levels / 127.5 - 1).permute(2, 0, 1).unsqueeze(0)


def to_image(pixels: Tensor) -> Image.Image:
    """Convert a tensor (3, H, W) in [-1, 1] to an image; values outside are clipped."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


@checked
def contact_sheet(images: Sequence[Image.Image], columns: int = 0) -> Image.Image:
    """Arrange images in a grid with that many columns; 0 = about as many columns as rows.

    RequestError without images.
    """
    if not images:
        raise RequestError("there is no image for a contact sheet", "give at least one")
    columns = min(columns or round(len(images) ** 0.5 + 0.499), len(images))
    rows = -(-len(images) // columns)
    width = max(image.width for image in images) + _MARGIN
    height = max(image.height for image in images) + _MARGIN
    canvas = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        canvas.paste(image, (column * width + _MARGIN, row * height + _MARGIN))
    return canvas
