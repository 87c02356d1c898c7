"""From a scene to its picture and the truth about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.world import backgrounds, living, made, worn
from pinxit.pocket.world.attributes import (
    CLASSES,
    COLOURS,
    FACINGS,
    LIVING,
    PATTERNS,
    PLACES,
    POSES,
    RELATIONS,
    STYLES,
    WORN,
    Other,
    Scene,
    Subject,
    draw_subject,
    held_out,
    held_out_pose,
)
from pinxit.pocket.world.canvas import Canvas, Colour, against
from pinxit.pocket.world.shapes import ellipse
from pinxit.pocket.world.style_space import render_style

DRAW: dict[str, Callable[[Canvas, Subject, Colour], living.Keypoints]] = {
    noun: getattr(living if hasattr(living, noun) else made, noun) for noun in CLASSES
}

# Of each pose: the line it is squeezed towards, how much at the middle, how much more towards the
# front, and by how many radians the front is turned up.
POSE: dict[str, tuple[float, float, float, float]] = {
    "standing": (-0.84, 1.0, 0.0, 0.0),
    "sitting": (-0.84, 0.90, 0.36, 0.0),
    "sleeping": (-0.84, 0.58, 0.0, 0.0),
    "jumping": (-0.84, 1.0, 0.0, 0.50),
    "upside down": (-0.05, -1.0, 0.0, 0.0),
}


@dataclass(frozen=True)
class Rendered:
    """An image with its ground truth.

    image (H, W, 3) uint8; mask (H, W) uint8, 255 on the subject; keypoints (4, 2) float32:
    front, back, top and base of the subject in fractions of the image, x to the right, y down.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    keypoints: NDArray[np.float32]


def render(scene: Scene, size: int = 64) -> Rendered:
    """Draw a scene at `size` pixels; the same scene gives the same pixels."""
    return render_styles(scene, (scene.style,), size)[0]


def render_styles(scene: Scene, chosen: tuple[str, ...], size: int = 64) -> list[Rendered]:
    """Draw a scene once and render it in several styles, so that only the style differs."""
    rng = np.random.default_rng(scene.seed)
    c = Canvas(size)
    backgrounds.DRAW[scene.background](c, rng)
    c.light[:] = 1
    tilt, phase = float(rng.uniform(-0.05, 0.05)), float(rng.uniform(0, 1))
    colour = scene.subject.body if scene.colour is None else shade(scene.colour, rng)
    more = np.random.default_rng(scene.seed + 2)
    if scene.rug is not None:
        _lay(c, scene, shade(scene.rug, more))
    others = _draw_other(c, scene, more)
    x, y, scale = scene.x, scene.y, 0.86 * scene.scale
    c.enter_subject(x, y, scale, scene.facing, tilt + turned(scene))
    c.pose(*POSE[scene.pose][:3])
    c.wear(scene.pattern, phase)
    c.asleep = scene.pose == "sleeping"
    points = posed(DRAW[scene.subject.class_noun](c, scene.subject, colour), scene)
    if scene.worn is not None:
        kind, colour_of_it = scene.worn
        worn.DRAW[kind](c, shade(colour_of_it, more))
    keypoints = np.stack(
        [(x + scale * points[:, 0] + 1) / 2, (1 - y - scale * points[:, 1]) / 2], 1
    )
    mask = np.round(np.clip(c.mask, 0, 1) * 255).astype(np.uint8)
    c.mask = np.maximum(c.mask, others)
    pictures = []
    for style in chosen:
        image = render_style(style, c, np.random.default_rng(scene.seed + 1))
        pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
        pictures.append(Rendered(pixels, mask, keypoints.astype(np.float32)))
    return pictures


def turned(scene: Scene) -> float:
    """By how much a pose turns the subject, in radians, its front upwards."""
    turn = POSE[scene.pose][3]
    return turn if scene.facing == "right" else -turn


def posed(points: living.Keypoints, scene: Scene) -> NDArray[np.float32]:
    """Key points (4, 2) of a subject's own frame where its pose and facing put them."""
    ground, low, slope, _ = POSE[scene.pose]
    at = np.array(points, np.float32)
    at[:, 1] = ground + (at[:, 1] - ground) * (low + slope * at[:, 0].clip(-1, 1))
    at[:, 0] *= 1 if scene.facing == "right" else -1
    c, s = np.cos(turned(scene)), np.sin(turned(scene))
    return at @ np.array([[c, s], [-s, c]], np.float32)


