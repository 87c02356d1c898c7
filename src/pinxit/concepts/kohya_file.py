"""Write adapters under the names of kohya's scripts, LyCORIS and AUTOMATIC1111."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.lora_part import ALPHA, MAGNITUDE, LayerTensors, LoraPart, factor_rank
from pinxit.adapters.parts import EmbeddingPart, Part
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import EMB_PARAMS, Target, tables_to_keys, write_embedding
from pinxit.concepts.joined_lora import original_layers, original_table
from pinxit.concepts.layer_names import SGM_NAMES, is_mmdit_layer, parse_layer
from pinxit.concepts.lora_file import adapter_family, modelspec_metadata
from pinxit.errors import ConceptError
from pinxit.files.safetensors_file import file_chunks, write_tensors
from pinxit.models.family import KohyaNames, all_facts
from pinxit.models.joined_layers import LayerTable
from pinxit.models.original_names import renamed
from pinxit.models.prompt import file_name

# kohya's names of tensors that peft names otherwise; all other names are the same.
_KOHYA_NAMES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    MAGNITUDE: "dora_scale",
}
_NORM = re.compile(r"norm\d?$")
# Layers of a U-Net with kernels of 3 x 3, and layers that are matrices or kernels of 1 x 1.
_KERNEL = re.compile(r"(^|\.)(conv_in|conv_out|conv[12]?)$")
_POINT = re.compile(r"attentions\.\d+\.proj_(in|out)$")
_EMBEDDING_KEY = "string_to_param.*"
# The names for layers of an unknown base model.
_UNKNOWN_BASE = KohyaNames("", {"denoiser": "unet", "text": "te"})


def write_kohya_file(concept: Concept, loras: Sequence[LoraPart], target: Target) -> None:
    """Write LoRAs with an alpha in each layer, and the other parts of a concept.

    Embeddings are bundled, or written to files next to it.
    """
    names, file_tensors = _names_of_base(concept), dict[str, Tensor]()
    if target.separate_embeddings:
        concept = write_embedding_files(concept, target)
    table = original_table(concept.parts)
    for part in loras:
        if table and part.network == "denoiser":
            file_tensors |= _transformer_tensors(part, table)
        else:
            file_tensors |= _lora_tensors(part, names)
    for part in concept.parts_of(DifferencePart):
        file_tensors |= _difference_tensors(part, names)
    for part in concept.parts_of(EmbeddingPart):
        for name, table in tables_to_keys(part.tables, _EMBEDDING_KEY).items():
            file_tensors[f"bundle_emb.{part.token}.{name}"] = table
    kohya_fields = _kohya_metadata(concept, loras, target.out.stem, names)
    metadata = modelspec_metadata(concept, target.out) | kohya_fields
    metadata["sshs_model_hash"] = _tensor_hash(file_tensors)
    write_tensors(target.out, file_tensors, metadata)


def _lora_tensors(part: LoraPart, names: KohyaNames) -> dict[str, Tensor]:
    """The tensors of a U-Net's or a text encoder's LoRA."""
    named: dict[str, Tensor] = {}
    for layer, tensors in part.layers.items():
        path = _layer_path(part.network, layer, names)
        if part.variant == "lokr" and (sides := _kernel_sides(layer, names)) is not None:
            tensors = whole_lokr(tensors, sides)
        named |= {f"{path}.{n}": t for n, t in _kohya_tensors(tensors).items()}
    return named


def _transformer_tensors(part: LoraPart, table: LayerTable) -> dict[str, Tensor]:
    """A transformer's LoRA under the names of its authors' code, as kohya's trainer writes it.

    LoHa and LoKr cannot be joined: they have the names of diffusers with LyCORIS' prefix.
    """
    is_lora = part.variant in ("lora", "dora")
    layers = original_layers(part, table) if is_lora else part.layers
    prefix = "lora_unet" if is_lora else "lycoris"
    return {
        f"{prefix}_{layer.replace('.', '_')}.{name}": tensor
        for layer, tensors in layers.items()
        for name, tensor in _kohya_tensors(tensors).items()
    }


def embedding_parts(parts: Sequence[Part], out: Path) -> list[EmbeddingPart]:
    """The embeddings, which get files next to `out`; ConceptError if there is such a file."""
    embeddings = [part for part in parts if isinstance(part, EmbeddingPart)]
    for file in (embedding_file(out, part.token) for part in embeddings):
        if file == out or file.exists():
            raise ConceptError(f"{file} exists already", "choose a folder without such a file")
    return embeddings


def write_embedding_files(concept: Concept, target: Target) -> Concept:
    """Write each embedding to a file named after its token, next to the target; return the rest."""
    out = target.out
    embeddings = embedding_parts(concept.parts, out)
    for part in embeddings:
        file = embedding_file(out, part.token)
        provenance = replace(concept.provenance, token=part.token)
        write_embedding(tables_to_keys(part.tables, EMB_PARAMS), Concept((part,), provenance), file)
    others = tuple(part for part in concept.parts if part not in embeddings)
    return replace(concept, parts=others)


def embedding_file(out: Path, token: str) -> Path:
    """The file for an embedding beside the output file or folder."""
    return out.with_name(f"{file_name(token)}.safetensors")


def _kernel_sides(layer: str, names: KohyaNames) -> tuple[int, ...] | None:
    """The sides of a layer's kernel, () for a matrix; None if the base model is not known."""
    if not names.version:
        return None
    is_point = _POINT.search(layer) and names.version == "sd_v1"
    if layer.endswith("conv_shortcut") or is_point:
        return (1, 1)
    return (3, 3) if _KERNEL.search(layer) else ()


