"""The places of pocket's world, drawn behind the subject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pinxit.pocket.world import shapes as s
from pinxit.pocket.world.canvas import Canvas, Colour, shifted

Random = np.random.Generator


def sky(c: Canvas, top: Colour, low: Colour, horizon: float) -> None:
    """Fill the sheet with a gradient that reaches `low` at the horizon."""
    t = np.clip((c.v - horizon) / (1 - horizon), 0, 1)[..., None]
    c.albedo[:] = np.array(low, np.float32) + t * (np.array(top) - np.array(low)).astype(np.float32)


def ground(c: Canvas, colour: Colour, horizon: float, waves: float = 0.0, phase: float = 0) -> None:
    """Fill everything below a (wavy) horizon, darker towards the viewer."""
    line = horizon + waves * np.sin(c.u * 3.1 + phase)
    near = np.clip((line - c.v) / 1.4, 0, 1)[..., None]
    before = c.albedo.copy()
    c.paint(c.v - line, colour, line=0.35)
    tone = 1 - 0.22 * near
    changed = np.abs(c.albedo - before).sum(-1, keepdims=True) > 0.01
    c.albedo *= np.where(changed, tone, 1).astype(np.float32)


def sides(rng: Random, count: int, inner: float = 0.45) -> list[float]:
    """Places left and right where scenery is not hidden behind the subject."""
    signs = np.where(np.arange(count) % 2 == 0, -1, 1) * (1 if rng.random() < 0.5 else -1)
    return [float(g * rng.uniform(inner, 0.95)) for g in signs]


def beach(c: Canvas, rng: Random) -> None:
    """Sky, sun, a band of sea, sand, a palm."""
    sky(c, (0.42, 0.74, 0.97), (0.86, 0.95, 1.0), 0.05)
    c.ellipse((rng.choice([-0.65, 0.65]), 0.66), (0.17, 0.17), (1.0, 0.90, 0.42))
    ground(c, (0.10, 0.58, 0.78), 0.06)
    ground(c, (0.96, 0.84, 0.58), -0.30, 0.03, rng.uniform(0, 6))
    x = sides(rng, 1, 0.7)[0]
    c.paint(s.limb(c.u, c.v, (x, -0.5), (x * 0.86, 0.46), 0.06, 0.04), (0.56, 0.40, 0.24), line=0.5)
    for a in np.linspace(-0.5, 3.6, 6):
        end = (x * 0.86 + 0.36 * np.cos(a), 0.46 + 0.24 * np.sin(a))
        leaf = s.limb(c.u, c.v, (x * 0.86, 0.46), end, 0.07, 0.02)
        c.paint(leaf, (0.16, 0.56, 0.28), line=0.4)


def forest(c: Canvas, rng: Random) -> None:
    """Rows of dark green firs on moss."""
    sky(c, (0.56, 0.74, 0.62), (0.74, 0.86, 0.70), -0.1)
    ground(c, (0.22, 0.40, 0.20), -0.34, 0.03, rng.uniform(0, 6))
    for x in np.linspace(-0.95, 0.95, 7) + rng.uniform(-0.08, 0.08, 7):
        fir(c, float(x), -0.22, 0.95, (0.16, 0.42, 0.27))
    for x in sides(rng, 2, 0.66):
        fir(c, x, -0.46, 1.35, (0.08, 0.30, 0.17))


def fir(c: Canvas, x: float, base: float, high: float, colour: Colour) -> None:
    """One fir: trunk and three tiers."""
    trunk = s.box(c.u, c.v, (x, base), (0.04, 0.1))
    c.paint(trunk, (0.34, 0.22, 0.13), line=0.3)
    for k in range(3):
        y, w = base + 0.08 + high * 0.24 * k, 0.24 - 0.055 * k
        tier = [(x - w, y), (x + w, y), (x, y + high * 0.42)]
        c.paint(s.polygon(c.u, c.v, tier, 0.01), colour, line=0.5)


def snow(c: Canvas, rng: Random) -> None:
    """White ground, pale blue mountains, falling flakes."""
    sky(c, (0.62, 0.76, 0.92), (0.86, 0.92, 0.98), -0.1)
    for x, high in zip((-0.6, 0.1, 0.7), rng.uniform(0.35, 0.75, 3), strict=True):
        c.paint(
            s.polygon(c.u, c.v, [(x - 0.7, -0.3), (x + 0.7, -0.3), (x, high)]),
            (0.58, 0.68, 0.82),
            line=0.5,
        )
        cap = [(x - 0.22, high - 0.26), (x + 0.22, high - 0.26), (x, high)]
        c.paint(s.polygon(c.u, c.v, cap), (0.97, 0.98, 1.0), line=0.2)
    ground(c, (0.95, 0.97, 1.0), -0.32, 0.05, rng.uniform(0, 6))
    for x, y in rng.uniform(-0.95, 0.95, (10, 2)):
        c.paint(s.ellipse(c.u, c.v, (x, y), (0.04, 0.04)), (1.0, 1.0, 1.0), line=0.2)


def city(c: Canvas, rng: Random) -> None:
    """Towers with lit windows above a grey street."""
    sky(c, (0.66, 0.72, 0.80), (0.90, 0.86, 0.80), -0.2)
    x = -1.05
    while x < 1.05:
        wide, high = rng.uniform(0.26, 0.38), rng.uniform(0.25, 0.85)
        grey = rng.uniform(0.36, 0.56)
        wall: Colour = (grey, grey * 1.02, grey * 1.12)
        c.paint(s.box(c.u, c.v, (x, high - 1), (wide / 2, 1.0)), wall, line=0.7)
        fx = np.abs(((c.u - x) / 0.13) % 1 - 0.5) - 0.24
        fy = np.abs((c.v / 0.20) % 1 - 0.5) - 0.24
        inside = s.box(c.u, c.v, (x, high - 1.06), (wide / 2 - 0.04, 1.0))
        windows = np.maximum(np.maximum(fx * 0.13, fy * 0.2), inside)
        c.paint(windows, (0.99, 0.90, 0.56), line=0)
        x += wide
    ground(c, (0.36, 0.37, 0.40), -0.42)
    dash = np.maximum(np.abs((c.u / 0.5) % 1 - 0.5) * 0.5 - 0.12, np.abs(c.v + 0.80) - 0.035)
    c.paint(dash, (0.94, 0.92, 0.84), line=0)


def desert(c: Canvas, rng: Random) -> None:
    """Orange dunes under a hot sky, cacti."""
    sky(c, (0.98, 0.72, 0.42), (1.0, 0.90, 0.66), -0.1)
    ground(c, (0.88, 0.58, 0.30), -0.06, 0.12, rng.uniform(0, 6))
    ground(c, (0.93, 0.66, 0.36), -0.36, 0.06, rng.uniform(0, 6))
    for x in sides(rng, 2, 0.66):
        green: Colour = (0.28, 0.52, 0.26)
        high = rng.uniform(0.15, 0.4)
        trunk = s.limb(c.u, c.v, (x, -0.5), (x, high), 0.08, 0.08)
        low = s.limb(c.u, c.v, (x, -0.12), (x + 0.20, -0.06), 0.05, 0.05)
        arm = s.limb(c.u, c.v, (x + 0.20, -0.06), (x + 0.20, 0.14), 0.05, 0.05)
        c.paint(s.together(trunk, low, arm), green, line=0.6)


def night(c: Canvas, rng: Random) -> None:
    """Dark sky, moon and stars over dark hills."""
    sky(c, (0.05, 0.06, 0.20), (0.16, 0.19, 0.42), -0.3)
    for x, y in np.stack([rng.uniform(-0.95, 0.95, 12), rng.uniform(0.0, 0.95, 12)], 1):
        c.paint(s.ellipse(c.u, c.v, (x, y), (0.035, 0.035)), (1.0, 0.98, 0.82), line=0)
    x = float(rng.choice([-0.66, 0.66]))
    moon = s.ellipse(c.u, c.v, (x, 0.64), (0.19, 0.19))
    bite = s.ellipse(c.u, c.v, (x + 0.09, 0.69), (0.16, 0.16))
    c.paint(np.maximum(moon, -bite), (0.99, 0.95, 0.74), line=0)
    ground(c, (0.10, 0.16, 0.26), -0.22, 0.07, rng.uniform(0, 6))
    ground(c, (0.07, 0.11, 0.18), -0.46, 0.04, rng.uniform(0, 6))


def room(c: Canvas, rng: Random) -> None:
    """A papered wall, a window or a picture, boards on the floor."""
    c.albedo[:] = np.array((0.90, 0.82, 0.72), np.float32)
    stripe = np.abs((c.u / 0.36) % 1 - 0.5) * 0.36 - 0.05
    c.paint(stripe, (0.85, 0.74, 0.63), line=0)
    x = float(rng.choice([-0.62, 0.62]))
    c.paint(s.box(c.u, c.v, (x, 0.46), (0.27, 0.32)), (0.99, 0.98, 0.95), line=0.8)
    c.paint(s.box(c.u, c.v, (x, 0.46), (0.21, 0.26)), (0.58, 0.80, 0.94), line=0.5)
    for centre, half in (((x, 0.46), (0.025, 0.26)), ((x, 0.46), (0.21, 0.025))):
        c.paint(s.box(c.u, c.v, centre, half), (0.99, 0.98, 0.95), line=0)
    ground(c, (0.64, 0.42, 0.25), -0.42)
    c.paint(np.abs(c.v + 0.40) - 0.035, (0.98, 0.96, 0.92), line=0.4)
    boards = np.maximum(np.abs(((c.u * 1.0) / 0.34) % 1 - 0.5) * 0.34 - 0.012, c.v + 0.46)
    c.paint(boards, (0.50, 0.32, 0.18), line=0)


def meadow(c: Canvas, rng: Random) -> None:
    """Light green hills, clouds, flowers."""
    sky(c, (0.46, 0.76, 0.98), (0.86, 0.95, 1.0), 0.0)
    for x in sides(rng, 2, 0.35):
        y = rng.uniform(0.55, 0.85)
        puffs = [s.ellipse(c.u, c.v, (x + d, y), (0.16, 0.10)) for d in (-0.14, 0.0, 0.14)]
        c.paint(s.together(*puffs), (1.0, 1.0, 1.0), line=0.3)
    ground(c, (0.50, 0.78, 0.34), 0.02, 0.09, rng.uniform(0, 6))
    ground(c, (0.58, 0.84, 0.36), -0.32, 0.05, rng.uniform(0, 6))
    petals: tuple[Colour, ...] = ((0.98, 0.42, 0.55), (1.0, 0.95, 0.4), (1.0, 1.0, 1.0))
    for i, (x, y) in enumerate(np.stack([rng.uniform(-1, 1, 9), rng.uniform(-0.95, -0.4, 9)], 1)):
        c.paint(s.ellipse(c.u, c.v, (x, y), (0.06, 0.055)), petals[i % 3], line=0.4)


def plain(c: Canvas, rng: Random) -> None:
    """An empty, nearly white ground."""
    c.albedo[:] = np.array(shifted((0.93, 0.93, 0.92), rng.uniform(0, 0.8)), np.float32)


DRAW: dict[str, Callable[[Canvas, Random], None]] = {
    f.__name__: f for f in (beach, forest, snow, city, desert, night, room, meadow, plain)
}
