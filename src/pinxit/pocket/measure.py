# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""The figures of pocket's model card, measured on the packaged weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from pinxit.pocket import autoencoder
from pinxit.pocket.captions import doing, phrase, prompt, related
from pinxit.pocket.eyes import ANSWERS, JOINT, Eyes
from pinxit.pocket.truths import answers_of
from pinxit.pocket.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    HELD_OUT_STYLES,
    LIVING,
    POSES,
    RELATIONS,
    STYLES,
    WORN,
    Other,
    Rendered,
    Scene,
    draw_scene,
    draw_subject,
    held_out,
    held_out_pose,
    render,
)
from pinxit.pocket.world.attributes import FIRST_CLASSES
from pinxit.pocket.world.render import placed_by_relation

Attributes = tuple[str, str, str, str]  # class, colour, background, style


def folder() -> Path:
    """Where the packaged weights lie."""
    return Path(__file__).parent / "weights"


Drawn = tuple[tuple[str, ...], tuple[str, ...]]  # classes and places to draw from
WORLD: Drawn = (CLASSES, BACKGROUNDS)
FIRST_WORLD: Drawn = (FIRST_CLASSES, BACKGROUNDS[:8])  # of the pocket before


def combinations(
    is_held_out: bool, count: int, seed: int = 5, drawn: Drawn = WORLD
) -> list[Attributes]:
    """Random combinations of the four attributes, all seen in training or all held out of it."""
    rng = np.random.default_rng((seed, int(is_held_out)))
    chosen: list[Attributes] = []
    while len(chosen) < count:
        lists = (drawn[0], tuple(COLOURS), drawn[1], STYLES)
        noun, colour, place, style = (str(rng.choice(names)) for names in lists)
        if held_out(noun, colour, place, style) == is_held_out:
            chosen.append((noun, colour, place, style))
    return chosen


# What a fuller prompt asks for besides a class and a colour, and by which answers it was heard.
RICHER: dict[str, tuple[str, ...]] = {
    **{relation: ("class", "other", "relation") for relation in RELATIONS},
    "pose": ("class", "pose"),
    "held-out pose": ("class", "pose"),
    "worn": ("class", "worn"),
    "worn, its colour": ("class", "worn", "worn colour"),
    "rug": ("class", "rug"),
}


def richer(kind: str, count: int, seed: int = 6) -> list[Scene]:
    """Photos in which there is something of a kind of RICHER, all else at random."""
    rng = np.random.default_rng((seed, list(RICHER).index(kind)))
    drawn = (draw_scene(rng, plain=0.2, style="photo") for _ in itertools.count())
    scenes = (_with(kind, replace(s, pattern="plain"), rng) for s in drawn if s.colour is not None)
    return list(itertools.islice((scene for scene in scenes if scene is not None), count))


def _with(kind: str, scene: Scene, rng: np.random.Generator) -> Scene | None:
    """The scene with something of a kind of RICHER, or None if its thing cannot have it."""
    noun, shade = scene.subject.class_noun, str(rng.choice(tuple(COLOURS)))
    if kind in RELATIONS:
        second = str(rng.choice([c for c in CLASSES if c != noun]))
        return replace(scene, other=Other(draw_subject(rng, second), shade, kind))
    if kind == "rug":
        return replace(scene, rug=shade)
    if noun not in LIVING:
        return None
    if kind.startswith("worn"):
        return replace(scene, worn=(str(rng.choice(WORN)), shade))
    poses = [p for p in POSES[1:] if held_out_pose(noun, p) == (kind == "held-out pose")]
    return replace(scene, pose=str(rng.choice(poses))) if poses else None


def prompt_of(scene: Scene) -> str:
    """The canonical prompt for all that a scene of a named colour and style shows."""
    other, rug = scene.other, scene.rug
    extra = doing(
        None if scene.pose == "standing" else scene.pose,
        (scene.worn[1], scene.worn[0]) if scene.worn else None,
        related(other.relation, phrase("a", other.colour, other.subject.class_noun))
        if other
        else None,
        f"on top of {phrase('a', rug, 'rug')}" if rug else None,
    )
    noun, pattern = scene.subject.class_noun, scene.pattern
    return prompt(noun, scene.colour, scene.background, scene.style, pattern, extra=extra)


def heard(eyes: Eyes, images: Tensor, scenes: list[Scene], questions: tuple[str, ...]) -> float:
    """The share of pictures (N, 3, 64, 64) whose answers to all questions are the right ones."""
    seen, expected = eyes.look(images.float()), [answers_of(scene) for scene in scenes]
    hits = [[a == w[q] for a, w in zip(seen.named(q), expected, strict=True)] for q in questions]
    return float(np.all(hits, 0).mean())


def rendered_richer(eyes: Eyes, vae: AutoencoderKL, count: int) -> dict[str, float]:
    """How often the eyes hear right what is there: the ceiling of `painted_richer`."""
    shares: dict[str, float] = {}
    for kind, questions in RICHER.items():
        rng = np.random.default_rng(7)
        scenes = [placed_by_relation(s, rng) if s.other else s for s in richer(kind, count)]
        x = autoencoder.pixels(np.stack([render(s).image for s in scenes]))
        shares[kind] = heard(eyes, round_trip(vae, x).clamp(-1, 1), scenes, questions)
    return shares


