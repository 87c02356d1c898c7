"""Signed distances to plain shapes: negative inside, in the units of the coordinates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # of floats; numpy widens some on the way
Point = tuple[float, float]


def ellipse(u: Field, v: Field, centre: Point, radii: Point, turn: float = 0.0) -> Field:
    """An ellipse, turned by `turn` radians; first-order distance, exact on the outline."""
    x, y = u - centre[0], v - centre[1]
    if turn:
        c, s = math.cos(turn), math.sin(turn)
        x, y = c * x + s * y, c * y - s * x
    x, y = x / radii[0], y / radii[1]
    k = np.sqrt(x * x + y * y)
    slope = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2) + 1e-6
    return k * (k - 1) / slope


def limb(u: Field, v: Field, start: Point, end: Point, thick: float, thin: float) -> Field:
    """A rounded stroke from `start` to `end` whose half width goes from `thick` to `thin`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    x, y = u - start[0], v - start[1]
    t = np.clip((x * dx + y * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(x - t * dx, y - t * dy) - (thick + (thin - thick) * t)


def box(u: Field, v: Field, centre: Point, half: Point, round_: float = 0.0) -> Field:
    """An upright rectangle with rounded corners."""
    x = np.abs(u - centre[0]) - half[0] + round_
    y = np.abs(v - centre[1]) - half[1] + round_
    outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - round_


def polygon(u: Field, v: Field, points: list[Point], round_: float = 0.0) -> Field:
    """A closed polygon, convex or not, its corners rounded outwards by `round_`."""
    nearest = np.full(u.shape, 1e9, np.float32)
    inside = np.zeros(u.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = x1 - x0, y1 - y0
        wx, wy = u - x0, v - y0
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey + 1e-9), 0, 1)
        nearest = np.minimum(nearest, (wx - t * ex) ** 2 + (wy - t * ey) ** 2)
        if ey != 0:
            inside ^= ((y0 > v) != (y1 > v)) & (u < x0 + ex * (v - y0) / ey)
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest) - round_


def ring(u: Field, v: Field, centre: Point, radii: Point, width: float) -> Field:
    """The outline of an ellipse, `width` thick."""
    return np.abs(ellipse(u, v, centre, radii)) - width / 2


def together(*distances: Field, soft: float = 0.0) -> Field:
    """The union of shapes; `soft` is about the length over which their joints are blended."""
    result = distances[0]
    for other in distances[1:]:
        joined = np.minimum(result, other)
        if soft:
            h = np.maximum(soft - np.abs(result - other), 0)
            joined = joined - h * h / (4 * soft)
        result = joined
    return result


def common(a: Field, b: Field) -> Field:
    """The part two shapes share."""
    return np.maximum(a, b)


def emblem(u: Field, v: Field, centre: Point, radius: float, kind: str) -> Field:
    """A small sign: disc, star, diamond or heart."""
    if kind == "disc":
        return ellipse(u, v, centre, (radius * 0.8, radius * 0.8))
    if kind == "diamond":
        x, y = np.abs(u - centre[0]), np.abs(v - centre[1])
        return (x * 1.25 + y - radius * 1.1) / 1.6
    if kind == "star":
        ring_ = [radius * (1.15 if i % 2 == 0 else 0.45) for i in range(10)]
        angles = [math.pi / 2 + i * math.pi / 5 for i in range(10)]
        corners = [
            (centre[0] + r * math.cos(a), centre[1] + r * math.sin(a))
            for r, a in zip(ring_, angles, strict=True)
        ]
        return polygon(u, v, corners)
    r = radius * 0.55
    lobes = [
        ellipse(u, v, (centre[0] + s * r * 0.85, centre[1] + r * 0.5), (r, r)) for s in (-1, 1)
    ]
    x, y = centre
    tip = polygon(u, v, [(x - r * 1.7, y + r * 0.1), (x + r * 1.7, y + r * 0.1), (x, y - r * 2)])
    return together(*lobes, tip)
