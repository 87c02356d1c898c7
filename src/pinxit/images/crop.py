"""How a picture is framed for learning: the shape nearest to its own, and what is cropped off."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
# Shapes are so many units wide and high: eighths of the learning size, which networks like.
_UNITS = 8
_LONGEST = 2.5
_LEAST_AREA = 0.9
# Chosen on pocket's world, where the truth is known (lab/images/crops.py), and on the tutorial's
# heads: the crop leaves the middle only for this share more of what catches the eye, the rim
# counts less than the middle, and what stands at the bottom less than the top, where heads are.
_WORTH_MOVING = 0.02
_OFF_MIDDLE = 0.7
_FEET = 0.5
_PLACES = 65


def shapes(side: int, grain: int) -> tuple[Size, ...]:
    """The shapes, width by height in pixels, that pictures are learned at: about side² each.

    All are multiples of `grain`; the square comes first.
    """
    unit = max(grain, side // _UNITS // grain * grain)
    whole = side / unit
    others = [
        (unit * width, unit * height)
        for width in range(1, int(whole * _LONGEST) + 1)
        for height in [int(whole**2 / width)]
        if width != height
        and max(width, height) <= _LONGEST * min(width, height)
        and width * height >= _LEAST_AREA * whole**2
    ]
    return ((side, side), *others)


def shape_for(size: Size, side: int, grain: int) -> Size:
    """The shape that least is cut off for, width by height."""

    def kept(shape: Size) -> float:
        wide = size[0] * shape[1] / (size[1] * shape[0])
        return min(wide, 1 / wide)

    return max(shapes(side, grain), key=kept)


def centring(image: "Image", shape: Size, mask: "Image | None" = None) -> tuple[float, float]:
    """Where the crop lies, from 0 (left, top) to 1: on the subject, else on what catches the eye.

    Halves if nothing is cut off, or if another place would hold hardly more.
    """
    from PIL import Image

    kept = image.width * shape[1] / (image.height * shape[0])
    if kept == 1:
        return 0.5, 0.5
    small = (64, 64)
    if mask:
        weights = np.asarray(mask.resize(small, Image.Resampling.BOX), dtype=np.float64)
    else:
        weights = salience(image.resize(small, Image.Resampling.BOX, reducing_gap=3.0))
        off = np.linspace(-1, 1, small[0]) / _OFF_MIDDLE
        near = np.exp(-(off**2) / 2)
        weights = weights * np.outer(near * np.linspace(1, _FEET, small[1]), near)
    across = kept > 1
    at = _best(weights.sum(axis=0 if across else 1), min(kept, 1 / kept))
    return (at, 0.5) if across else (0.5, at)


def box(size: Size, shape: Size, centre: tuple[float, float]) -> tuple[float, float, float, float]:
    """The rectangle (left, top, right, bottom) of the picture that is learned from."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    width, height = shape[0] * scale, shape[1] * scale
    left, top = (size[0] - width) * centre[0], (size[1] - height) * centre[1]
    return left, top, left + width, top + height


def salience(small: "Image") -> NDArray[np.float64]:
    """How much each place of a little picture catches the eye: unlike its rim, and with edges."""
    from PIL import ImageFilter

    smooth = small.convert("RGB").filter(ImageFilter.GaussianBlur(1))
    colours = np.asarray(smooth, dtype=np.float64) / 255
    inside = np.zeros(colours.shape[:2], dtype=bool)
    inside[2:-2, 2:-2] = True
    rim = colours[~inside]
    off = colours - rim.mean(0)
    spread = np.cov(rim.T, bias=True) + 1e-3 * np.eye(3)
    unlike = np.sqrt(np.einsum("hwi,ij,hwj->hw", off, np.linalg.inv(spread), off))
    down, right = np.gradient(colours.mean(2))
    edges = np.hypot(down, right)
    # Squared, so that a little subject counts against a large ground that is not quite even.
    return (unlike / (unlike.mean() + 1e-9) + edges / (edges.mean() + 1e-9)) ** 2


def _best(profile: NDArray[np.float64], share: float) -> float:
    """Where a window of that share of a row holds the most of it; the middle unless it pays."""
    sums = np.concatenate([[0.0], np.cumsum(profile)])
    places = np.linspace(0, 1, _PLACES)
    starts = places * (1 - share) * len(profile)
    grid = np.arange(len(sums))
    ends = starts + share * len(profile)
    held = (np.interp(ends, grid, sums) - np.interp(starts, grid, sums)) / (sums[-1] or 1)
    # Of places that hold equally much, the one nearest to the middle.
    best = int(np.argmax(held - 1e-6 * np.abs(places - 0.5)))
    gained = held[best] - held[_PLACES // 2]
    return float(places[best]) if gained > _WORTH_MOVING else 0.5
