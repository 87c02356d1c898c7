"""diffusers LoRAs: `pytorch_lora_weights` with alpha in the metadata and embeddings apart."""

import json
from pathlib import Path

from pinxit.adapters.lora_part import ALPHA, MAGNITUDE, LoraPart
from pinxit.adapters.parts import EmbeddingPart
from pinxit.concepts.adapter_reader import LayerChanges, LayerTensors, has_adapter, read_layers
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import EMB_PARAMS, LIKELY, Target, tables_from_keys, tables_to_keys
from pinxit.concepts.layer_names import is_mmdit_layer
from pinxit.concepts.lora_file import AdapterFormat, modelspec_metadata
from pinxit.concepts.peft_settings import PEFT_METADATA_KEY, peft_settings
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import make_folder
from pinxit.files.open_any import OpenedFile, open_any
from pinxit.files.safetensors_file import write_tensors

_A = "lora_A.weight"
_TARGETS = {"text_encoder": "text", "text_encoder_2": "text_2"}
_PREFIXES = {target: prefix for prefix, target in _TARGETS.items()}
_WEIGHTS = "pytorch_lora_weights"


class DiffusersLora(AdapterFormat):
    """A file, or a folder with one; an embedding trained with the LoRA has its own `_emb` file."""

    suffixes = (".safetensors", "")
    preferred_for = frozenset({("adapters", "")})
    used_by = "diffusers' `load_lora_weights`"
    variants = frozenset({"lora", "dora"})

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY if it has adapters under the names of diffusers or peft."""
        return LIKELY if has_adapter(file, peft_names=True) else 0

    def unpack(self, file: OpenedFile) -> LayerChanges:
        """The layers with their alphas, and the embedding from the `_emb` file."""
        content = read_layers(file)
        embedding_file = _embedding_file(file.path)
        if embedding_file.is_file():
            embedding = open_any(embedding_file)
            tables = tables_from_keys(embedding.tensors, EMB_PARAMS)
            content.embeddings[embedding.text("word") or ""] = tables
        return content

    def write(self, concept: Concept, target: Target) -> None:
        """Write a file (in a folder if OUT has no suffix) with the alphas in its metadata."""
        loras, out = self.lora_parts(concept), target.out
        target.check_no_conversion()
        embeddings = concept.parts_of(EmbeddingPart)
        if len(embeddings) > 1 or len({part.network for part in loras}) < len(loras):
            raise ConceptError(
                f"{concept.token} has {len(embeddings)} embeddings and {len(loras)} adapters; "
                "this format stores only one embedding, and one adapter for each network",
                "write it with --format kohya",
            )
        if not out.suffix:
            make_folder(out)
            out /= f"{_WEIGHTS}.safetensors"
        for part in embeddings:
            metadata = {"format": "pt", "word": part.token}
            write_tensors(_embedding_file(out), tables_to_keys(part.tables, "clip_l"), metadata)
        tensors: LayerTensors = {}
        settings: dict[str, object] = {}
        for part in loras:
            is_transformer = any(map(is_mmdit_layer, part.layers))
            prefix = _PREFIXES.get(part.network, "transformer" if is_transformer else "unet")
            tensors |= _network_tensors(prefix, part)
            network_settings = peft_settings(part) | {"use_dora": part.variant == "dora"}
            settings |= {f"{prefix}.{name}": value for name, value in network_settings.items()}
        peft_metadata = {PEFT_METADATA_KEY: json.dumps(settings, sort_keys=True)}
        write_tensors(out, tensors, modelspec_metadata(concept, target.out) | peft_metadata)


def _embedding_file(file: Path) -> Path:
    """The file in which the scripts of diffusers store an embedding trained with the LoRA."""
    stem = file.absolute().parent.name if file.stem == _WEIGHTS else file.stem
    return file.with_name(f"{stem}_emb.safetensors")


def _network_tensors(prefix: str, part: LoraPart) -> LayerTensors:
    """A network's tensors with names and shapes that all releases of transformers read."""
    network_tensors: LayerTensors = {}
    for layer, tensors in part.layers.items():
        has_prefix = prefix in _TARGETS and layer != "text_projection"
        path = f"{prefix}.text_model.{layer}" if has_prefix else f"{prefix}.{layer}"
        for name, tensor in tensors.items():
            if name == MAGNITUDE:
                # Text encoders need the suffix; U-Nets and transformers accept the short name.
                leaf = f"{name}.weight" if prefix in _TARGETS else name
                shape = (1, -1, 1, 1) if tensors[_A].ndim == 4 else (-1,)
                network_tensors[f"{path}.{leaf}"] = tensor.reshape(shape)
            elif name != ALPHA:
                network_tensors[f"{path}.{name}"] = tensor
    return network_tensors
