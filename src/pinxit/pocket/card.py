# pyright: standard, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# diffusers and transformers decorate and alias so much that these find nothing true here.
"""The figures of pocket's model card, as JSON, and its contact sheet."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from pinxit.pocket import autoencoder, data, measure, package
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import Rendered, Scene, render_styles

GUIDANCE = (3.0, 5.0)
LOOKED_AT = 600  # rendered pictures the eyes are tested on


def write(pictures: int, photographs: Path | None, sheet: Path) -> None:
    """Measure everything; the last line printed is the figures as JSON. Saves a contact sheet."""
    eyes, folder = Eyes.load(), measure.folder()
    vae = AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)
    rendered, scenes = unseen(LOOKED_AT)
    figures: dict[str, Any] = {"hash": package.digest(folder)}
    sizes = {p.name: _size(p) for p in sorted(folder.iterdir()) if p.is_dir()}
    figures["megabytes"] = sizes | {"all": sum(sizes.values())}
    figures["eyes"] = measure.seeing(eyes, vae, rendered, scenes)
    x = autoencoder.pixels(np.stack([p.image for p in rendered]))
    figures["psnr"] = {"rendered": autoencoder.psnr(vae, x)}
    if photographs is not None:
        figures["psnr"]["photographs"] = autoencoder.psnr(vae, measure.photographs(photographs))
    figures["painting"] = []
    best: list[Tensor] = []
    for guidance in GUIDANCE:
        result = _painted(eyes, pictures, guidance)
        painted = [result.pop("seen pictures"), result.pop("held out pictures")]
        if all(result["seen"]["joint"] > other["seen"]["joint"] for other in figures["painting"]):
            best = painted
        figures["painting"].append(result)
    figures["seconds a picture"] = measure.one_picture_seconds()
    save_sheet(sheet, torch.cat([best[0][:32], best[1][:16]]), 8)
    print(json.dumps(_rounded(figures)))


def _painted(eyes: Eyes, pictures: int, guidance: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for result in measure.painting(eyes, pictures, guidance):
        if "done" in result:
            print(f"guidance {guidance}: {result}", file=sys.stderr, flush=True)
    return result


def unseen(count: int) -> tuple[list[Rendered], list[Scene]]:
    """Pictures of scenes that nothing was trained on, with the truth about them."""
    scenes = [s for i in range(count // data.LOOKS) for s in data.scenes_at(i, seed=4)]
    return [render_styles(s, (s.style,))[0] for s in scenes], scenes


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