def whole_lokr(tensors: LayerTensors, sides: tuple[int, ...]) -> LayerTensors:
    """A LoKr of two whole factors without scale: InvokeAI and LyCORIS read no other one.

    The second factor of a convolution with these sides is a kernel, for 1 x 1 as well.
    """
    rank, alpha = factor_rank(tensors), tensors[ALPHA]
    if "lokr_t2" in tensors:
        return tensors
    first, second = tensors.get("lokr_w1"), tensors.get("lokr_w2")
    if first is None:
        first = tensors["lokr_w1_a"].float() @ tensors["lokr_w1_b"].float()
    if second is None:
        second = tensors["lokr_w2_a"].float() @ tensors["lokr_w2_b"].float()
    if rank:
        second = second.float() * (float(alpha) / rank)
    return {
        "lokr_w1": first,
        "lokr_w2": second.reshape(len(second), -1, *sides) if sides else second.flatten(1),
        ALPHA: torch.tensor(1.0),
    }


def _layer_path(network: str, layer: str, names: KohyaNames) -> str:
    """The name of a layer in kohya's scheme; ConceptError if there is none."""
    text = network != "denoiser"
    name = renamed(layer, SGM_NAMES) if names.original_unet and not text else layer
    if text and layer != "text_projection":
        name = f"text_model.{layer}"
    path = (name or "").replace(".", "_")
    if parse_layer(path) != ("text" if text else "denoiser", layer) or is_mmdit_layer(layer):
        raise ConceptError(
            f"this format has no name for the layer `{layer}`",
            "write it with --format diffusers-lora",
        )
    return f"lora_{names.prefixes[network]}_{path}"


def _kohya_tensors(tensors: LayerTensors) -> LayerTensors:
    """A layer's tensors with kohya's names and shapes."""
    named = {_KOHYA_NAMES.get(name, name): tensor for name, tensor in tensors.items()}
    if MAGNITUDE in tensors:  # a column is the shape of LyCORIS
        ones = [1] * (tensors["lora_A.weight"].ndim - 1)
        named["dora_scale"] = named["dora_scale"].reshape(-1, *ones)
    return named


def _difference_tensors(part: DifferencePart, names: KohyaNames) -> LayerTensors:
    """Differences of weights with the names of LyCORIS, which has others for norms."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in part.weights.items():
        layer, _, leaf = name.rpartition(".")
        path = _layer_path(part.network, layer, names)
        is_norm = _NORM.search(layer)
        key = {"weight": "w_norm" if is_norm else "diff", "bias": "b_norm" if is_norm else "diff_b"}
        tensors[f"{path}.{key[leaf]}"] = tensor
    return tensors


def _names_of_base(concept: Concept) -> KohyaNames:
    """kohya's names for the base model, by its layers, the file's metadata, or its widths."""
    version = concept.provenance.metadata.get("ss_base_model_version", "")
    layers = [
        f"{part.network}.{name}"
        for part in concept.parts
        if isinstance(part, LoraPart | DifferencePart)
        for name in part.tensors
    ]
    known = [facts.kohya for facts in all_facts() if facts.kohya]
    for names in known:
        if any(re.search(names.own_layers, layer) for layer in layers):
            return names
    for names in known:
        if version.startswith(names.version.partition("_base")[0]):
            return names
    family = adapter_family(concept.parts)
    return (family.kohya if family else None) or _UNKNOWN_BASE


def _kohya_metadata(
    concept: Concept, loras: Sequence[LoraPart], name: str, names: KohyaNames
) -> dict[str, str]:
    """The metadata that kohya's trainer writes; values of the original file have priority."""
    provenance = concept.provenance
    kinds = {part.variant for part in loras}
    algorithm = min(kinds - {"dora"}, default="lora" if kinds else "full")
    args = {"algo": algorithm, "dora_wd": str("dora" in kinds)}
    fields = {
        "ss_base_model_version": names.version,
        "ss_v2": str(names.version == "sd_v2"),
        "ss_output_name": name,
        "ss_network_module": "networks.lora" if kinds == {"lora"} else "lycoris.kohya",
        "ss_network_args": json.dumps({} if kinds == {"lora"} else args),
        "ss_network_dim": _common_value({rank for part in loras for rank in part.ranks}),
        "ss_network_alpha": _common_value({alpha for part in loras for alpha in part.alphas}),
        "ss_sd_model_name": Path(provenance.base).name,
        "ss_steps": str(provenance.steps or ""),
        "ss_num_train_images": str(len(provenance.images) or ""),
    }
    fields |= {key: value for key, value in provenance.metadata.items() if key.startswith("ss_")}
    return {key: value for key, value in fields.items() if value}


def _common_value(values: set[int] | set[float]) -> str:
    """The value that all layers have, or kohya's name for different values."""
    return str(*values) if len(values) == 1 else "Dynamic"


def _tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file's tensors without its header, by which AUTOMATIC1111 identifies a file."""
    digest = sha256()
    _length, _header, *chunks = file_chunks(tensors, {}, checksum=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