def painted_richer(eyes: Eyes, count: int, guidance: float, steps: int = 25) -> Iterator[Any]:
    """Paint fuller prompts and look at them; yields (kind, share, pixels) a kind."""
    pipe = StableDiffusionPipeline.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    for kind, questions in RICHER.items():
        scenes = richer(kind, count)
        parts = paint(pipe, [prompt_of(s) for s in scenes], guidance, steps, 2000)
        images = torch.cat([part for _, part in parts])
        yield kind, heard(eyes, images, scenes, questions), images


def paint(
    pipe: StableDiffusionPipeline, prompts: list[str], guidance: float, steps: int, seed: int
) -> Iterator[tuple[int, Tensor]]:
    """Paint the prompts in batches; yields how many are done, and pixels (N, 3, 64, 64)."""
    for start in range(0, len(prompts), 16):
        part = prompts[start : start + 16]
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        out = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            height=64,
            width=64,
            output_type="pt",
        )
        yield start + len(part), torch.as_tensor(out.images) * 2 - 1


def right(eyes: Eyes, images: Tensor, attributes: list[Attributes]) -> dict[str, float]:
    """Shares of pictures in which each attribute, and all four, are as in the prompt."""
    seen = eyes.look(images.float())
    hits = np.array(
        [
            [a == b for a, b in zip(seen.named(q), row, strict=True)]
            for q, row in zip(JOINT, zip(*attributes, strict=True), strict=True)
        ]
    )
    shares = {q: float(h.mean()) for q, h in zip(JOINT, hits, strict=True)}
    return shares | {"joint": float(hits.all(0).mean())}


def painting(
    eyes: Eyes, count: int, guidance: float, steps: int = 25, drawn: Drawn = WORLD
) -> Iterator[dict[str, Any]]:
    """Paint seen and held-out combinations and look at them; yields progress, then the figures."""
    pipe = StableDiffusionPipeline.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    result: dict[str, Any] = {"guidance": guidance, "steps": steps, "pictures": count}
    for name, is_held_out in (("seen", False), ("held out", True)):
        attributes = combinations(is_held_out, count, drawn=drawn)
        images: list[Tensor] = []
        for done, part in paint(pipe, [prompt(*a) for a in attributes], guidance, steps, 1000):
            images.append(part)
            yield {"done": done, "of": count, "what": name}
        result[name] = right(eyes, torch.cat(images), attributes)
        result[f"{name} pictures"] = torch.cat(images)
    yield result


@torch.no_grad()
def round_trip(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures through the autoencoder and back, in parts."""
    return torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in x.split(64)])


def eyes_accuracy(
    eyes: Eyes, vae: AutoencoderKL, pictures: list[Rendered], scenes: list[Scene]
) -> dict[str, float]:
    """How often the eyes are right on round trips of rendered pictures, and how close."""
    x = autoencoder.pixels(np.stack([p.image for p in pictures]))
    seen = eyes.look(round_trip(vae, x).clamp(-1, 1))
    truth = [answers_of(scene) for scene in scenes]
    hits = {
        q: np.array([a == t[q] for a, t in zip(seen.named(q), truth, strict=True) if t[q]])
        for q in ANSWERS
    }
    hidden = torch.from_numpy(np.stack([s.subject.hidden() for s in scenes]))
    mask = torch.from_numpy(np.stack([p.mask for p in pictures])).float().div(255)
    mask = torch.nn.functional.avg_pool2d(mask[:, None], 4)[:, 0] > 0.5
    both, either = (seen.mask > 0.5) & mask, (seen.mask > 0.5) | mask
    points = torch.from_numpy(np.stack([p.keypoints for p in pictures]))
    return {q: float(h.mean()) for q, h in hits.items()} | {
        "joint": float(np.all([hits[q] for q in JOINT], 0).mean()),
        "hidden error": float((seen.hidden - hidden)[:, 3:].abs().mean()),
        "mask IoU": float(both.sum() / either.sum()),
        "key point error": float((seen.keypoints - points).norm(dim=-1).mean()),
    }


def photographs(root: Path) -> Tensor:
    """Every picture under a folder, brought to 64x64."""
    paths = sorted(root.rglob("*.png"))
    small = [Image.open(p).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS) for p in paths]
    return autoencoder.pixels(np.stack([np.asarray(s) for s in small]))


def one_picture_seconds(threads: int = 2) -> float:
    """Median seconds for one 25-step picture with guidance."""
    torch.set_num_threads(threads)
    pipe = StableDiffusionPipeline.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    times = []
    for k in range(4):
        begun = time.perf_counter()
        list(paint(pipe, ["a photo of a red dog on the beach"], 5.0, 25, k))
        times.append(time.perf_counter() - begun)
    return float(np.median(times[1:]))


ALL_STYLES = (*STYLES, *HELD_OUT_STYLES)