def _lay(c: Canvas, scene: Scene, colour: Colour) -> None:
    """An oval rug under the subject."""
    centre, wide = (scene.x, scene.y - 0.72 * scene.scale), 0.84 * scene.scale
    for inner, tone in ((0.0, 0.0), (0.14, 0.3)):
        edge = ellipse(c.u, c.v, centre, (wide - inner, 0.24 - 0.45 * inner))
        c.paint(edge, against(colour, tone), line=0.7)
    c.paint(ellipse(c.u, c.v, centre, (wide - 0.22, 0.14)), colour, line=0)


def _draw_other(c: Canvas, scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw the second thing, if there is one; returns where it is (H, W)."""
    other = scene.other
    if other is not None:
        facing = str(rng.choice(FACINGS))
        c.enter_subject(*other_place(scene), facing, float(rng.uniform(-0.05, 0.05)))
        DRAW[other.subject.class_noun](c, other.subject, shade(other.colour, rng))
    drawn, c.mask = c.mask, np.zeros_like(c.mask)
    return drawn


def other_place(scene: Scene) -> tuple[float, float, float]:
    """Where the second thing is, and how large: x, y, scale."""
    assert scene.other is not None
    side = 1 if scene.x < 0 else -1
    if scene.other.relation == "on":
        return scene.x, -0.46, 0.53
    if scene.other.relation == "before":
        return scene.x + side * 0.62, scene.y + 0.30, 0.66
    return scene.x + side * 0.96, scene.y, 0.86 * scene.scale


def placed_by_relation(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its subject where its relation to the second thing puts it."""
    assert scene.other is not None
    relation = scene.other.relation
    x, y, scale = {
        "left": (-0.48, -0.12, 0.62),
        "right": (0.48, -0.12, 0.62),
        "on": (0.0, 0.0, 0.58),
        "before": (float(rng.choice([-0.24, 0.24])), -0.28, 0.66),
    }[relation]
    if relation == "on":
        top = _keypoints(scene.other.subject)[2]
        base = float(posed(_keypoints(scene.subject), scene)[:, 1].min())
        y = -0.46 + 0.53 * (top[1] - 0.06) - 0.86 * scale * base
    x, y = x + float(rng.uniform(-0.03, 0.03)), y + float(rng.uniform(-0.04, 0.04))
    scale *= float(rng.uniform(0.94, 1.06)) if relation != "on" else 1.0
    return replace(scene, x=x, y=y, scale=scale, seed=int(rng.integers(2**31)))


def _keypoints(who: Subject) -> living.Keypoints:
    return DRAW[who.class_noun](Canvas(1), who, who.body)


def shade(colour: str, rng: np.random.Generator) -> Colour:
    """A named colour, not quite the same each time."""
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


def enriched(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with a pose, something worn, a rug or a second thing, or with none of these."""
    noun, draw = scene.subject.class_noun, rng.random(3)
    if draw[0] < 0.25:
        second = str(rng.choice([c for c in CLASSES if c != noun]))
        relation, colour = str(rng.choice(RELATIONS)), str(rng.choice(tuple(COLOURS)))
        other = Other(draw_subject(rng, second), colour, relation)
        return placed_by_relation(replace(scene, other=other, pattern="plain"), rng)
    if draw[0] < 0.37:
        scene = replace(scene, rug=str(rng.choice(tuple(COLOURS))))
    if noun in LIVING and draw[1] < 0.45:
        pose = str(rng.choice([p for p in POSES[1:] if not held_out_pose(noun, p)]))
        scene = replace(scene, pose=pose)
    if noun in LIVING and draw[2] < 0.25:
        scene = replace(scene, worn=(str(rng.choice(WORN)), str(rng.choice(tuple(COLOURS)))))
    return scene


def draw_scene(
    rng: np.random.Generator,
    named: tuple[Subject, ...] = (),
    names: tuple[str, ...] = (),
    plain: float = 0.3,
    style: str | None = None,
    rich: bool = False,
) -> Scene:
    """Draw a training scene: never a held-out combination, style, pose or subject.

    In 30% of the scenes the subject's colour has no name; three quarters of these subjects are
    from `named`, if there are any. `rich` scenes can have poses, clothes, rugs and a second thing.
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
            scene = placed(Scene(who, colour, pattern, where, look, facing, name=name), rng)
            return enriched(scene, rng) if rich else scene


def portrait(
    who: Subject, rng: np.random.Generator, background: str | None = None, style: str = "photo"
) -> Scene:
    """A scene of one individual in its own colours, as a person would photograph it."""
    where = background or str(rng.choice(PLACES[:-1]))
    facing = str(rng.choice(FACINGS))
    return placed(Scene(who, None, "plain", where, style, facing), rng)
