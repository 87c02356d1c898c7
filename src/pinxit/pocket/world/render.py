"""From a scene to its picture and the truth about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.world import backgrounds, living, made, styles
from pinxit.pocket.world.attributes import (
    CLASSES,
    COLOURS,
    FACINGS,
    PATTERNS,
    PLACES,
    STYLES,
    Scene,
    Subject,
    draw_subject,
    held_out,
)
from pinxit.pocket.world.canvas import Canvas, Colour

DRAW: dict[str, Callable[[Canvas, Subject, Colour], living.Keypoints]] = {
    noun: getattr(living if hasattr(living, noun) else made, noun) for noun in CLASSES
}


@dataclass(frozen=True)
class Rendered:
    """A picture with its ground truth.

    image (H, W, 3) uint8; mask (H, W) uint8, 255 on the subject; keypoints (4, 2) float32:
    front, back, top and base of the subject in fractions of the picture, x to the right, y down.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    keypoints: NDArray[np.float32]


def render(scene: Scene, size: int = 64) -> Rendered:
    """Draw a scene at `size` pixels; the same scene gives the same pixels."""
    return render_styles(scene, (scene.style,), size)[0]


def render_styles(scene: Scene, chosen: tuple[str, ...], size: int = 64) -> list[Rendered]:
    """Draw a scene once and pass it through several styles: equal structure, other looks."""
    rng = np.random.default_rng(scene.seed)
    c = Canvas(size)
    backgrounds.DRAW[scene.background](c, rng)
    c.light[:] = 1
    x, y = scene.x, scene.y
    scale, tilt = 0.86 * scene.scale, float(rng.uniform(-0.05, 0.05))
    c.enter_subject(x, y, scale, scene.facing, tilt)
    c.wear(scene.pattern, float(rng.uniform(0, 1)))
    colour = scene.subject.body if scene.colour is None else _shade(scene.colour, rng)
    points = np.array(DRAW[scene.subject.class_noun](c, scene.subject, colour), np.float32)
    points[:, 0] *= 1 if scene.facing == "right" else -1
    keypoints = np.stack(
        [(x + scale * points[:, 0] + 1) / 2, (1 - y - scale * points[:, 1]) / 2], 1
    )
    mask = np.round(np.clip(c.mask, 0, 1) * 255).astype(np.uint8)
    pictures = []
    for style in chosen:
        image = styles.APPLY[style](c, np.random.default_rng(scene.seed + 1))
        pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
        pictures.append(Rendered(pixels, mask, keypoints.astype(np.float32)))
    return pictures


def _shade(colour: str, rng: np.random.Generator) -> Colour:
    r, g, b = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.03, 0.03, 3), 0, 1).tolist()
    return (r, g, b)


def placed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its subject somewhere near the middle, large and never cut off badly."""
    return replace(
        scene,
        x=float(rng.uniform(-0.08, 0.08)),
        y=float(rng.uniform(-0.10, 0.02)),
        scale=float(rng.uniform(0.86, 1.12)),
        seed=int(rng.integers(2**31)),
    )


def draw_scene(
    rng: np.random.Generator,
    named: tuple[Subject, ...] = (),
    names: tuple[str, ...] = (),
    plain: float = 0.3,
    style: str | None = None,
) -> Scene:
    """Draw a training scene: never a held-out combination, style or subject.

    A quarter of the scenes show an unnamed colour, of which most are known individuals.
    """
    while True:
        noun, look = str(rng.choice(CLASSES)), style or str(rng.choice(STYLES))
        where = PLACES[-1] if rng.random() < plain else str(rng.choice(PLACES[:-1]))
        colour: str | None = str(rng.choice(tuple(COLOURS)))
        pattern = "plain" if rng.random() < 0.55 else str(rng.choice(PATTERNS[1:]))
        who, name = draw_subject(rng, noun), None
        if rng.random() < 0.3:
            colour = None
            if named and rng.random() < 0.75:
                i = int(rng.integers(len(named)))
                who, name, pattern = named[i], names[i], "plain"
        if not held_out(noun, colour, where, look):
            facing = str(rng.choice(FACINGS))
            return placed(Scene(who, colour, pattern, where, look, facing, name=name), rng)


def portrait(
    who: Subject, rng: np.random.Generator, background: str | None = None, style: str = "photo"
) -> Scene:
    """A scene of one individual in its own colours, as a person would photograph it."""
    where = background or str(rng.choice(PLACES[:-1]))
    facing = str(rng.choice(FACINGS))
    return placed(Scene(who, None, "plain", where, style, facing), rng)
