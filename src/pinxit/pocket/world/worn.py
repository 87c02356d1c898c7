"""What the living things of pocket's world may wear, placed by their eyes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pinxit.pocket.world import shapes as s
from pinxit.pocket.world.canvas import Canvas, Colour, shifted


def hat(c: Canvas, colour: Colour) -> None:
    """A top hat with a band, above the eyes."""
    x, y = np.mean(c.eyes, 0)
    base = y + 0.21
    c.paint(s.box(c.u, c.v, (x - 0.06, base + 0.16), (0.19, 0.17), 0.04), colour)
    c.paint(s.box(c.u, c.v, (x - 0.06, base + 0.05), (0.19, 0.045)), shifted(colour, -0.45), line=0)
    c.paint(s.box(c.u, c.v, (x - 0.06, base), (0.36, 0.055), 0.05), colour)


def scarf(c: Canvas, colour: Colour) -> None:
    """A thick band around the neck, below the eyes, with an end that hangs down."""
    x, y = np.mean(c.eyes, 0)
    x, y = x - (0.14 if len(c.eyes) == 1 else 0.0), y - 0.36
    end = s.limb(c.u, c.v, (x - 0.12, y - 0.02), (x - 0.18, y - 0.36), 0.10, 0.11)
    c.paint(end, shifted(colour, -0.15))
    c.paint(s.limb(c.u, c.v, (x - 0.20, y + 0.03), (x + 0.22, y - 0.03), 0.115, 0.115), colour)


def glasses(c: Canvas, colour: Colour) -> None:
    """Large tinted glasses on the eyes, held by a temple."""
    back = min(c.eyes)
    temple = s.limb(c.u, c.v, back, (back[0] - 0.30, back[1] + 0.03), 0.035, 0.03)
    c.paint(temple, colour)
    for x, y in c.eyes:
        c.ellipse((x, y), (0.155, 0.145), colour)
        c.ellipse((x + 0.03, y + 0.03), (0.055, 0.045), shifted(colour, 0.6))


DRAW: dict[str, Callable[[Canvas, Colour], None]] = {f.__name__: f for f in (hat, scarf, glasses)}
