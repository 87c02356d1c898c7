"""Full differences: what an adapter of any kind adds to each weight of one base model."""

import torch

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.lora_part import LoraPart
from pinxit.concepts.base_weights import BaseWeights
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.full_model_file import DTYPES, in_dtype
from pinxit.concepts.kohya_file import write_kohya_file
from pinxit.concepts.lora_file import AdapterFormat
from pinxit.files.open_any import OpenedFile


class FullDifference(AdapterFormat):
    """`diff` tensors of the base model's size, for programs that cannot use the adapter itself."""

    suffixes = (".safetensors",)
    used_by = "ComfyUI, AUTOMATIC1111, Forge, InvokeAI, LyCORIS; in all of them the same change"
    variants = frozenset({"lora", "dora", "loha", "lokr", "oft"})

    def confidence(self, file: OpenedFile) -> float:  # noqa: ARG002
        """0: such files are read as files of kohya's layout."""
        return 0

    def write(self, concept: Concept, target: Target) -> None:
        """Write the change of each weight on the base model of the target, or the trained one."""
        if not self.stores(concept):
            self.lora_parts(concept)  # raises, and says what it is
        base = BaseWeights(target.base, concept)
        dtype = DTYPES[target.precision] if target.precision else torch.float32
        parts = [
            _difference(part, base, dtype) if isinstance(part, LoraPart) else part
            for part in concept.parts
        ]
        write_kohya_file(Concept(tuple(parts), concept.provenance), [], target)


def _difference(part: LoraPart, base: BaseWeights, dtype: torch.dtype) -> DifferencePart:
    """The change of each weight by an adapter at strength 1."""
    changes = {f"{layer}.weight": base.difference(part, layer) for layer in part.layers}
    return DifferencePart(
        part.network, {n: in_dtype(t, dtype, n).contiguous() for n, t in changes.items()}
    )
