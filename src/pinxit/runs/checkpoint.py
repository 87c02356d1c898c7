"""Checkpoints: whole and proven, or not there; the last ones go only when the next is proven."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from pinxit.errors import FileError, RunError
from pinxit.files.atomic_write import (
    make_folder,
    must_be_regular,
    own_files,
    remove,
    replace_tensors,
)
from pinxit.files.safetensors_file import SEAL, damaged, read_safetensors
from pinxit.models.model import Model

_KEY = "pinxit.runs.checkpoint"
_KEPT = 2
NAMES = re.compile(r"[0-9]{7,}\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: its step, and what it followed from."""

    step: int
    base_hash: str
    pictures: Mapping[str, str]

    def must_fit(self, model: Model, pictures: Mapping[str, str], steps: int) -> None:
        """RunError if a run would go on from it with other pictures, another base, or backwards."""
        if self.base_hash != model.hash:
            raise RunError(
                f"the run was begun on another base than {model.name}", "bring that base back"
            )
        changed = {name for name, _ in pictures.items() ^ self.pictures.items()}
        if changed:
            raise RunError(
                f"the pictures have changed since the run was begun: {', '.join(sorted(changed))}",
                "put them back as they were, or begin a new run",
            )
        if self.step > steps:
            raise RunError(
                f"the run has done {self.step} steps already, more than {steps}",
                f"give it more with --steps {self.step + 100}",
            )


@dataclass(frozen=True)
class Found:
    """A sound checkpoint, and newer ones that are damaged."""

    manifest: Manifest
    state: Mapping[str, Tensor]
    damaged: tuple[Path, ...]


def keep(folder: Path, state: Mapping[str, Tensor], manifest: Manifest, every: int) -> None:
    """Keep a lesson's state, prove it by reading it back, then remove what it makes needless.

    What stays is the state itself, and the last one before it whose step is a multiple of `every`:
    to go on from if the newest is damaged, or if learning goes wrong after it. Files that are not
    named as checkpoints stay. RunError if the folder is a link.
    """
    must_be_regular(folder)
    make_folder(folder)
    file = folder / f"{manifest.step:07}.safetensors"
    replace_tensors(file, state, {_KEY: json.dumps(asdict(manifest))}, seal=True)
    regular = [path for path in _numbered(folder, every) if path.stem < file.stem]
    stay = {file, *regular[-(_KEPT - 1) :]}
    remove(*(path for path in own_files(folder, NAMES) if path not in stay))


def newest(folder: Path, every: int = 1) -> Found | None:
    """The newest sound checkpoint whose step is a multiple of `every`, None if there is none.

    RunError if there are some, and all are damaged.
    """
    bad: list[Path] = []
    for file in reversed(_numbered(folder, every)):
        try:
            state, metadata = read_safetensors(file)
            if SEAL not in metadata or _KEY not in metadata:
                raise damaged(file)
            return Found(Manifest(**json.loads(metadata[_KEY])), state, tuple(bad))
        except FileError:
            bad.append(file)
    if bad:
        raise RunError(
            f"every checkpoint in {folder} is damaged: {', '.join(file.name for file in bad)}",
            "bring the folder back from a copy, or begin a new run",
        )
    return None


def _numbered(folder: Path, every: int) -> list[Path]:
    """The checkpoints at multiples of a step, oldest first."""
    return [file for file in own_files(folder, NAMES) if int(file.stem) % every == 0]
