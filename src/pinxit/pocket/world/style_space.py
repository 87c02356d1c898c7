"""The space of styles: its named styles, those without a name, those nearest to the ten."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.world.attributes import HELD_OUT_STYLES
from pinxit.pocket.world.canvas import Canvas
from pinxit.pocket.world.style_names import STYLE_NAMES
from pinxit.pocket.world.style_parameters import StyleParameters, style_distance
from pinxit.pocket.world.style_pass import style_pass
from pinxit.pocket.world.styles import APPLY

DRAWN = "drawn"  # styles without a name are called "drawn 0", "drawn 1" and so on, without end
HELD_OUT_DRAWN = tuple(f"{DRAWN} {number}" for number in range(8))
_NAMED_SEED, _DRAWN_SEED = 7_011, 7_012
_LIKE_OTHERS = 0.13  # a style is drawn again if it is this near to one that is held out


# What comes nearest to each style that has a pass of its own; tests say how near.
NEAREST: dict[str, StyleParameters] = {
    "photo": StyleParameters((1, 1, 1), (0, 0, 0), light=1.0, line=0.1),
    "cartoon": StyleParameters((1, 1, 1), (0, 0, 0), saturation=0.62, line=0.95),
    "watercolour": StyleParameters(
        (0.99, 0.99, 0.99), (0, 0, 0), wash=0.55, ground=0.66, subject=0.66, line=0.25, frame=1.0
    ),
    "pencil": StyleParameters(
        (0.97, 0.95, 0.90), (0.19, 0.19, 0.18), ground=0.38, subject=0.70, line=0.8
    ),
    "pop art": StyleParameters(
        (1, 1, 1), (0, 0, 0), contrast=0.8, levels=0.8, line=1.0, line_weight=1.0, dots=0.5,
        spacing=0.48, ground=0.88, subject=0.88,
    ),
    "chalk": StyleParameters(
        (0.13, 0.20, 0.18), (0.88, 0.88, 0.86), ground=0.22, subject=0.78, line=0.9
    ),
    "sepia": StyleParameters(
        (0.98, 0.90, 0.72), (0.22, 0.12, 0.05), duotone=1.0, light=1.0, contrast=0.58, line=0.1
    ),
    "blueprint": StyleParameters(
        (0.0, 0.18, 0.62), (0.95, 0.95, 0.95), saturation=0.0, ground=0.22, subject=0.22, line=1.0
    ),
    "mosaic": StyleParameters(
        (0.95, 0.95, 0.95), (0, 0, 0), contrast=0.62, brightness=0.46, light=1.0, tiles=1.0
    ),
    "woodcut": StyleParameters(
        (0.96, 0.91, 0.78), (0.08, 0.07, 0.07), ground=0.0, subject=0.0, hatching=1.0, line=1.0,
        light=1.0, spacing=0.5, contrast=1.0, brightness=0.60,
    ),
}  # fmt: skip


@cache
def named_styles() -> dict[str, StyleParameters]:
    """The styles with a proper noun, by name.

    None of them is near to a held-out style: those are not in the training of pocket.
    """
    held_out = [NEAREST[style] for style in HELD_OUT_STYLES]
    held_out += [style_parameters(style) for style in HELD_OUT_DRAWN]
    rng = np.random.default_rng(_NAMED_SEED)
    styles: list[StyleParameters] = []
    while len(styles) < len(STYLE_NAMES):
        style = StyleParameters.draw(rng)
        if min(style_distance(style, other) for other in held_out) > _LIKE_OTHERS:
            styles.append(style)
    return dict(zip(STYLE_NAMES, styles, strict=True))


@cache
def style_parameters(style: str) -> StyleParameters:
    """The numbers of a style: a named one, one without a name ("drawn 3"), or the nearest.

    KeyError for a style that does not exist.
    """
    if style in NEAREST:
        return NEAREST[style]
    kind, _, number = style.partition(" ")
    if kind == DRAWN and number.isdigit():
        return StyleParameters.draw(np.random.default_rng((_DRAWN_SEED, int(number))))
    return named_styles()[style]


def render_style(style: str, c: Canvas, rng: np.random.Generator) -> NDArray[Any]:
    """Render a drawing in a style by its own pass, or else by its numbers: (H, W, 3) about 0..1."""
    if style in APPLY:
        return APPLY[style](c, rng)
    return style_pass(style_parameters(style), c, rng)
