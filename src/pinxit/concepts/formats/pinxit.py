"""pinxit's own format: embeddings, adapters and full weights with complete provenance."""

from torch import Tensor

from pinxit.concepts.concept import Concept, from_description
from pinxit.concepts.format import CERTAIN, Format, Target
from pinxit.concepts.read import write_concept
from pinxit.files.open_any import OpenedFile
from pinxit.files.safetensors_file import CHECKSUM, damaged_error

# The start of the description in files of version 1, which have no checksum.
_WITHOUT_CHECKSUM = '{"format": 1,'


class Pinxit(Format):
    """A safetensors file with the tensors of all parts and a description in its metadata."""

    contents = ("embeddings", "adapters", "full weights")
    suffixes = (".safetensors",)
    used_by = "pinxit"

    def confidence(self, file: OpenedFile) -> float:
        """CERTAIN if the metadata has a description."""
        return CERTAIN if "pinxit" in file.metadata else 0

    def read(self, file: OpenedFile) -> Concept:
        """Read the concept; FileError if its checksum is missing."""
        description = file.metadata["pinxit"]
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in file.tensors.items():
            number, _, inner = name.partition(".")
            parts.setdefault(number, {})[inner] = tensor
        concept = from_description(description, parts, file.path)
        if CHECKSUM not in file.metadata and not description.startswith(_WITHOUT_CHECKSUM):
            raise damaged_error(file.path)
        return concept

    def write(self, concept: Concept, target: Target) -> None:
        """Write the concept unchanged."""
        target.check_no_conversion()
        write_concept(concept, target.out)
