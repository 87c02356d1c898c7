"""A portfolio: pictures that are painted once and kept, so that judging can be stopped."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pinxit.concept import Concept
from pinxit.durable import make_folder
from pinxit.generate import Painted, Request, generate
from pinxit.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image


class Portfolio:
    """Pictures in a folder, named after everything they follow from; nothing is kept without one.

    A request that is all there is not painted again.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def pictures(
        self, model: Model, request: Request, concepts: Sequence[Concept] = ()
    ) -> "list[Image]":
        """The pictures of a request, painted if they are not there."""
        from PIL import Image

        files = self._files(model, request, concepts)
        if files and all(file.is_file() for file in files):
            return [Image.open(file).convert("RGB") for file in files]
        painted = [e for e in generate(model, request, concepts) if isinstance(e, Painted)]
        for picture, file in zip(painted, files, strict=bool(files)):
            make_folder(file.parent)
            picture.save(file)
        return [picture.image for picture in painted]

    def _files(self, model: Model, request: Request, concepts: Sequence[Concept]) -> list[Path]:
        if self.folder is None:
            return []
        told = [model.hash, model.placement.precision, request.model_dump_json()]
        told += [f"{fingerprint(concept)} {concept.strength}" for concept in concepts]
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
