"""Read a concept from a file of any format, and write it in pinxit's own format."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from pinxit import registry
from pinxit.adapters.strength import PATH_WITH_STRENGTH, Strength, parse_strength, strength_text
from pinxit.arguments import checked
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Format, all_formats
from pinxit.concepts.metadata import DESCRIPTION_KEY
from pinxit.concepts.png_embedding import read_hidden_embedding
from pinxit.errors import ConceptError, PinxitError, listed, typed
from pinxit.files.open_any import OpenedFile, open_any
from pinxit.files.other_kinds import network_kind
from pinxit.files.safetensors_file import write_tensors
from pinxit.files.safetensors_header import check_replaceable
from pinxit.files.untrusted import exists
from pinxit.models.checkpoint_source import CheckpointSource


@dataclass(frozen=True)
class ConceptReference:
    """The path of a concept and the strength of its LoRA."""

    path: Path
    strength: Strength = 1.0

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "ConceptReference":
        """Parse FILE, FILE:0.7 or FILE:attention=0.5,all=1; an existing path has no strength."""
        path, drive = Path(text), Path(text).drive
        match = PATH_WITH_STRENGTH.fullmatch(os.fspath(text).removeprefix(drive))
        if match is None or exists(path):
            return cls(path)
        return cls(Path(drive + match[1]), parse_strength(match[2]))

    def __str__(self) -> str:
        path = str(self.path)
        if self.strength == 1 and not PATH_WITH_STRENGTH.fullmatch(path):
            return path
        return f"{path}:{strength_text(self.strength)}"

    def open(self) -> Concept:
        """Read the concept; ConceptError if there is none."""
        return read_concept(self.path).with_strength(self.strength)

    def open_finite(self) -> Concept:
        """Read the concept; ConceptError if there is none, or if values are infinite or NaN."""
        concept = self.open()
        concept.check_finite()
        return concept


@checked
def read_concept(path: Path | str) -> Concept:
    """Read a concept from a file of any format or a run folder; ConceptError if there is none."""
    file = open_concept(Path(path))
    return recognize_format(file).read(file).with_nickname(Path(path))


@checked
def write_concept(concept: Concept, path: Path | str) -> None:
    """Write a concept atomically in pinxit's own format: safetensors with a checksum.

    RunError if there is a file at `path` that is no concept in this format.
    """
    path = Path(path)
    check_replaceable(path, DESCRIPTION_KEY)
    tensors: dict[str, Tensor] = {}
    for number, part in enumerate(concept.parts):
        tensors |= {f"{number}.{name}": tensor for name, tensor in part.tensors.items()}
    write_tensors(path, tensors, {DESCRIPTION_KEY: concept.description}, checksum=True)


def open_concept(path: Path) -> OpenedFile:
    """Open a file or run folder; an image has its hidden embedding as content."""
    file = open_any(path)
    hidden = read_hidden_embedding(path) if file.container == "image" else file.content
    return replace(file, content=hidden)


def recognize_format(file: OpenedFile) -> Format:
    """The format of a file, recognized by its content; ConceptError if no format matches."""
    best = max(all_formats().values(), key=lambda format_: format_.confidence(file))
    if best.confidence(file):
        return best
    if file.container == "image":
        raise ConceptError(
            f"{file.path} is an image without an embedding",
            f"to see how it was generated: pinxit show {typed(file.path)}",
        )
    keys = [key[:80] for key in sorted(file.content)] or ["nothing"]
    if file.tensors and _is_of_base_model(file.path):
        raise ConceptError(
            f"{file.path} is a base model or a part of one, not a concept",
            "give it as --base, --vae or --text-encoder",
        )
    if kind := network_kind(file.content):
        raise ConceptError(f"{file.path} is {kind[0]}, not a concept", kind[1])
    raise ConceptError(
        f"{file.path} has an unknown format: it contains {listed(keys)}",
        f"pinxit reads the formats {', '.join(registry.names('formats'))}",
    )


def _is_of_base_model(path: Path) -> bool:
    """Whether the file has a network of a base model under the names of its authors' code."""
    try:
        return path.is_file() and CheckpointSource(path, path.name).has("scheduler")
    except PinxitError:
        return False
