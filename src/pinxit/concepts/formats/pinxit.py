"""pinxit's own: words, adapters and tuned networks with all that is known of them."""

from torch import Tensor

from pinxit.concepts.concept import Concept, described
from pinxit.concepts.format import Format, Target
from pinxit.files.open_any import Opened
from pinxit.files.safetensors_file import SEAL, damaged

# How a concept of the first format begins to tell of itself.
_UNSEALED = '{"format": 1,'


class Pinxit(Format):
    """One safetensors file: the tensors by part, and a description in its metadata."""

    holds = ("words", "adapters", "networks")
    endings = (".safetensors",)
    used_by = "pinxit"

    def recognises(self, found: Opened) -> bool:
        """By the description."""
        return "pinxit" in found.metadata

    def read(self, found: Opened) -> Concept:
        """The concept as it was saved; FileError if it has lost its seal."""
        about = found.metadata["pinxit"]
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in found.tensors.items():
            number, _, inner = name.partition(".")
            parts.setdefault(number, {})[inner] = tensor
        concept = described(about, parts, found.path)
        if SEAL not in found.metadata and not about.startswith(_UNSEALED):
            raise damaged(found.path)
        return concept

    def write(self, concept: Concept, target: Target) -> None:
        """The concept as it is."""
        target.must_be_plain()
        concept.save(target.out)
