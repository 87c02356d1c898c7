"""Full differences: what an adapter of any kind adds to each weight of one base model."""

import torch
from torch import Tensor

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import Part
from pinxit.adapters.peft_layers import base_layer, merge_weights, module_paths
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.full_model_file import DTYPES, base_path
from pinxit.concepts.kohya_file import write_kohya_file
from pinxit.concepts.lora_file import AdapterFormat
from pinxit.files.open_any import OpenedFile
from pinxit.models.model import Model
from pinxit.models.open_base import open_base


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
        model = open_base(base_path(concept, target))
        dtype = DTYPES[target.precision] if target.precision else torch.float32
        parts = [
            _difference(part, model, dtype) if isinstance(part, LoraPart) else part
            for part in concept.parts
        ]
        whole = Concept(tuple(parts), concept.provenance)
        write_kohya_file(whole, [], target)


def _difference(part: LoraPart, model: Model, dtype: torch.dtype) -> Part:
    """The change of each weight by an adapter at strength 1."""
    adapter, network = LoraAdapter.restore(part, model), model.networks[part.network]
    paths, differences = module_paths(network), dict[str, Tensor]()
    for name, weights in adapter.layers.items():
        layer = base_layer(network.get_submodule(paths[name]))
        with torch.no_grad():
            original, merged = merge_weights(layer, part.variant, weights, adapter.alphas.get(name))
            differences[f"{name}.weight"] = (merged - original).to(dtype).contiguous().cpu()
    return DifferencePart(part.network, differences)
