"""The renderer of a style from its numbers: a pass over a drawing, as all styles are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.world.canvas import Canvas
from pinxit.pocket.world.shapes import Field
from pinxit.pocket.world.style_parameters import StyleParameters
from pinxit.pocket.world.styles import blurred, grey, step


def style_pass(p: StyleParameters, c: Canvas, rng: np.random.Generator) -> Field:
    """Render a drawing in a style: (H, W, 3) about 0..1; the same pixels for the same `rng`."""
    paper, ink = np.array(p.paper, np.float32), np.array(p.ink, np.float32)
    on_subject = c.mask[..., None]
    image = _toned(p, _coloured(p, c))
    tone = np.clip(grey(image), 0, 1)
    image = image + p.duotone * (ink + (paper - ink) * _rising(p, tone) - image)
    image = paper + (p.ground + (p.subject - p.ground) * on_subject) * (image - paper)
    marks = np.maximum(_hatching(p, c, tone[..., 0], rng), _dots(p, c))[..., None]
    image = image + marks * (ink - image)
    if p.tiles:
        image = image + p.tiles * (_tiles(c, image, paper, rng) - image)
    image = image + _lines(p, c)[..., None] * (ink - image)
    if p.grain:
        image = image + 0.07 * p.grain * rng.standard_normal((c.size, c.size, 1))
    return (image + p.frame * _frame(c)[..., None] * (paper - image)).astype(np.float32)


def _coloured(p: StyleParameters, c: Canvas) -> Field:
    """The drawing's colours, washed out and lit."""
    colours = c.albedo
    if p.wash:
        colours = colours + p.wash * (blurred(colours, step(c)) - colours)
    fallen = blurred(np.roll(c.mask, 3 * step(c), 0), 3 * step(c))
    shade = (1 - 0.38 * fallen * (1 - c.mask)) * c.light
    return colours * (1 + p.light * (shade - 1))[..., None]


def _toned(p: StyleParameters, image: Field) -> Field:
    """Saturation, the tone curve, posterisation."""
    mean = grey(image)
    image = mean + (image - mean) * (2 * p.saturation)
    image = (image - 0.5) * (0.4 + 1.2 * p.contrast) + 0.5 + 0.6 * (p.brightness - 0.5)
    image = np.clip(image, 0, 1)
    if p.levels:
        few = np.round(image * 3) / 3
        image = image + p.levels * (few - image)
    return image


def _rising(p: StyleParameters, tone: Field) -> Field:
    """Tone as the share of the light end of a duotone, whichever of both colours is lighter."""
    lighter = sum(p.paper) >= sum(p.ink)
    return tone if lighter else 1 - tone


def _hatching(p: StyleParameters, c: Canvas, tone: Field, rng: np.random.Generator) -> NDArray[Any]:
    """Lines (H, W) that are wider where the drawing is darker."""
    if not p.hatching:
        return np.zeros((c.size, c.size), np.float32)
    y, x = np.mgrid[0 : c.size, 0 : c.size] / (c.size / (22 - 12 * p.spacing))
    lines = np.where(c.mask > 0.5, y, (x + y) * 0.7) + rng.uniform(0, 1)
    comb = 0.05 + 1.7 * np.abs(lines % 1 - 0.5)
    return p.hatching * np.clip((comb - tone) * 3 + 0.3, 0, 1)


def _dots(p: StyleParameters, c: Canvas) -> NDArray[Any]:
    """Printed dots (H, W) behind the subject."""
    if not p.dots:
        return np.zeros((c.size, c.size), np.float32)
    cell = c.size / (14 - 7 * p.spacing)
    y, x = np.mgrid[0 : c.size, 0 : c.size].astype(np.float32)
    gap = np.hypot((x / cell) % 1 - 0.5, ((y / cell) + 0.5 * (np.floor(x / cell) % 2)) % 1 - 0.5)
    return 0.6 * p.dots * np.clip((0.30 - gap) * cell + 0.5, 0, 1) * (1 - c.mask)


def _tiles(
    c: Canvas, image: Field, joint_colour: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[Any]:
    """Square tiles of one colour each, no two alike, with joints."""
    wide = max(2, round(c.size / 16))
    starts, tile = np.arange(0, c.size, wide), np.arange(c.size) // wide
    count = np.bincount(tile)
    total = np.add.reduceat(np.add.reduceat(image, starts, 0), starts, 1)
    tone = rng.uniform(0.93, 1.07, (len(starts), len(starts)))
    tiles = (total * (tone / (count[:, None] * count))[..., None])[tile][:, tile]
    joint = np.arange(c.size) % wide < max(1, wide // 8)
    return tiles + 0.30 * (joint[:, None] | joint)[..., None] * (joint_colour - tiles)


def _lines(p: StyleParameters, c: Canvas) -> NDArray[Any]:
    """Outlines (H, W), wider with their weight."""
    if not p.line:
        return np.zeros((c.size, c.size), np.float32)
    edge = np.clip(1.35 * c.edge, 0, 1)
    wide = np.clip(1.8 * blurred(c.edge, step(c)), 0, 1)
    return p.line * (edge + p.line_weight * (np.maximum(edge, wide) - edge))


def _frame(c: Canvas) -> NDArray[Any]:
    """How near each pixel is to the border, (H, W): 0 inside, 1 at the border."""
    far = np.maximum(np.abs(c.size / 2 - np.arange(c.size) - 0.5) / (c.size / 2) - 0.82, 0) / 0.18
    return np.clip(np.maximum(far[:, None], far[None]) * 1.4, 0, 1)
