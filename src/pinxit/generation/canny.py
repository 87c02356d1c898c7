"""The edges of a picture, white on black, as networks that follow edges want them."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# Shares of the strongest edge: what is an edge, and what goes on with one (J. Canny, 1986).
_SURE, _MAYBE = 0.25, 0.1
_BLUR = np.array([1, 4, 6, 4, 1]) / 16

Plane = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)


def edges(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Canny's edges (H, W), 255 on an edge and 0 elsewhere, of a picture (H, W, 3)."""
    grey = levels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    for axis in (0, 1):
        grey = sum((w * _moved(grey, axis, k - 2) for k, w in enumerate(_BLUR)), np.zeros(()))
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    thin = np.where(_is_crest(strength, down, right), strength, 0)
    sure, maybe = (thin > share * (strength.max() or 1) for share in (_SURE, _MAYBE))
    while True:  # an edge goes on where a neighbour may be one
        wide = sure
        for axis in (0, 1):
            wide = wide | _moved(wide, axis, 1) | _moved(wide, axis, -1)
        if ((wide & maybe) == sure).all():
            return np.where(sure, 255, 0).astype(np.uint8)
        sure = wide & maybe


def _is_crest(strength: Plane, down: Plane, right: Plane) -> NDArray[np.bool_]:
    """Whether nothing is stronger one step along the gradient, in the nearest of four ways."""
    way = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    crest = np.zeros(strength.shape, dtype=bool)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = _moved(_moved(strength, 0, -y), 1, -x)
        behind = _moved(_moved(strength, 0, y), 1, x)
        crest |= (way == number) & (strength >= ahead) & (strength > behind)
    return crest


def _moved(plane: NDArray[_T], axis: int, by: int) -> NDArray[_T]:
    """A plane moved along an axis, its rim repeated."""
    places = np.clip(np.arange(plane.shape[axis]) - by, 0, plane.shape[axis] - 1)
    return np.take(plane, places, axis)
