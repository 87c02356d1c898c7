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


def mountain(c: Canvas, rng: Random) -> None:
    """Big grey-violet peaks, one side in shade, snow on top, a green foot."""
    sky(c, (0.24, 0.56, 0.94), (0.78, 0.90, 0.98), -0.2)
    tall = (0.46, *rng.uniform(0.62, 0.92, 2))
    for x, high in zip((rng.uniform(-0.1, 0.1), -0.6, 0.6), tall, strict=True):
        wide, tone = 0.5 * (high + 0.5), rng.uniform(-0.04, 0.06)
        rock: Colour = (0.56 + tone, 0.51 + tone, 0.66 + tone)
        peak = s.polygon(c.u, c.v, [(x - wide, -0.5), (x + wide, -0.5), (x, high)])
        c.paint(peak, rock, line=0.7)
        shade = x + 0.05 * np.sin(c.v * 17) - c.u
        c.paint(s.common(peak, shade), shifted(rock, -0.28), line=0)
        jag = high - 0.30 + 0.07 * np.sin((c.u - x) * 30) - c.v
        c.paint(s.common(peak, jag), (0.98, 0.98, 1.0), line=0.3)
    ground(c, (0.36, 0.62, 0.30), -0.34, 0.06, rng.uniform(0, 6))
    for x in sides(rng, 4, 0.55):
        c.ellipse((x, rng.uniform(-0.52, -0.40)), (0.10, 0.07), (0.22, 0.46, 0.24))


def street(c: Canvas, rng: Random) -> None:
    """Low coloured house fronts with gables along a street of cobblestones."""
    sky(c, (0.62, 0.80, 0.94), (0.93, 0.93, 0.88), 0.1)
    walls: tuple[Colour, ...] = ((0.93, 0.56, 0.46), (0.54, 0.74, 0.82), (0.97, 0.80, 0.42))
    first, left = int(rng.integers(3)), rng.uniform(-0.96, -0.76)
    for k in range(5):
        x, y, wall = left + 0.44 * k, rng.uniform(0.10, 0.34), walls[(first + k) % 3]
        roof = s.polygon(c.u, c.v, [(x - 0.25, y), (x + 0.25, y), (x, y + 0.36)], 0.03)
        c.paint(roof, (0.60, 0.25, 0.20), line=0.7)
        house = s.box(c.u, c.v, (x, y / 2 - 0.25), (0.21, y / 2 + 0.25))
        gable = s.polygon(c.u, c.v, [(x - 0.21, y), (x + 0.21, y), (x, y + 0.28)])
        c.paint(s.together(house, gable), wall, line=0.5)
        panes = s.box(np.abs(c.u - x), c.v, (0.105, y - 0.06), (0.05, 0.075))
        c.paint(panes, (0.30, 0.34, 0.44), line=0.3)
        c.paint(s.box(c.u, c.v, (x, -0.36), (0.075, 0.17), 0.03), shifted(wall, -0.55), line=0.3)
    ground(c, (0.40, 0.36, 0.36), -0.36)
    row, grey = np.floor(c.v / 0.14), rng.uniform(0.60, 0.68)
    stone = (c.u / 0.20 + 0.5 * (row % 2) + 0.13 * np.sin(row * 5)) % 1 * 0.20
    cobble = s.box(stone, c.v % 0.14, (0.10, 0.07), (0.086, 0.056), 0.04)
    c.paint(s.common(cobble, c.v + 0.42), (grey + 0.03, grey, grey - 0.03), line=0)


def wheat(c: Canvas, rng: Random) -> None:
    """A golden field of ears under a blue sky, a red barn far away."""
    sky(c, (0.20, 0.52, 0.93), (0.66, 0.86, 0.99), 0.0)
    x = sides(rng, 1, 0.62)[0] * 0.9
    c.paint(s.box(c.u, c.v, (x, 0.18), (0.20, 0.14)), (0.80, 0.14, 0.12), line=0.6)
    roof = [(x - 0.25, 0.30), (x + 0.25, 0.30), (x + 0.13, 0.48), (x - 0.13, 0.48)]
    c.paint(s.polygon(c.u, c.v, roof), (0.44, 0.16, 0.14), line=0.6)
    c.paint(s.box(c.u, c.v, (x, 0.14), (0.07, 0.10)), (0.98, 0.95, 0.90), line=0)
    ground(c, (0.95, 0.74, 0.22), 0.08, 0.02, rng.uniform(0, 6))
    for top, gap in ((-0.02, 0.15), (-0.24, 0.20), (-0.50, 0.25), (-0.78, 0.30)):
        place = c.u / gap + rng.uniform(0, 6)
        across, up = (place % 1 - 0.5) * gap, c.v - top - 0.05 * np.sin(np.floor(place) * 2.4)
        stalk = s.box(across, up, (0, -0.16), (0.018, 0.16))
        c.paint(stalk, (0.74, 0.52, 0.12), line=0)
        ear = s.ellipse(across, up, (0, 0), (gap * 0.22, gap * 0.56))
        c.paint(ear, (0.99, 0.86, 0.40), line=0.5)


