"""Checkpoints: whole and proven, or not there; the last one goes only when the next is proven."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pinxit.durable import replace_tensors, replace_text, sha256
from pinxit.errors import RunError


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: its step, the fingerprint of its file, and of what it followed from."""

    step: int
    sha256: str
    base_hash: str
    pictures: Mapping[str, str]


def keep(
    folder: Path, state: Mapping[str, Tensor], base_hash: str, pictures: Mapping[str, str]
) -> int:
    """Keep a lesson's state, prove it by reading it back, then remove older ones; its step."""
    step = int(state["done"])
    folder.mkdir(exist_ok=True)
    file = folder / f"{step:07}.safetensors"
    replace_tensors(file, state, {})
    back = load_file(file)
    if not all(torch.equal(back[name], tensor.cpu()) for name, tensor in state.items()):
        raise RunError(
            f"checkpoint {file} reads back otherwise than it was written",
            "the disk is not to be trusted; older checkpoints were kept",
        )
    manifest = Manifest(step, sha256(file), base_hash, dict(pictures))
    replace_text(file.with_suffix(".json"), json.dumps(asdict(manifest), indent=1))
    for path in sorted(folder.iterdir()):
        if path.stem != file.stem:
            path.unlink()
    return step


def newest(folder: Path) -> tuple[Manifest, dict[str, Tensor]] | None:
    """The newest sound checkpoint, None if none was ever kept; RunError if all are damaged."""
    damaged: list[str] = []
    for file in sorted(folder.glob("*.json"), reverse=True):
        found = next(_sound(file), None)
        if found:
            return found
        damaged.append(file.with_suffix(".safetensors").name)
    if damaged:
        raise RunError(
            f"every checkpoint in {folder} is damaged: {', '.join(damaged)}",
            "bring the folder back from a copy, or begin a new run",
        )
    return None


def _sound(file: Path) -> Iterator[tuple[Manifest, dict[str, Tensor]]]:
    """The checkpoint of a manifest, if both are as they were written."""
    tensors = file.with_suffix(".safetensors")
    try:
        manifest = Manifest(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return
    if tensors.is_file() and sha256(tensors) == manifest.sha256:
        yield manifest, load_file(tensors)
