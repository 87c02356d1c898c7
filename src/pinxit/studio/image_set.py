"""A set of uploaded images and what the studio keeps next to them. Without torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinxit.files.atomic_write import make_folder, regular_files, remove, write_text
from pinxit.studio.jobs import read_json

# In the folder of an image set.
INCOMING, UNUSED, THUMBNAILS = ".incoming", ".unused", ".thumbnails"
FULL, REPLACED = ".full", ".replaced"
CHECK, CROPS, _REJECTED = ".check.json", ".crops.json", ".rejected.json"
DISK_ERROR = 3  # status with which the process ends that takes images in, if the disk is full
MASK = ".mask.png"
PNG = re.compile(r"[\w][\w \-.]*\.png")


@dataclass(frozen=True)
class ImageSet:
    """A folder of uploaded images that were decoded and stored again as PNG, and its checks."""

    folder: Path

    @property
    def id(self) -> str:
        """The number of the set, which is the name of its folder."""
        return self.folder.name

    @property
    def checks(self) -> Mapping[str, Any]:
        """What was found in each file: `images`, `rejected` and `warnings` about all of them."""
        return read_json(self.folder / CHECK) or {"images": [], "rejected": [], "warnings": []}

    @property
    def crops(self) -> Mapping[str, Any]:
        """The crop of each image that has one: left, top, right, bottom in pixels."""
        return read_json(self.folder / CROPS) or {}

    @property
    def unused(self) -> list[str]:
        """The names of images that are not used."""
        return [path.name for path in _without_masks(self.folder / UNUSED)]

    @property
    def files(self) -> list[Path]:
        """The images, without their masks."""
        return _without_masks(self.folder)

    @property
    def incoming(self) -> list[Path]:
        """The uploaded files that are still to be taken in, in this order: zip files first."""
        folder = self.folder / INCOMING
        names = [path for path in folder.glob("[!.]*") if path.is_file()]
        return sorted(names, key=lambda path: (path.suffix != ".zip", path.name))

    def new_incoming(self, name: str) -> Path:
        """Where an uploaded file is stored until it is taken in."""
        make_folder(self.folder / INCOMING)
        return self.folder / INCOMING / name

    @property
    def rejected(self) -> dict[str, str]:
        """The names of uploaded files that are refused, with the reason."""
        return read_json(self.folder / _REJECTED) or {}

    def reject(self, file: Path, reason: str) -> None:
        """Note why an uploaded file is refused, and delete it."""
        rejected = {**self.rejected, file.name.partition("-")[2]: reason}
        write_text(self.folder / _REJECTED, json.dumps(rejected))
        remove(file)

    def whole(self, image: Path) -> Path:
        """An image before it was cropped."""
        whole = self.folder / FULL / image.name
        return whole if whole.is_file() else image

    def mask_of(self, image: Path) -> Path | None:
        """The mask of the image before cropping; None if the image has no mask."""
        mask = image.with_name(f"{image.stem}{MASK}")
        return self.whole(mask) if mask.is_file() else None

    def drop_mask(self, image: Path) -> None:
        """Take an image's mask out of the set; its file stays."""
        mask = image.with_name(f"{image.stem}{MASK}")
        replaced = self.folder / REPLACED
        make_folder(replaced)
        number = len(list(replaced.iterdir()))
        for file in (self.whole(mask), mask):  # the whole one, then the cropped one
            if file.is_file():
                number += 1
                file.replace(replaced / f"{number}-{mask.name}")


def _without_masks(folder: Path) -> list[Path]:
    return [path for path in regular_files(folder, PNG) if not path.name.endswith(MASK)]
