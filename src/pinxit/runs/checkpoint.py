"""Checkpoints of a training run. Older ones are deleted only after the new one is verified."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from pinxit.errors import FileError, RunError
from pinxit.files.atomic_write import (
    check_regular,
    make_folder,
    regular_files,
    remove,
    write_tensors,
)
from pinxit.files.safetensors_file import CHECKSUM, damaged_error, read_safetensors
from pinxit.models.model import Model

_KEY = "pinxit.runs.checkpoint"
_MAX_CHECKPOINTS = 2
FILE_NAMES = re.compile(r"[0-9]{7,}\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """The step of a checkpoint, and the base model and images it was trained with.

    `images` has the fingerprint of each training image by file name.
    """

    step: int
    base_hash: str
    images: Mapping[str, str]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The manifest in a checkpoint's metadata; files call the images `pictures`."""
        values = json.loads(text)
        return cls(values["step"], values["base_hash"], values["pictures"])

    def to_json(self) -> str:
        """The manifest as a checkpoint's metadata has it."""
        return json.dumps(
            {"step": self.step, "base_hash": self.base_hash, "pictures": dict(self.images)}
        )

    def check_compatible(self, model: Model, images: Mapping[str, str], steps: int) -> None:
        """RunError if the images or the base model differ, or if `steps` is already exceeded."""
        if self.base_hash != model.hash:
            raise RunError(
                f"the run was started on another base model than {model.name}",
                "give the base model it was started with: --base MODEL",
            )
        changed = {name for name, _ in images.items() ^ self.images.items()}
        if changed:
            raise RunError(
                f"the images have changed since the run started: {', '.join(sorted(changed))}",
                "restore the original images, or start a new run",
            )
        if self.step > steps:
            raise RunError(
                f"the run has already trained {self.step} steps, more than {steps}",
                f"train longer with --steps {self.step + 100}",
            )


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint, and the newer files that are damaged."""

    manifest: Manifest
    state: Mapping[str, Tensor]
    damaged: tuple[Path, ...]


def save_checkpoint(
    folder: Path, state: Mapping[str, Tensor], manifest: Manifest, every: int
) -> None:
    """Save a training state, verify it by reading it back, then delete older checkpoints.

    Two checkpoints stay: the new one, and the last one before it whose step is a multiple of
    `every`, for the case that the newest is damaged or that training diverges after it. Files
    with other names are not touched. RunError if the folder is a link.
    """
    check_regular(folder)
    make_folder(folder)
    file = folder / f"{manifest.step:07}.safetensors"
    write_tensors(file, state, {_KEY: manifest.to_json()}, checksum=True)
    regular = [path for path in _numbered(folder, every) if path.stem < file.stem]
    stay = {file, *regular[-(_MAX_CHECKPOINTS - 1) :]}
    remove(*(path for path in regular_files(folder, FILE_NAMES) if path not in stay))


def newest_checkpoint(folder: Path, every: int = 1) -> Checkpoint | None:
    """The newest intact checkpoint whose step is a multiple of `every`; None if there is none.

    RunError if all checkpoints are damaged.
    """
    damaged_files: list[Path] = []
    for file in reversed(_numbered(folder, every)):
        try:
            state, metadata = read_safetensors(file)
            if CHECKSUM not in metadata or _KEY not in metadata:
                raise damaged_error(file)
            return Checkpoint(Manifest.from_json(metadata[_KEY]), state, tuple(damaged_files))
        except FileError:
            damaged_files.append(file)
    if damaged_files:
        raise RunError(
            f"all checkpoints in {folder} are damaged: {', '.join(f.name for f in damaged_files)}",
            "restore the folder from a backup, or start a new run",
        )
    return None


def _numbered(folder: Path, every: int) -> list[Path]:
    """The checkpoints whose step is a multiple of `every`, oldest first."""
    return [file for file in regular_files(folder, FILE_NAMES) if int(file.stem) % every == 0]
