"""kohya LoRAs, and LoHa, LoKr and DoRA of LyCORIS: the format of AUTOMATIC1111 and ComfyUI."""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from pinxit.adapters.lora_part import (
    DAMAGED_HINT,
    MAGNITUDE,
    LayerTensors,
    LoraPart,
    lora_family,
)
from pinxit.adapters.parts import EmbeddingPart
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import EMB_PARAMS, LIKELY, Target, tables_from_keys, tables_to_keys
from pinxit.concepts.lora_file import AdapterFormat, LayerChanges, modelspec_metadata
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import write_tensors
from pinxit.files.open_any import OpenedFile
from pinxit.files.safetensors_file import file_chunks
from pinxit.models.family import KohyaNames, all_facts
from pinxit.models.original_names import renamed, unet_name_map, without_prefix

# kohya's tensor names and those of peft; all other names are the same.
_PEFT_NAMES = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": MAGNITUDE,
}
_KOHYA_NAMES = {peft_name: name for name, peft_name in _PEFT_NAMES.items()}
_TARGETS = {"unet": "denoiser", "te": "text", "te1": "text", "te2": "text_2"}
# The `.` in layer names comes from one of the converters of diffusers.
_KEY = re.compile(
    r"lora_(unet|te[12]?)[_.](.+)\.(alpha|dora_scale|lora_magnitude_vector|hada_\w+|lokr_\w+"
    r"|lora_(?:down|up|mid)\.weight)"
)
_BUNDLE_KEY = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|clip_[lg]|emb_params)")
_EMBEDDING_KEY = "string_to_param.*"
# In layer names every `.` has become `_`; these parts of names contain `_` themselves.
_NAME_PART = re.compile(
    r"transformer_blocks|skip_connection|text_projection|time_embedding|add_embedding|"
    r"conv_shortcut|time_emb_proj|output_blocks|input_blocks|middle_block|down_blocks|"
    r"time_embed|emb_layers|out_layers|text_model|mid_block|up_blocks|label_emb|in_layers|"
    r"self_attn|linear_1|linear_2|conv_out|proj_out|out_proj|conv_in|proj_in|to_out|q_proj|"
    r"k_proj|v_proj|to_q|to_k|to_v|[^_]+"
)
# SDXL layers have the names of Stability's code; all its blocks have two residual layers.
_SGM = unet_name_map([2] * 4, [3] * 4, [True] * 4)
# In blocks without attention the upsampler has a smaller index.
_UPSAMPLERS = {
    f"output_blocks.{3 * block + 2}.1.conv": f"up_blocks.{block}.upsamplers.0.conv"
    for block in range(4)
}
_DIFFUSERS = {original: name for name, original in _SGM.items()} | _UPSAMPLERS
_KNOWN_LAYER = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|encoder"
    r"|text_projection)(\.|$)"
)
# The names for layers of an unknown base model.
_UNKNOWN_BASE = KohyaNames("", {"denoiser": "unet", "text": "te"})
_MAX_NAME_LENGTH = 200  # no layer has a longer name
_MAX_KERNEL_SIZE = 49  # the largest kernels have 7 x 7 weights


class Kohya(AdapterFormat):
    """Layer names with `_`, `lora_down`, `lora_up` and alpha; embeddings are bundled."""

    suffixes = (".safetensors",)
    preferred_for = frozenset({("adapters", ".safetensors"), ("adapters", ".pt")})
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, kohya; a plain LoRA also in diffusers"
    variants = frozenset({"lora", "dora", "loha", "lokr"})

    def confidence(self, file: OpenedFile) -> float:
        """LIKELY if a tensor has a name of kohya's scheme."""
        return LIKELY if any(_KEY.fullmatch(name) for name in file.tensors) else 0

    def unpack(self, file: OpenedFile) -> LayerChanges:
        """The layers under their diffusers names, and the bundled embeddings."""
        content = LayerChanges()
        bundle: dict[str, dict[str, Tensor]] = {}
        for key, tensor in file.tensors.items():
            if embedding := _BUNDLE_KEY.fullmatch(key):
                name = EMB_PARAMS if embedding[2] == _EMBEDDING_KEY else embedding[2]
                bundle.setdefault(embedding[1], {})[name] = tensor
                continue
            match = _KEY.fullmatch(key)
            if not match:
                raise ConceptError(
                    f"{file.path} has a tensor `{key}`, which belongs to no layer", DAMAGED_HINT
                )
            layer = _diffusers_name(match[2].replace(".", "_"))
            if layer is None:
                raise ConceptError(
                    f"{file.path} changes a layer `{match[2]}`, which no U-Net or CLIP has",
                    "it is for another kind of base model than Stable Diffusion 1, 2 or XL",
                )
            tensors = content.layers.setdefault((_TARGETS[match[1]], layer), {})
            tensors[_PEFT_NAMES.get(match[3], match[3])] = tensor
        for (_, layer), tensors in content.layers.items():
            _normalize_layer(tensors, f"{file.path}: the layer `{layer}`")
        for token, tables in bundle.items():
            content.embeddings[token] = tables_from_keys(tables, EMB_PARAMS)
        return content

    def write(self, concept: Concept, target: Target) -> None:
        """Write the adapters and bundle the embeddings."""
        loras, names = self.lora_parts(concept), _names_of_base(concept)
        target.check_no_conversion()
        file_tensors: dict[str, Tensor] = {}
        for part in loras:
            for layer, tensors in part.layers.items():
                path = _kohya_name(layer, names, text=part.network != "denoiser")
                path = f"lora_{names.prefixes[part.network]}_{path}"
                for name, tensor in tensors.items():
                    key = f"{path}.{_KOHYA_NAMES.get(name, name)}"
                    is_norm = name == MAGNITUDE
                    file_tensors[key] = _dora_column(tensor, tensors) if is_norm else tensor
        for part in concept.parts:
            if isinstance(part, EmbeddingPart):
                for name, table in tables_to_keys(part.tables, _EMBEDDING_KEY).items():
                    file_tensors[f"bundle_emb.{part.token}.{name}"] = table
        kohya_fields = _kohya_metadata(concept, loras, target.out.stem, names)
        metadata = modelspec_metadata(concept, target.out) | kohya_fields
        metadata["sshs_model_hash"] = _tensor_hash(file_tensors)
        write_tensors(target.out, file_tensors, metadata)


