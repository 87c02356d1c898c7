# pyright: standard
"""The training images of pocket: scene i is a function of i, rendered once into shards."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinxit.pocket.words import NAMES
from pinxit.pocket.world import (
    CLASSES,
    COLOURS,
    HELD_OUT_DRAWN,
    HELD_OUT_STYLES,
    LIVING,
    POSES,
    STYLE_NAMES,
    STYLES,
    WORN,
    Rendered,
    Scene,
    draw_scene,
    draw_subject,
    held_out,
    named_subjects,
    portrait,
    render_styles,
)
from pinxit.pocket.world.style_space import DRAWN

SHARD = 4_000  # pictures
LOOKS = 2  # styles each drawing is passed through
TRAIN_SHARDS = 30
VIEWS = 4  # pictures of one individual in a row, in the shards that teach likeness
NAMED_STYLE_SEED, DRAWN_STYLE_SEED = 6, 7  # of shards in the space of styles
ALL_STYLES = (*STYLES, *HELD_OUT_STYLES)
NAMED = named_subjects()


def scenes_at(index: int, seed: int = 1) -> tuple[Scene, ...]:
    """The two pictures of drawing `index`: one structure in two styles, neither held out."""
    rng = np.random.default_rng((seed, index))
    first = draw_scene(rng, NAMED, NAMES, rich=True)
    others = [
        str(style)
        for style in rng.permutation([s for s in STYLES if s != first.style])
        if not held_out(first.subject.class_noun, first.colour, first.background, str(style))
    ]
    return first, *(dataclasses.replace(first, style=s) for s in others[: LOOKS - 1])


def styled_scenes(index: int, seed: int = NAMED_STYLE_SEED) -> tuple[Scene, ...]:
    """The two pictures of drawing `index` in the space of styles: in named ones, or in others.

    With DRAWN_STYLE_SEED every picture has a style of its own that has no name.
    """
    rng = np.random.default_rng((seed, index))
    first, second = (str(name) for name in rng.choice(STYLE_NAMES, LOOKS, replace=False))
    if seed == DRAWN_STYLE_SEED:
        number = len(HELD_OUT_DRAWN) + LOOKS * index
        first, second = f"{DRAWN} {number}", f"{DRAWN} {number + 1}"
    scene = draw_scene(rng, NAMED, NAMES, style=first, rich=True)
    return scene, dataclasses.replace(scene, style=second)


def views_of(index: int, seed: int = 3) -> tuple[Scene, ...]:
    """Four pictures of one individual: other places and facings, and now and then styles.

    Of most living things in other poses and things worn too, held-out ones among them: the eyes are
    to judge them.
    """
    rng = np.random.default_rng((seed, index))
    who = draw_subject(rng, CLASSES[index % len(CLASSES)])
    looks = [str(rng.choice(ALL_STYLES)) if rng.random() < 0.5 else "photo" for _ in range(VIEWS)]
    views = [portrait(who, rng, style=look) for look in looks]
    if who.class_noun not in LIVING or rng.random() < 0.4:
        return tuple(views)
    shades = tuple(COLOURS)
    worn = [(str(rng.choice(WORN)), str(rng.choice(shades))) for _ in views]
    return tuple(
        dataclasses.replace(
            view,
            pose=str(rng.choice(POSES)) if rng.random() < 0.6 else view.pose,
            worn=thing if rng.random() < 0.6 else None,
        )
        for view, thing in zip(views, worn, strict=True)
    )


@dataclass(frozen=True)
class Shard:
    """Rendered pictures: images (N, 64, 64, 3), masks (N, 64, 64), both uint8, and their truth."""

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    keypoints: NDArray[np.float32]


def render_shard(folder: Path, number: int, seed: int = 1) -> Path:
    """Render one shard unless it exists; it gets its name when it is complete."""
    path = folder / f"shard-{seed}-{number:03d}.npz"
    if path.exists():
        return path
    pictures: list[Rendered] = []
    for scene, styles in itertools.groupby(shard_scenes(number, seed), _structure):
        pictures += render_styles(scene, tuple(s.style for s in styles))
    draft = path.with_name(f".{os.getpid()}-{path.name}")
    np.savez(
        draft,
        images=np.stack([p.image for p in pictures]),
        masks=np.stack([p.mask for p in pictures]),
        keypoints=np.stack([p.keypoints for p in pictures]),
    )
    draft.replace(path)
    return path


def render_all(folder: Path, shards: int, seed: int = 1, workers: int = 2) -> Iterator[Path]:
    """Render `shards` shards on `workers` processes; yields each path as it is done, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(render_shard, folder, k, seed) for k in range(shards)]
        for job in jobs:
            yield job.result()


def load(path: Path) -> Shard:
    """Open a shard."""
    with np.load(path) as file:
        return Shard(file["images"], file["masks"], file["keypoints"])


def shard_scenes(number: int, seed: int = 1) -> list[Scene]:
    """The scenes of a shard, in the order of its pictures.

    Seed 3 has views of individuals, 6 and 7 have named and other styles of the space.
    """
    make, each = (views_of, VIEWS) if seed == 3 else (scenes_at, LOOKS)
    if seed in (NAMED_STYLE_SEED, DRAWN_STYLE_SEED):
        make = styled_scenes
    first, last = number * SHARD // each, (number + 1) * SHARD // each
    return [scene for index in range(first, last) for scene in make(index, seed)]


def scenes_of(path: Path) -> list[Scene]:
    """The scenes of a shard by its file name."""
    _, seed, number = path.stem.split("-")
    return shard_scenes(int(number), int(seed))


def _structure(scene: Scene) -> Scene:
    return dataclasses.replace(scene, style="photo")
