# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""The figures of pocket's model card, as JSON, and its contact sheet."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from pinxit.pocket import autoencoder, data, measure, package
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import PATTERNS, PLACES, Rendered, Scene, render_styles
from pinxit.pocket.world.attributes import FIRST_CLASSES

GUIDANCE = (3.0, 5.0)
LOOKED_AT = 600  # rendered pictures the eyes are tested on


def write(pictures: int, photographs: Path | None, sheet: Path) -> None:
    """Measure everything; the last line printed is the figures as JSON. Saves contact sheets."""
    eyes, folder = Eyes.load(), measure.folder()
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    figures: dict[str, Any] = {"hash": package.digest(folder)}
    sizes = {p.name: _size(p) for p in sorted(folder.iterdir()) if p.is_dir()}
    figures["megabytes"] = sizes | {"all": sum(sizes.values())}
    figures["psnr"] = {}
    for ending, of in (("", None), (" on the first world", first_world)):
        rendered, scenes = unseen(LOOKED_AT, of)
        figures[f"eyes{ending}"] = measure.eyes_accuracy(eyes, vae, rendered, scenes)
        x = autoencoder.pixels(np.stack([p.image for p in rendered]))
        figures["psnr"][f"rendered{ending}"] = autoencoder.psnr(vae, x)
    if photographs is not None:
        figures["psnr"]["photographs"] = autoencoder.psnr(vae, measure.photographs(photographs))
    figures["painting"], figures["painting of the first world"] = [], []
    figures["richer"] = {"rendered": measure.rendered_richer(eyes, vae, LOOKED_AT // 4)}
    best: list[Tensor] = []
    for guidance in GUIDANCE:
        before = _painted(eyes, pictures, guidance, measure.FIRST_WORLD)
        shares = {name: share for name, share in before.items() if "pictures" not in name}
        figures["painting of the first world"].append(shares)
        result = _painted(eyes, pictures, guidance, measure.WORLD)
        painted = [result.pop("seen pictures"), result.pop("held out pictures")]
        if all(result["seen"]["joint"] > other["seen"]["joint"] for other in figures["painting"]):
            best = painted
        figures["painting"].append(result)
        full = figures["richer"][str(guidance)] = {}
        samples: list[Tensor] = []
        for kind, share, images in measure.painted_richer(eyes, pictures // 2, guidance):
            print(f"guidance {guidance}: {kind} {share:.3f}", file=sys.stderr, flush=True)
            full[kind] = share
            samples.append(images[:8])
        save_sheet(sheet.with_stem(f"{sheet.stem}-richer"), torch.cat(samples), 8)
    figures["seconds a picture"] = measure.one_picture_seconds()
    save_sheet(sheet, torch.cat([best[0][:32], best[1][:16]]), 8)
    print(json.dumps(_rounded(figures)))


def _painted(eyes: Eyes, pictures: int, guidance: float, drawn: measure.Drawn) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for result in measure.painting(eyes, pictures, guidance, drawn=drawn):
        if "done" in result:
            print(f"guidance {guidance}: {result}", file=sys.stderr, flush=True)
    return result


def unseen(
    count: int, of: Callable[[Scene], bool] | None = None
) -> tuple[list[Rendered], list[Scene]]:
    """Pictures of scenes (of a kind) that nothing was trained on, with the truth about them."""
    drawn = (s for i in itertools.count() for s in data.scenes_at(i, seed=4) if not of or of(s))
    scenes = list(itertools.islice(drawn, count))
    return [render_styles(s, (s.style,))[0] for s in scenes], scenes


def first_world(scene: Scene) -> bool:
    """Whether a scene could have been in the first pocket's world: one thing, standing."""
    return (
        (scene.pose, scene.worn, scene.rug, scene.other) == ("standing", None, None, None)
        and scene.subject.class_noun in FIRST_CLASSES
        and scene.pattern in PATTERNS[:4]
        and scene.background in (*PLACES[:8], PLACES[-1])
    )


def save_sheet(path: Path, pixels: Tensor, columns: int, scale: int = 2) -> None:
    """Pictures (N, 3, H, W) in -1..1 in rows, enlarged."""
    bytes_ = (pixels.clamp(-1, 1) + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(row), 1) for row in _split(bytes_, columns)]
    sheet = Image.fromarray(np.concatenate(rows, 0))
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.LANCZOS).save(path)


def _split(pictures: np.ndarray, columns: int) -> Iterable[np.ndarray]:
    return np.split(pictures, len(pictures) // columns)


def _size(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
