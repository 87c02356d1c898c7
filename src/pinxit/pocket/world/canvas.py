"""The sheet a scene is drawn on: colours, the subject's mask, outlines, light, in layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pinxit.pocket.world import shapes
from pinxit.pocket.world.shapes import Field, Point

Colour = tuple[float, float, float]


def grid(size: int) -> tuple[Field, Field]:
    """Coordinates of the pixels' centres: u to the right, v upwards, both in -1..1."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size) - 1
    u, v = np.meshgrid(line, -line)
    return u, v


def shifted(colour: Colour, amount: float) -> Colour:
    """The colour lighter (amount > 0) or darker (amount < 0)."""
    goal = 1.0 if amount > 0 else 0.0
    r, g, b = (c + (goal - c) * abs(amount) for c in colour)
    return (r, g, b)


def against(colour: Colour, amount: float) -> Colour:
    """A darker colour for a light one and a lighter one for a dark one: always visible on it."""
    bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    return shifted(colour, -amount if bright > 0.38 else amount)


@dataclass
class Canvas:
    """A square sheet of `size` pixels; painting composites anti-aliased shapes onto it.

    albedo (H, W, 3) in 0..1, mask (H, W) of the subject, edge (H, W) strength of outlines,
    light (H, W) around 1. `u`, `v` are the coordinates shapes are given in: the picture's for a
    background, the subject's own while the subject is drawn.
    """

    size: int
    albedo: Field = field(init=False)
    mask: Field = field(init=False)
    edge: Field = field(init=False)
    light: Field = field(init=False)
    u: Field = field(init=False)
    v: Field = field(init=False)
    pixel: float = field(init=False)
    subject: bool = field(init=False, default=False)
    pattern: Field | None = field(init=False, default=None)
    asleep: bool = field(init=False, default=False)
    eyes: list[Point] = field(init=False, default_factory=list[Point])

    def __post_init__(self) -> None:
        self.albedo = np.ones((self.size, self.size, 3), np.float32)
        self.mask = np.zeros((self.size, self.size), np.float32)
        self.edge = np.zeros((self.size, self.size), np.float32)
        self.light = np.ones((self.size, self.size), np.float32)
        self.pixel = 2 / self.size
        self.u, self.v = grid(self.size)

    def enter_subject(self, x: float, y: float, scale: float, facing: str, tilt: float) -> None:
        """Put the coordinates into the subject's frame, where it looks to the right."""
        c, s = math.cos(tilt), math.sin(tilt)
        u, v = grid(self.size)
        u, v = (u - x) / scale, (v - y) / scale
        u, v = c * u + s * v, c * v - s * u
        self.u = u if facing == "right" else -u
        self.v = v
        self.pixel = 2 / self.size / scale
        self.subject = True
        self.pattern, self.eyes = None, []

    def pose(self, ground: float, low: float, slope: float) -> None:
        """Squeeze the subject towards a line, more or less from its back (u < 0) to its front."""
        self.v = ground + (self.v - ground) / (low + slope * self.u.clip(-1, 1))

    def wear(self, pattern: str, phase: float) -> None:
        """Choose the pattern that body parts carry (PATTERNS names them)."""
        if pattern == "striped":
            wave = np.abs(((self.u * 0.94 + self.v * 0.34) / 0.30 + phase) % 1 - 0.5) * 0.30
            self.pattern = wave - 0.072
        elif pattern == "spotted":
            x = (self.u / 0.30 + phase) % 1 - 0.5
            row = np.floor(self.v / 0.26 + phase)
            x = (x + 0.5 + 0.5 * (row % 2)) % 1 - 0.5
            y = (self.v / 0.26 + phase) % 1 - 0.5
            self.pattern = np.hypot(x * 0.30, y * 0.26) - 0.085
        elif pattern == "checked":
            x = np.abs((self.u / 0.40 + phase) % 1 - 0.5) * 0.40 - 0.10
            y = np.abs((self.v / 0.40 + phase) % 1 - 0.5) * 0.40 - 0.10
            self.pattern = np.where((x < 0) == (y < 0), -1, 1) * np.minimum(np.abs(x), np.abs(y))
        elif pattern == "wavy":
            wave = self.v / 0.32 + 0.28 * np.sin(self.u * 13) + phase
            self.pattern = np.abs(wave % 1 - 0.5) * 0.32 - 0.075
        elif pattern == "scaly":
            row = np.floor(self.v / 0.20 + phase)
            x = ((self.u / 0.38 + phase + 0.5 * (row % 2)) % 1 - 0.5) * 0.38
            y = (1 - (self.v / 0.20 + phase) % 1) * 0.20
            self.pattern = np.abs(np.hypot(x, y) - 0.185) - 0.032

    def paint(self, distance: Field, colour: Colour, body: bool = False, line: float = 1.0) -> None:
        """Lay a shape of one colour on top; `line` is the strength of its outline (0: none)."""
        cover = np.clip(0.5 - distance / self.pixel, 0, 1).astype(np.float32)
        if not cover.any():
            return
        fill: Field = np.broadcast_to(np.array(colour, np.float32), self.albedo.shape)
        if body and self.pattern is not None:
            ink = np.clip(0.5 - self.pattern / self.pixel, 0, 1)[..., None]
            fill = fill + ink * (np.array(against(colour, 0.55), np.float32) - fill)
        self.albedo += cover[..., None] * (fill - self.albedo)
        self.edge *= 1 - cover
        if line:
            rim = np.clip(1.1 - np.abs(distance + 0.4 * self.pixel) / self.pixel, 0, 1)
            self.edge = np.maximum(self.edge, line * rim)
        if self.subject:
            depth = np.clip(-distance / 0.22, 0, 1)
            glow = 0.80 + 0.20 * np.sqrt(depth) + 0.12 * np.clip(self.v, -1, 1)
            self.light += cover * (glow - self.light)
            self.mask = np.maximum(self.mask, cover)
        else:
            self.light += cover * (1 - self.light)

    def ellipse(self, centre: Point, radii: Point, colour: Colour, turn: float = 0.0) -> None:
        """Paint an ellipse without pattern."""
        self.paint(shapes.ellipse(self.u, self.v, centre, radii, turn), colour)

    def eye(self, centre: Point, radius: float = 0.065) -> None:
        """Paint an eye: white, pupil; a lid where the subject sleeps."""
        self.eyes.append(centre)
        if self.asleep:
            x, y = centre
            lid = shapes.limb(self.u, self.v, (x - radius, y), (x + radius, y - 0.02), 0.025, 0.025)
            self.paint(lid, (0.06, 0.06, 0.08), line=0)
            return
        white = shapes.ellipse(self.u, self.v, centre, (radius, radius * 1.1))
        self.paint(white, (0.98, 0.98, 0.98), line=0.6)
        pupil = (centre[0] + radius * 0.3, centre[1])
        black = shapes.ellipse(self.u, self.v, pupil, (radius * 0.6, radius * 0.7))
        self.paint(black, (0.06, 0.06, 0.08), line=0)
