"""kohya LoRAs, and LoHa, LoKr and DoRA of LyCORIS: the format of AUTOMATIC1111 and ComfyUI."""

from pinxit.adapters.lora_part import LoraPart
from pinxit.concepts.adapter_reader import has_adapter
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import LIKELY, Target
from pinxit.concepts.kohya_file import write_kohya_file
from pinxit.concepts.layer_names import is_mmdit_layer
from pinxit.concepts.lora_file import AdapterFormat
from pinxit.files.open_any import OpenedFile


class Kohya(AdapterFormat):
    """Layer names with `_`, `lora_down`, `lora_up` and alpha; embeddings are bundled."""

    suffixes = (".safetensors",)
    preferred_for = frozenset({("adapters", ".safetensors"), ("adapters", ".pt")})
    used_by = "ComfyUI, Forge; all but DoRA in AUTOMATIC1111, InvokeAI; LoRA in kohya, diffusers"
    variants = frozenset({"lora", "dora", "loha", "lokr"})

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY if a tensor has a name of an adapter that peft does not write."""
        return LIKELY if has_adapter(file, peft_names=False) else 0

    def stores(self, concept: Concept) -> bool:
        """Whether it has names for all layers of the LoRAs: not for those of transformers."""
        layers = (layer for part in concept.parts_of(LoraPart) for layer in part.layers)
        return not any(map(is_mmdit_layer, layers)) and super().stores(concept)

    def write(self, concept: Concept, target: Target) -> None:
        """Write the adapters, with the embeddings bundled or in files next to it."""
        loras = self.lora_parts(concept)
        target.check_no_conversion()
        write_kohya_file(concept, loras, target)
