"""Aspect-ratio buckets, and where to crop an image to fit its bucket."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]
# The largest resolution for training, in pixels; one that is larger was mistyped.
MAX_RESOLUTION = 8192
# A mask may have soft edges; one with more grey than this fraction is no mask.
_GREY_SHARE = 0.4
# Buckets are a units number of units wide and high; a unit is an eighth of the resolution.
_UNITS = 8
_MAX_ASPECT = 2.5
_MIN_AREA = 0.9
# Chosen on pocket's world, where the truth is known (lab/images/crops.py), and on the tutorial's
# portraits: the crop moves from the center only if it then contains this fraction more of the
# salience. Places far from the center count less, and the bottom less than the top, where heads
# are.
_MIN_GAIN = 0.02
_CENTER_SIGMA = 0.7
_BOTTOM_WEIGHT = 0.5
_POSITIONS = 65


def buckets(resolution: int, size_multiple: int) -> tuple[Size, ...]:
    """The sizes (width, height) in pixels to train at, of about resolution² pixels each.

    All are multiples of `size_multiple`; the square is first.
    """
    unit = max(size_multiple, resolution // _UNITS // size_multiple * size_multiple)
    units = resolution / unit
    others = [
        (unit * width, unit * height)
        for width in range(1, int(units * _MAX_ASPECT) + 1)
        for height in [int(units**2 / width)]
        if width != height
        and max(width, height) <= _MAX_ASPECT * min(width, height)
        and width * height >= _MIN_AREA * units**2
    ]
    return ((resolution, resolution), *others)


def bucket_for(size: Size, resolution: int, size_multiple: int) -> Size:
    """The bucket (width, height) for which the least of an image is cropped off."""

    def uncropped_fraction(bucket: Size) -> float:
        ratio = size[0] * bucket[1] / (size[1] * bucket[0])
        return min(ratio, 1 / ratio)

    return max(buckets(resolution, size_multiple), key=uncropped_fraction)


def crop_center(image: "Image", bucket: Size, mask: "Image | None" = None) -> tuple[float, float]:
    """Position (x, y) of the crop, 0 = left or top, 1 = right or bottom.

    The crop contains as much as possible of the mask or, without one, of the most salient region.
    0.5 if nothing is cropped off or if another position contains hardly more.
    """
    from PIL import Image

    ratio = image.width * bucket[1] / (image.height * bucket[0])
    if ratio == 1:
        return 0.5, 0.5
    small = (64, 64)
    if mask:
        weights = np.asarray(mask.resize(small, Image.Resampling.BOX), dtype=np.float64)
    else:
        weights = salience(image.resize(small, Image.Resampling.BOX, reducing_gap=3.0))
        distance = np.linspace(-1, 1, small[0]) / _CENTER_SIGMA
        center_weight = np.exp(-(distance**2) / 2)
        vertical = center_weight * np.linspace(1, _BOTTOM_WEIGHT, small[1])
        weights = weights * np.outer(vertical, center_weight)
    horizontal = ratio > 1
    position = _best_position(weights.sum(axis=0 if horizontal else 1), min(ratio, 1 / ratio))
    return (position, 0.5) if horizontal else (0.5, position)


def crop_box(
    size: Size, bucket: Size, center: tuple[float, float]
) -> tuple[float, float, float, float]:
    """The crop (left, top, right, bottom) in pixels of the original image."""
    scale = min(size[0] / bucket[0], size[1] / bucket[1])
    width, height = bucket[0] * scale, bucket[1] * scale
    left, top = (size[0] - width) * center[0], (size[1] - height) * center[1]
    return left, top, left + width, top + height


def salience(small: "Image") -> NDArray[np.float64]:
    """Salience of each pixel of a small image, (H, W): color unlike the border's, and edges."""
    from PIL import ImageFilter

    smooth = small.convert("RGB").filter(ImageFilter.GaussianBlur(1))
    colors = np.asarray(smooth, dtype=np.float64) / 255
    inside = np.zeros(colors.shape[:2], dtype=bool)
    inside[2:-2, 2:-2] = True
    border = colors[~inside]
    difference = colors - border.mean(0)
    covariance = np.cov(border.T, bias=True) + 1e-3 * np.eye(3)
    inverse = np.linalg.inv(covariance)
    # The Mahalanobis distance to the colors of the border.
    distance = np.sqrt(np.einsum("hwi,ij,hwj->hw", difference, inverse, difference))
    down, right = np.gradient(colors.mean(2))
    edges = np.hypot(down, right)
    # Squared, so that a small subject outweighs a large background that is not quite uniform.
    return (distance / (distance.mean() + 1e-9) + edges / (edges.mean() + 1e-9)) ** 2


def is_photo_like(mask: "Image") -> bool:
    """Whether a mask has so many grey pixels that it is more likely a photograph by mistake."""
    levels = np.asarray(mask.convert("L"))
    return bool(((levels > 31) & (levels < 224)).mean() > _GREY_SHARE)


def _best_position(profile: NDArray[np.float64], fraction: float) -> float:
    """Position (0 to 1) of the window, a fraction of the profile long, with the largest sum.

    0.5 unless another position gains at least `_MIN_GAIN`.
    """
    sums = np.concatenate([[0.0], np.cumsum(profile)])
    positions = np.linspace(0, 1, _POSITIONS)
    starts = positions * (1 - fraction) * len(profile)
    grid = np.arange(len(sums))
    ends = starts + fraction * len(profile)
    contents = (np.interp(ends, grid, sums) - np.interp(starts, grid, sums)) / (sums[-1] or 1)
    # Of positions with equal sums, the one nearest to the center.
    best = int(np.argmax(contents - 1e-6 * np.abs(positions - 0.5)))
    gain = contents[best] - contents[_POSITIONS // 2]
    return float(positions[best]) if gain > _MIN_GAIN else 0.5