def _diffusers_name(path: str) -> str | None:
    """The diffusers name of a layer; None if no U-Net and no CLIP text encoder has it."""
    name_parts = _NAME_PART.findall(path[:_MAX_NAME_LENGTH])
    name = ".".join(name_parts)
    layer = renamed(name, _DIFFUSERS) or without_prefix(name)
    return layer if "_".join(name_parts) == path and _KNOWN_LAYER.match(layer) else None


def _kohya_name(layer: str, names: KohyaNames, *, text: bool) -> str:
    """The name of a layer in kohya's scheme; ConceptError if there is none."""
    name = renamed(layer, _SGM) if names.original_unet and not text else layer
    if text and layer != "text_projection":
        name = f"text_model.{layer}"
    path = (name or "").replace(".", "_")
    if _diffusers_name(path) != layer:
        raise ConceptError(
            f"this format has no name for the layer `{layer}`",
            "write it with --format diffusers-lora",
        )
    return path


def _normalize_layer(tensors: dict[str, Tensor], where: str) -> None:
    """Flatten DoRA's magnitudes, and merge a convolution's `lora_mid` into its down factor."""
    scale, up = tensors.get(MAGNITUDE), tensors.get("lora_B.weight")
    if scale is not None:
        num_outputs = up.shape[:1].numel() if up is not None else 1
        if scale.ndim > 1 and len(scale) == 1 and num_outputs > 1:
            raise ConceptError(
                f"{where} has DoRA magnitudes for its inputs, {tuple(scale.shape)}",
                "pinxit reads DoRA magnitudes for the outputs of a layer, the default of LyCORIS",
            )
        tensors[MAGNITUDE] = scale.flatten()
    middle, down = tensors.get("lora_mid.weight"), tensors.get("lora_A.weight")
    if middle is not None and down is not None and middle.ndim == down.ndim == 4:
        matrix = down.flatten(1)
        is_small = middle.shape[2] * middle.shape[3] <= _MAX_KERNEL_SIZE
        if middle.shape[:2] == (len(matrix), len(matrix)) and is_small:
            del tensors["lora_mid.weight"]
            tensors["lora_A.weight"] = torch.einsum("omkl,mi->oikl", middle.float(), matrix.float())


def _dora_column(scale: Tensor, layer: LayerTensors) -> Tensor:
    """DoRA's magnitudes as a column, the shape of LyCORIS."""
    return scale.reshape(-1, *[1] * (layer["lora_A.weight"].ndim - 1))


def _names_of_base(concept: Concept) -> KohyaNames:
    """kohya's names for the base model, by its layers, the file's metadata, or its widths."""
    version = concept.provenance.metadata.get("ss_base_model_version", "")
    loras = [part for part in concept.parts if isinstance(part, LoraPart)]
    layers = [f"{part.network}.{layer}." for part in loras for layer in part.layers]
    known = [facts.kohya for facts in all_facts() if facts.kohya]
    for names in known:
        if any(re.search(names.own_layers, layer) for layer in layers):
            return names
    for names in known:
        if version.startswith(names.version.partition("_base")[0]):
            return names
    family = lora_family(loras)
    return (family.kohya if family else None) or _UNKNOWN_BASE


def _kohya_metadata(
    concept: Concept, loras: Sequence[LoraPart], name: str, names: KohyaNames
) -> dict[str, str]:
    """The metadata that kohya's trainer writes; values of the original file have priority."""
    provenance = concept.provenance
    kinds = {part.variant for part in loras}
    args = {"algo": min(kinds - {"dora"}, default="lora"), "dora_wd": str("dora" in kinds)}
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
