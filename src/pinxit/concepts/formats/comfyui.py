"""LoRAs of transformers under the names that ComfyUI has for all models: `diffusion_model.`."""

from torch import Tensor

from pinxit.adapters.lora_part import MAGNITUDE
from pinxit.concepts.adapter_reader import has_adapter
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import LIKELY, Target
from pinxit.concepts.joined_lora import only_denoiser_lora, original_layers, original_table
from pinxit.concepts.lora_file import AdapterFormat, modelspec_metadata
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile
from pinxit.files.safetensors_file import write_tensors

_PREFIX = "diffusion_model."


class Comfyui(AdapterFormat):
    """The layers of the authors' code with a prefix, `lora_A`, `lora_B` and alpha."""

    suffixes = (".safetensors",)
    used_by = "ComfyUI; LoRAs of transformers only"
    variants = frozenset({"lora", "dora"})

    def confidence(self, file: OpenedFile) -> float:
        """More than LIKELY if an adapter has peft's names after the prefix."""
        is_named = any(name.startswith(_PREFIX) for name in file.tensors)
        return LIKELY + 0.01 if is_named and has_adapter(file, peft_names=True) else 0

    def write(self, concept: Concept, target: Target) -> None:
        """Write the LoRA of the denoiser."""
        loras, table = self.lora_parts(concept), original_table(concept.parts)
        target.check_no_conversion()
        lora = only_denoiser_lora(concept, loras)
        if table is None or lora is None:
            raise ConceptError(
                f"{concept.token} is not one LoRA of a transformer with names of its authors' code",
                "write it with --format kohya, or with diffusers-lora if it changes text encoders",
            )
        tensors: dict[str, Tensor] = {}
        for layer, values in original_layers(lora, table).items():
            for name, value in values.items():
                is_magnitude = name == MAGNITUDE
                leaf = "dora_scale" if is_magnitude else name
                own = value.reshape(-1, 1) if is_magnitude else value
                tensors[f"{_PREFIX}{layer}.{leaf}"] = own
        write_tensors(target.out, tensors, modelspec_metadata(concept, target.out))
