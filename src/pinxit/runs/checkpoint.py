"""Checkpoints of a training run. Older ones are deleted only after the new one is verified."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from pinxit.errors import FileError, RunError
from pinxit.files.atomic_write import check_regular, make_folder, regular_files, remove
from pinxit.files.safetensors_file import CHECKSUM, damaged_error, read_safetensors, write_tensors
from pinxit.files.safetensors_header import check_replaceable, has_mark
from pinxit.models.model import Model

_KEY = "pinxit.runs.checkpoint"
_MAX_CHECKPOINTS = 2
_CLASS_IMAGE = "class image "  # what the names of class images begin with
FILE_NAMES = re.compile(r"[0-9]{7,}\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """The step of a checkpoint, and the base model and images it was trained with.

    `images` has the fingerprint of each training image by file name, with that of its mask;
    `inputs` those of everything else that training reads, None in files of older versions.
    """

    step: int
    base_hash: str
    images: Mapping[str, str]
    inputs: Mapping[str, str] | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The manifest in a checkpoint's metadata; files call the images `pictures`."""
        values = json.loads(text)
        inputs = values.get("inputs")
        return cls(values["step"], values["base_hash"], values["pictures"], inputs)

    def to_json(self) -> str:
        """The manifest as a checkpoint's metadata has it."""
        values = {"step": self.step, "base_hash": self.base_hash, "pictures": dict(self.images)}
        return json.dumps({**values, "inputs": None if self.inputs is None else dict(self.inputs)})

    def check_compatible(
        self, model: Model, images: Mapping[str, str], inputs: Mapping[str, str], steps: int
    ) -> None:
        """RunError if the base model, images, masks, captions or class images differ.

        Also if `steps` is already exceeded.
        """
        if self.base_hash != model.hash:
            raise RunError(
                f"the run was started on another base model than {model.name}",
                "give the base model it was started with: --base MODEL",
            )
        old_inputs = inputs if self.inputs is None else self.inputs
        if not _class_images(old_inputs) and _class_images(inputs):
            raise RunError(
                "the checkpoint does not say which class images it was trained with: earlier "
                "versions did not record those of --class-images-folder",
                "start a new run with the recipe: pinxit train --recipe RUN/recipe.toml",
            )
        for what, old, new in (("images", self.images, images), ("inputs", old_inputs, inputs)):
            if changed := _changes(old, new):
                raise RunError(
                    f"the {what} have changed since the run started: {', '.join(changed)}",
                    "restore the original images, masks and captions, or start a new run",
                )
        if self.step > steps:
            raise RunError(
                f"the run has already trained {self.step} steps, more than {steps}",
                f"train longer with --steps {self.step + 100}",
            )


def _class_images(inputs: Mapping[str, str]) -> list[str]:
    return [name for name in inputs if name.startswith(_CLASS_IMAGE)]


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names of the inputs that differ; where an image is the same, its mask or caption."""
    names = sorted({name for name, _ in old.items() ^ new.items()})
    contents = {name: [one.get(name, "").partition("+")[0] for one in (old, new)] for name in names}
    kinds = {name: "caption" if name.startswith(_CLASS_IMAGE) else "mask" for name in names}
    return [f"{kinds[n]} of {n}" if contents[n][0] == contents[n][1] else n for n in names]


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
    `every`, for the case that the newest is damaged or that training diverges after it. Other
    files are not touched. RunError if the folder is a link, or a file in the way is not pinxit's.
    """
    check_regular(folder)
    make_folder(folder)
    file = folder / f"{manifest.step:07}.safetensors"
    check_replaceable(file, _KEY)
    write_tensors(file, state, {_KEY: manifest.to_json()}, checksum=True)
    regular = [path for path in _numbered(folder, every) if path.stem < file.stem]
    stay = {file, *regular[-(_MAX_CHECKPOINTS - 1) :]}
    old = (path for path in regular_files(folder, FILE_NAMES) if path not in stay)
    remove(*(path for path in old if has_mark(path, _KEY)))


def newest_checkpoint(folder: Path, every: int = 1) -> Checkpoint | None:
    """The newest intact checkpoint whose step is a multiple of `every`; None if there is none.

    RunError if all checkpoints are damaged, or a file with such a name is not pinxit's.
    """
    damaged_files: list[Path] = []
    for file in reversed(_numbered(folder, every)):
        check_replaceable(file, _KEY)
        try:
            state, metadata = read_safetensors(file)
            if CHECKSUM not in metadata:
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