def autumn(c: Canvas, rng: Random) -> None:
    """Round trees in red and orange, fallen leaves on brown earth."""
    sky(c, (0.80, 0.86, 0.88), (0.99, 0.90, 0.74), -0.1)
    leaves: tuple[Colour, ...] = ((0.97, 0.52, 0.10), (0.86, 0.22, 0.12), (0.98, 0.74, 0.18))
    ground(c, (0.50, 0.33, 0.20), -0.34, 0.04, rng.uniform(0, 6))
    for i, x in enumerate((rng.uniform(-0.3, 0.3), *sides(rng, 2, 0.66))):
        y, r = (0.40, 0.36) if i else (0.34, 0.26)
        trunk = s.limb(c.u, c.v, (x, -0.46), (x, y), 0.075, 0.04)
        c.paint(trunk, (0.36, 0.22, 0.14), line=0.5)
        puffs = ((x - r * 0.5, y), (x + r * 0.5, y), (x, y + r * 0.6))
        crown = s.together(*[s.ellipse(c.u, c.v, p, (r * 0.8, r * 0.8)) for p in puffs])
        c.paint(crown, leaves[i % 2], line=0.6)
        light = s.ellipse(c.u, c.v, (x - r * 0.3, y + r * 0.6), (r * 0.5, r * 0.4))
        c.paint(light, shifted(leaves[i % 2], 0.25), line=0)
    for i, (x, y) in enumerate(rng.uniform((-0.97, -0.95), (0.97, -0.42), (18, 2))):
        c.paint(s.ellipse(c.u, c.v, (x, y), (0.065, 0.04), i * 0.9), leaves[i % 3], line=0.3)


def lake(c: Canvas, rng: Random) -> None:
    """Still water with ripples and lily pads, reeds at the sides, hills behind."""
    sky(c, (0.66, 0.82, 0.94), (0.98, 0.92, 0.86), 0.1)
    ground(c, (0.46, 0.64, 0.62), 0.34, 0.12, rng.uniform(0, 6))
    ground(c, (0.24, 0.48, 0.40), 0.16, 0.07, rng.uniform(0, 6))
    ground(c, (0.22, 0.50, 0.70), 0.02)
    row = np.floor(c.v / 0.16)
    dash = np.abs((c.u / 0.7 + 0.37 * row + rng.uniform(0, 1)) % 1 - 0.5) * 0.7 - 0.20
    wave = np.abs((c.v / 0.16) % 1 - 0.5 + 0.10 * np.sin(c.u * 14)) * 0.16 - 0.016
    c.paint(np.maximum(np.maximum(dash, wave), c.v + 0.04), (0.62, 0.84, 0.93), line=0)
    for x, y in zip(sides(rng, 4, 0.40), (-0.84, -0.80, -0.46, -0.42), strict=True):
        pad = s.ellipse(c.u, c.v, (x, y), (0.17, 0.085))
        notch = s.polygon(c.u, c.v, [(x, y), (x + 0.20, y + 0.02), (x + 0.14, y + 0.14)])
        c.paint(np.maximum(pad, -notch), (0.36, 0.70, 0.26), line=0.6)
        if y < -0.82:
            c.ellipse((x - 0.03, y + 0.06), (0.07, 0.06), (0.99, 0.66, 0.80))
    for x in sides(rng, 6, 0.80):
        top = rng.uniform(0.10, 0.46)
        c.paint(s.limb(c.u, c.v, (x, -0.6), (x, top), 0.028, 0.02), (0.30, 0.50, 0.16), line=0.3)
        head = s.limb(c.u, c.v, (x, top), (x, top + 0.20), 0.05, 0.05)
        c.paint(head, (0.42, 0.23, 0.10), line=0.5)


def jungle(c: Canvas, rng: Random) -> None:
    """Big bright and dark leaves from all sides, lianas, teal light."""
    sky(c, (0.72, 0.97, 0.84), (0.16, 0.60, 0.56), -0.7)
    for x in sides(rng, 3, 0.15):
        hang = c.u - x - 0.05 * np.sin(c.v * 4 + rng.uniform(0, 6))
        c.paint(np.abs(hang) - 0.022, (0.20, 0.36, 0.16), line=0.4)
    greens: tuple[Colour, ...] = ((0.04, 0.32, 0.24), (0.10, 0.52, 0.24), (0.52, 0.82, 0.20))
    for i, angle in enumerate(np.arange(18) * np.pi / 3 + rng.uniform(-0.15, 0.15, 18)):
        a, green, far = angle + i // 6 * 0.35, greens[i // 6], 1.10 + 0.13 * (i // 6)
        x, y, turn = far * np.cos(a), far * np.sin(a), a + rng.uniform(-0.4, 0.4)
        c.paint(s.ellipse(c.u, c.v, (x, y), (0.50, 0.17), turn), green, line=0.7)
        dx, dy = 0.4 * np.cos(turn), 0.4 * np.sin(turn)
        rib = s.limb(c.u, c.v, (x - dx, y - dy), (x + dx, y + dy), 0.012, 0.025)
        c.paint(rib, shifted(green, 0.4), line=0)


def plain(c: Canvas, rng: Random) -> None:
    """An empty, nearly white ground."""
    c.albedo[:] = np.array(shifted((0.93, 0.93, 0.92), rng.uniform(0, 0.8)), np.float32)


DRAW: dict[str, Callable[[Canvas, Random], None]] = {
    f.__name__: f
    for f in (
        *(beach, forest, snow, city, desert, night, room, meadow),
        *(mountain, street, wheat, autumn, lake, jungle),
        plain,
    )
}
