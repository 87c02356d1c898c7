"""Canny edges of an image, white on black, as ControlNets for edges expect them."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

# Fractions of the strongest gradient: certain edges, and what may continue one (J. Canny, 1986).
_HIGH, _LOW = 0.25, 0.1
_BLUR = np.array([1, 4, 6, 4, 1]) / 16

Plane = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)


def canny_edges(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The edges (H, W) of an image (H, W, 3): 255 on an edge, 0 elsewhere."""
    grey = levels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    for axis in (0, 1):
        terms = (weight * _shift(grey, axis, i - 2) for i, weight in enumerate(_BLUR))
        grey = sum(terms, np.zeros(()))
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    thin = np.where(_is_local_maximum(strength, down, right), strength, 0)
    strongest = strength.max() or 1
    edge, candidate = thin > _HIGH * strongest, thin > _LOW * strongest
    while True:  # candidates next to an edge become edges, until nothing changes
        wide = edge
        for axis in (0, 1):
            wide = wide | _shift(wide, axis, 1) | _shift(wide, axis, -1)
        grown = wide & candidate
        if (grown == edge).all():
            return np.where(edge, 255, 0).astype(np.uint8)
        edge = grown


def _is_local_maximum(strength: Plane, down: Plane, right: Plane) -> NDArray[np.bool_]:
    """Whether both neighbours along the gradient are weaker, in the nearest of 4 directions."""
    direction = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    maximum = np.zeros(strength.shape, dtype=bool)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = _shift(_shift(strength, 0, -y), 1, -x)
        behind = _shift(_shift(strength, 0, y), 1, x)
        maximum |= (direction == number) & (strength >= ahead) & (strength > behind)
    return maximum


def _shift(plane: NDArray[_T], axis: int, distance: int) -> NDArray[_T]:
    """A plane shifted along an axis; the border is repeated."""
    indices = np.clip(np.arange(plane.shape[axis]) - distance, 0, plane.shape[axis] - 1)
    return np.take(plane, indices, axis)
