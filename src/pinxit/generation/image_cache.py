"""A folder of generated images, so that an interrupted evaluation does not start again."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from pinxit.concepts.concept import Concept
from pinxit.files.atomic_write import check_regular, make_folder, regular_files, write_bytes
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import sample_images
from pinxit.models.model import Model

NAMES = re.compile(r"[0-9a-f]{16}-[0-9]+\.png")


class ImageCache:
    """Images of some concepts, in a folder, under names that depend on all they depend on.

    Images that exist are not generated again. Without a folder nothing is stored. Raises RunError
    if the folder is a link.
    """

    def __init__(self, folder: Path | None = None, concepts: Sequence[Concept] = ()) -> None:
        self.folder = folder
        self.concepts = concepts

    def images(self, model: Model, request: GenerationRequest) -> list[Image.Image]:
        """The images of a request, from the folder if all of them are there."""
        if self.folder:
            check_regular(self.folder)
        files = self._files(model, request)
        if files and all(file.is_file() for file in files):
            return [Image.open(file).convert("RGB") for file in files]
        events = sample_images(model, request, self.concepts)
        generated = [event for event in events if isinstance(event, GeneratedImage)]
        if self.folder:
            make_folder(self.folder)
        for image, file in zip(generated, files, strict=bool(files)):
            image.save(file)
        return [image.image for image in generated]

    @cached_property
    def _fingerprints(self) -> list[str]:
        """Each concept's fingerprint and strength, computed once: files can be gigabytes."""
        return [f"{fingerprint(concept)} {concept.strength}" for concept in self.concepts]

    def _files(self, model: Model, request: GenerationRequest) -> list[Path]:
        if self.folder is None:
            return []
        inputs = [model.hash, model.placement.precision, request.model_dump_json()]
        text = "\n".join([*inputs, *self._fingerprints])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return [self.folder / f"{digest}-{seed}.png" for seed in request.seeds]


def copy_images(source: Path, folder: Path) -> None:
    """Copy the images that an `ImageCache` has in another folder, if it is there."""
    for file in regular_files(source, NAMES):
        make_folder(folder)
        write_bytes(folder / file.name, [file.read_bytes()])


def fingerprint(concept: Concept) -> str:
    """A checksum of a concept's contents, independent of its file."""
    digest = hashlib.sha256(concept.description.encode())
    for part in concept.parts:
        for name in sorted(part.tensors):
            tensor = part.tensors[name].detach().contiguous().flatten().view(torch.uint8)
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
