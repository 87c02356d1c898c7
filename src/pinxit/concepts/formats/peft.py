"""A folder of peft: `adapter_model.safetensors` with `adapter_config.json`."""

import json

from pinxit.concepts.concept import Concept
from pinxit.concepts.format import CERTAIN, Target
from pinxit.concepts.lora_file import AdapterFormat, modelspec_metadata
from pinxit.concepts.peft_settings import peft_settings
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import make_folder, write_bytes
from pinxit.files.open_any import PEFT_CONFIG, OpenedFile
from pinxit.files.safetensors_file import write_tensors

_PREFIX = "base_model.model."


class Peft(AdapterFormat):
    """The LoRA of one network under the names of peft's own files."""

    suffixes = ("",)
    used_by = "peft's `PeftModel.from_pretrained`, with the network of the base model"
    variants = frozenset({"lora", "dora"})

    def confidence(self, file: OpenedFile) -> float:
        """CERTAIN if all tensors have peft's prefix and its settings are there."""
        has_prefix = bool(file.tensors) and all(n.startswith(_PREFIX) for n in file.tensors)
        return CERTAIN if has_prefix and PEFT_CONFIG in file.metadata else 0

    def write(self, concept: Concept, target: Target) -> None:
        """Write the adapter of the only network that was trained."""
        loras = self.lora_parts(concept)
        target.check_no_conversion()
        if len([part for part in concept.parts if part.tensors]) > 1:
            raise ConceptError(
                f"{concept.token} has more than one LoRA; this format stores one network",
                "write it with --format diffusers-lora",
            )
        part = loras[0]
        make_folder(target.out)
        tensors = {
            f"{_PREFIX}{name}": tensor
            for name, tensor in part.tensors.items()
            if not name.endswith(".alpha")
        }
        settings = peft_settings(part) | {"peft_type": "LORA", "use_dora": part.variant == "dora"}
        text = json.dumps(settings, indent=2, sort_keys=True)
        write_bytes(target.out / PEFT_CONFIG, [text.encode()])
        metadata = modelspec_metadata(concept, target.out)
        write_tensors(target.out / "adapter_model.safetensors", tensors, metadata)
