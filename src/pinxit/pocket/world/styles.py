"""The styles of pocket's world: render passes over the same drawing, so its structure stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.world.canvas import Canvas

Picture = NDArray[Any]
Random = np.random.Generator


def blurred(image: Picture, radius: int) -> Picture:
    """A box blur in both directions, twice; edges repeated."""
    for axis in (0, 1, 0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(image.ndim)]
        wide = np.cumsum(np.pad(image, pad, "edge"), axis=axis, dtype=np.float32)
        zero = np.zeros_like(np.take(wide, [0], axis))
        wide = np.concatenate([zero, wide], axis)
        n, k = image.shape[axis], 2 * radius + 1
        image = (np.take(wide, range(k, n + k), axis) - np.take(wide, range(n), axis)) / k
    return image


def grey(image: Picture) -> Picture:
    """Luminance, (H, W, 1)."""
    return image @ np.array([[0.30], [0.59], [0.11]], np.float32)


def step(c: Canvas) -> int:
    """One picture-independent length: a 64th of the sheet, in pixels."""
    return max(1, c.size // 64)


def photo(c: Canvas, rng: Random) -> Picture:
    """Soft light from above, a shadow under the subject, a slight vignette."""
    shade = blurred(np.roll(c.mask, 3 * step(c), 0), 3 * step(c))[..., None]
    image = c.albedo * (1 - 0.38 * shade * (1 - c.mask[..., None]))
    image = image * c.light[..., None] * (1 - 0.30 * c.edge[..., None] * c.mask[..., None])
    size = np.linspace(-1, 1, c.size, dtype=np.float32)
    far = size[:, None] ** 2 + size[None] ** 2
    return image * (1.03 - 0.10 * far)[..., None] * rng.uniform(0.94, 1.06)


def cartoon(c: Canvas, rng: Random) -> Picture:
    """Flat saturated colours, bold dark outlines."""
    mean = grey(c.albedo)
    flat = np.clip(mean + (c.albedo - mean) * 1.25, 0, 1)
    return flat * (1 - 0.95 * np.clip(c.edge * 1.3, 0, 1)[..., None])


def watercolour(c: Canvas, rng: Random) -> Picture:
    """Colour bled over the outlines, thinned with water, on white paper."""
    wash = 0.45 * c.albedo + 0.55 * blurred(c.albedo, step(c))
    pool = rng.uniform(-1, 1, (5, 5))
    line = np.linspace(0, 3.999, c.size)
    i, t = line.astype(int), line % 1
    rows = pool[i] * (1 - t)[:, None] + pool[np.minimum(i + 1, 4)] * t[:, None]
    blot = rows[:, i] * (1 - t) + rows[:, np.minimum(i + 1, 4)] * t
    thin = np.clip(0.34 + 0.16 * blot, 0.1, 0.6).astype(np.float32)[..., None]
    image = wash + (0.99 - wash) * thin
    far = np.maximum(np.abs(c.size / 2 - np.arange(c.size) - 0.5) / (c.size / 2) - 0.86, 0) / 0.14
    frame = np.clip(np.maximum(far[:, None], far[None]) * 1.4, 0, 1)[..., None]
    image = image * (1 - 0.30 * c.edge[..., None])
    return image + (0.99 - image) * frame.astype(np.float32)


def pencil(c: Canvas, rng: Random) -> Picture:
    """Graphite lines on warm paper, the colours only breathed on."""
    paper = np.array((0.97, 0.95, 0.90), np.float32)
    tint = paper * (0.62 + 0.38 * c.albedo)
    inside = paper * (0.30 + 0.70 * c.albedo)
    image = tint + c.mask[..., None] * (inside - tint)
    return image * (1 - 0.80 * np.clip(c.edge * 1.5, 0, 1)[..., None])


def pop_art(c: Canvas, rng: Random) -> Picture:
    """A few saturated colours, printed dots behind the subject, thick contours."""
    loud = np.round(np.clip((c.albedo - 0.5) * 1.4 + 0.5, 0, 1) * 4) / 4 * 0.88 + 0.12
    cell = c.size / 10.667
    y, x = np.mgrid[0 : c.size, 0 : c.size].astype(np.float32)
    gap = np.hypot((x / cell) % 1 - 0.5, ((y / cell) + 0.5 * (np.floor(x / cell) % 2)) % 1 - 0.5)
    dots = np.clip((0.30 - gap) * cell + 0.5, 0, 1)[..., None] * (1 - c.mask[..., None])
    mean = grey(loud)
    image = loud + dots * (np.where(mean > 0.5, loud * 0.72, loud * 0.72 + 0.28) - loud)
    return image * (
        1 - np.clip(np.maximum(c.edge, 1.6 * blurred(c.edge, step(c))), 0, 1)[..., None]
    )


def chalk(c: Canvas, rng: Random) -> Picture:
    """Pale lines and rubbed colour on a green-black board."""
    board = np.array((0.13, 0.20, 0.18), np.float32)
    fill = 0.22 + 0.56 * c.mask[..., None]
    image = board + fill * (c.albedo - board)
    line = 0.45 + 0.55 * np.maximum(c.albedo, 0.75)
    return image + np.clip(c.edge * 1.4, 0, 1)[..., None] * (line - image)


def sepia(c: Canvas, rng: Random) -> Picture:
    """An old brown print (held out of training)."""
    tone = grey(photo(c, rng))
    dark, light = np.array((0.22, 0.12, 0.05)), np.array((0.98, 0.90, 0.72))
    return (dark + (light - dark) * np.clip(tone * 1.1 - 0.05, 0, 1)).astype(np.float32)


def blueprint(c: Canvas, rng: Random) -> Picture:
    """White lines on blue paper (held out of training)."""
    blue = np.array((0.08, 0.24, 0.58), np.float32)
    image = blue + 0.22 * (grey(c.albedo) - 0.45) * np.array((0.8, 0.9, 1.0), np.float32)
    return image + np.clip(c.edge * 1.4, 0, 1)[..., None] * (0.95 - image)


def mosaic(c: Canvas, rng: Random) -> Picture:
    """Square tiles of one colour each with pale joints (held out of training)."""
    wide = max(2, round(c.size / 16))
    starts, tile = np.arange(0, c.size, wide), np.arange(c.size) // wide
    image = c.albedo * (c.light * (1 - 0.6 * c.edge))[..., None]
    count = np.bincount(tile)
    total = np.add.reduceat(np.add.reduceat(image, starts, 0), starts, 1)
    tone = rng.uniform(0.93, 1.07, (len(starts), len(starts)))
    tiles = total * (tone / (count[:, None] * count))[..., None]
    tiles = np.clip((tiles - 0.5) * 1.15 + 0.46, 0, 1)[tile][:, tile]
    joint = np.arange(c.size) % wide < max(1, wide // 8)
    pale = 0.30 * (joint[:, None] | joint)[..., None]
    return (tiles + pale * (0.95 - tiles)).astype(np.float32)


def woodcut(c: Canvas, rng: Random) -> Picture:
    """Black ink on cream: solid darks, hatched mid tones, bare lights (held out of training)."""
    tone = np.clip(grey(c.albedo)[..., 0] * c.light * 1.75 - 0.35, 0, 1)
    y, x = np.mgrid[0 : c.size, 0 : c.size] / (c.size / 16)
    lines = np.where(c.mask > 0.5, y, (x + y) * 0.7) + rng.uniform(0, 1)
    comb = 0.05 + 1.7 * np.abs(lines % 1 - 0.5)
    ink = np.clip((comb - np.where(c.mask > 0.5, tone, tone**0.6)) * 3 + 0.3, 0, 1)
    halo = np.clip(2.5 * blurred(c.mask, step(c)), 0, 1) * (1 - c.mask)
    line = np.clip(c.edge * (0.9 + 0.8 * c.mask), 0, 1)
    ink = np.maximum(ink * (1 - halo), line)[..., None]
    cream, black = np.array((0.96, 0.91, 0.78)), np.array((0.08, 0.07, 0.07))
    return (cream + ink * (black - cream)).astype(np.float32)


APPLY: dict[str, Callable[[Canvas, Random], Picture]] = {
    f.__name__.replace("_", " "): f
    for f in (
        photo,
        cartoon,
        watercolour,
        pencil,
        pop_art,
        chalk,
        sepia,
        blueprint,
        mosaic,
        woodcut,
    )
}
