"""A portfolio: pictures that are painted once and kept, so that judging can be stopped."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pinxit.concepts.concept import Concept
from pinxit.files.atomic_write import make_folder, must_be_regular
from pinxit.generation.generate import Painted, Request, generate
from pinxit.models.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = re.compile(r"[0-9a-f]{16}-[0-9]+\.png")


class Portfolio:
    """Pictures with some concepts, kept in a folder and named after everything they follow from.

    A request that is all there is not painted again. Without a folder nothing is kept. RunError if
    the folder is a link.
    """

    def __init__(self, folder: Path | None = None, concepts: Sequence[Concept] = ()) -> None:
        self.folder = folder
        self.concepts = concepts

    def pictures(self, model: Model, request: Request) -> "list[Image]":
        """The pictures of a request, painted if they are not there."""
        from PIL import Image

        if self.folder:
            must_be_regular(self.folder)
        files = self._files(model, request)
        if files and all(file.is_file() for file in files):
            return [Image.open(file).convert("RGB") for file in files]
        painted = [e for e in generate(model, request, self.concepts) if isinstance(e, Painted)]
        if self.folder:
            make_folder(self.folder)
        for picture, file in zip(painted, files, strict=bool(files)):
            picture.save(file)
        return [picture.image for picture in painted]

    @cached_property
    def _by(self) -> list[str]:
        """What each concept holds, and how much of it counts: gigabytes are read only once."""
        return [f"{fingerprint(concept)} {concept.strength}" for concept in self.concepts]

    def _files(self, model: Model, request: Request) -> list[Path]:
        if self.folder is None:
            return []
        told = [model.hash, model.placement.precision, request.model_dump_json(), *self._by]
        tag = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
        return [self.folder / f"{tag}-{seed}.png" for seed in request.seeds]


def fingerprint(concept: Concept) -> str:
    """What a concept holds, wherever it lies."""
    digest = hashlib.sha256(concept.about.encode())
    for part in concept.parts:
        for name in sorted(part.tensors):
            held = part.tensors[name].detach().contiguous().flatten().view(torch.uint8)
            digest.update(held.cpu().numpy().tobytes())
    return digest.hexdigest()
