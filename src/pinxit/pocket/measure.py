# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""The figures of pocket's model card, measured on the packaged weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from pinxit.pocket import autoencoder
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import ANSWERS, UNNAMED, Eyes
from pinxit.pocket.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    HELD_OUT_STYLES,
    STYLES,
    Rendered,
    Scene,
    held_out,
)

JOINT = ("class", "colour", "background", "style")
Asked = tuple[str, str, str, str]  # class, colour, background, style


def folder() -> Path:
    """Where the packaged weights lie."""
    return Path(__file__).parent / "weights"


def combinations(kept_out: bool, count: int, seed: int = 5) -> list[Asked]:
    """Random combinations of the four attributes, all seen in training or all held out of it."""
    rng = np.random.default_rng((seed, int(kept_out)))
    found: list[Asked] = []
    while len(found) < count:
        lists = (CLASSES, tuple(COLOURS), BACKGROUNDS, STYLES)
        noun, colour, place, style = (str(rng.choice(names)) for names in lists)
        if held_out(noun, colour, place, style) == kept_out:
            found.append((noun, colour, place, style))
    return found


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


def right(eyes: Eyes, images: Tensor, asked: list[Asked]) -> dict[str, float]:
    """Shares of pictures in which each attribute, and all four, are as asked."""
    seen = eyes.look(images.float())
    hits = np.array(
        [
            [a == b for a, b in zip(seen.named(q), row, strict=True)]
            for q, row in zip(JOINT, zip(*asked, strict=True), strict=True)
        ]
    )
    shares = {q: float(h.mean()) for q, h in zip(JOINT, hits, strict=True)}
    return shares | {"joint": float(hits.all(0).mean())}


def painting(eyes: Eyes, count: int, guidance: float, steps: int = 25) -> Iterator[dict[str, Any]]:
    """Paint seen and held-out combinations and look at them; yields progress, then the figures."""
    pipe = StableDiffusionPipeline.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    result: dict[str, Any] = {"guidance": guidance, "steps": steps, "pictures": count}
    for name, kept_out in (("seen", False), ("held out", True)):
        asked = combinations(kept_out, count)
        images: list[Tensor] = []
        for done, part in paint(pipe, [prompt(*a) for a in asked], guidance, steps, 1000):
            images.append(part)
            yield {"done": done, "of": count, "what": name}
        result[name] = right(eyes, torch.cat(images), asked)
        result[f"{name} pictures"] = torch.cat(images)
    yield result


@torch.no_grad()
def round_trip(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures through the autoencoder and back, in parts."""
    return torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in x.split(64)])


def seeing(
    eyes: Eyes, vae: AutoencoderKL, pictures: list[Rendered], scenes: list[Scene]
) -> dict[str, float]:
    """How often the eyes are right on round trips of rendered pictures, and how close."""
    x = autoencoder.pixels(np.stack([p.image for p in pictures]))
    seen = eyes.look(round_trip(vae, x).clamp(-1, 1))
    truth = {
        "class": [s.subject.class_noun for s in scenes],
        "colour": [s.colour or UNNAMED for s in scenes],
        "background": [s.background for s in scenes],
        "style": [s.style for s in scenes],
        "facing": [s.facing for s in scenes],
        "pattern": [s.pattern for s in scenes],
    }
    hits = {q: np.array(seen.named(q)) == np.array(truth[q]) for q in ANSWERS}
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
