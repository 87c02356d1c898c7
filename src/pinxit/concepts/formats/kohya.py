"""kohya's LoRAs, and LyCORIS's LoHa, LoKr and DoRA: what AUTOMATIC1111 and ComfyUI open."""

import json
import re
from hashlib import file_digest
from pathlib import Path

import torch
from torch import Tensor

from pinxit.concepts.concept import Concept
from pinxit.concepts.format import EMB_PARAMS, Target, packed, unpacked
from pinxit.concepts.lora_file import (
    ALPHA,
    DAMAGED,
    MAGNITUDE,
    AdapterFile,
    Changes,
    Held,
    Layer,
    card,
    fits,
    rank_of,
)
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import replace_tensors
from pinxit.files.open_any import Opened
from pinxit.models.original_names import bare, denoiser_places, moved

# Their names of a layer's tensors, and peft's; all others are called alike.
_OURS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": MAGNITUDE,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_TARGETS = {"unet": "denoiser", "te": "text", "te1": "text", "te2": "text_2"}
# One of diffusers' converters leaves a `.` here and there.
_KEY = re.compile(
    r"lora_(unet|te[12]?)[_.](.+)\.(alpha|dora_scale|lora_magnitude_vector|hada_\w+|lokr_\w+"
    r"|lora_(?:down|up|mid)\.weight)"
)
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|clip_[lg]|emb_params)")
_WORD = "string_to_param.*"
# A layer's path has `_` for every `.`; these had it from the first.
_NAME = re.compile(
    r"transformer_blocks|skip_connection|text_projection|time_embedding|add_embedding|"
    r"conv_shortcut|time_emb_proj|output_blocks|input_blocks|middle_block|down_blocks|"
    r"time_embed|emb_layers|out_layers|text_model|mid_block|up_blocks|label_emb|in_layers|"
    r"self_attn|linear_1|linear_2|conv_out|proj_out|out_proj|conv_in|proj_in|to_out|q_proj|"
    r"k_proj|v_proj|to_q|to_k|to_v|[^_]+"
)
# XL's layers have the names of Stability's code, whose blocks all have two residual layers.
_SGM = denoiser_places([2] * 4, [3] * 4, [True] * 4)
# Where a block does not attend, its upsampler comes before.
_UPSAMPLERS = {
    f"output_blocks.{3 * block + 2}.1.conv": f"up_blocks.{block}.upsamplers.0.conv"
    for block in range(4)
}
_DIFFUSERS = {theirs: ours for ours, theirs in _SGM.items()} | _UPSAMPLERS
_PLACES = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding|encoder"
    r"|text_projection)(\.|$)"
)
# By the width of what the denoiser reads.
_VERSIONS = {768: "sd_v1", 1024: "sd_v2"}
_DEEP = re.compile(r"transformer_blocks\.[1-9]")
_LONGEST = 200  # letters: no layer's name has more
_KERNEL = 49  # numbers: no convolution here is wider than 7


class Kohya(AdapterFile):
    """Layers' names with `_`, `lora_down`, `lora_up` and alpha; words are bundled."""

    endings = (".safetensors",)
    used_by = "AUTOMATIC1111, Forge, ComfyUI, InvokeAI, kohya; a plain LoRA also in diffusers"
    kinds = frozenset({"lora", "dora", "loha", "lokr"})

    def recognises(self, found: Opened) -> bool:
        """By the beginnings of names."""
        return any(_KEY.fullmatch(name) for name in found.tensors)

    def unpack(self, found: Opened) -> Held:
        """Layers by their names in diffusers, whichever code's they have here."""
        held = Held()
        bundled: dict[str, Layer] = {}
        for key, tensor in found.tensors.items():
            if word := _BUNDLED.fullmatch(key):
                name = EMB_PARAMS if word[2] == _WORD else word[2]
                bundled.setdefault(word[1], {})[name] = tensor
                continue
            match = _KEY.fullmatch(key)
            if not match:
                raise ConceptError(f"{found.path} has `{key}`, which is no layer's", DAMAGED)
            layer = _dotted(match[2].replace(".", "_"))
            if layer is None:
                raise ConceptError(
                    f"{found.path} changes `{match[2]}`, a layer that no U-Net and no CLIP has",
                    "it is for another kind of base than Stable Diffusion 1, 2 or XL",
                )
            tensors = held.layers.setdefault((_TARGETS[match[1]], layer), {})
            tensors[_OURS.get(match[3], match[3])] = tensor
        for (_, layer), tensors in held.layers.items():
            _mend(tensors, f"{found.path}: the layer `{layer}`")
        held.words.update({n: unpacked(tables, EMB_PARAMS) for n, tables in bundled.items()})
        return held

    def write(self, concept: Concept, target: Target) -> None:
        """The changes and the words beside them."""
        changes, xl = self.changes(concept), _is_xl(concept)
        target.must_be_plain()
        prefixes = {"denoiser": "unet", "text": "te1" if xl else "te", "text_2": "te2"}
        tensors: Layer = {}
        for (network, _), layers in changes.items():
            for layer, held in layers.items():
                path = _underscored(layer, text=network != "denoiser", xl=xl)
                for name, tensor in held.items():
                    key = f"lora_{prefixes[network]}_{path}.{_THEIRS.get(name, name)}"
                    tensors[key] = _standing(tensor, held) if name == MAGNITUDE else tensor
        for part in concept.parts:
            if part.kind == "new-word":
                vectors, word = packed(part.tensors, _WORD), part.settings["word"]
                tensors |= {f"bundle_emb.{word}.{name}": table for name, table in vectors.items()}
        about = card(concept, target.out) | _said(concept, changes, target.out.stem, xl=xl)
        replace_tensors(target.out, tensors, about)
        replace_tensors(target.out, tensors, about | {"sshs_model_hash": _hash(target.out)})


def _dotted(path: str) -> str | None:
    """A layer by its name in diffusers; None if no U-Net and no text tower of CLIP's has it."""
    found = _NAME.findall(path[:_LONGEST])
    name = ".".join(found)
    layer = moved(name, _DIFFUSERS) or bare(name)
    return layer if "_".join(found) == path and _PLACES.match(layer) else None


def _underscored(layer: str, *, text: bool, xl: bool) -> str:
    """A layer as they call it; ConceptError if they have no name for it."""
    name = moved(layer, _SGM) if xl and not text else layer
    if text and layer != "text_projection":
        name = f"text_model.{layer}"
    path = (name or "").replace(".", "_")
    if _dotted(path) != layer:
        raise ConceptError(
            f"there is no name for the layer `{layer}` in files of this layout",
            "write it with --format diffusers-lora",
        )
    return path


def _mend(tensors: Layer, where: str) -> None:
    """DoRA's norms in a row, and a convolution in three factors as the same in two."""
    scale, up = tensors.get(MAGNITUDE), tensors.get("lora_B.weight")
    if scale is not None:
        if up is not None and scale.ndim > 1 and len(scale) == 1 < up.shape[:1].numel():
            raise ConceptError(
                f"{where} has DoRA's scales for what it takes in, {tuple(scale.shape)}",
                "pinxit reads those for what a layer gives out, as LyCORIS writes by itself",
            )
        tensors[MAGNITUDE] = scale.flatten()
    middle, down = tensors.get("lora_mid.weight"), tensors.get("lora_A.weight")
    if middle is not None and down is not None and middle.ndim == down.ndim == 4:
        first = down.flatten(1)
        small = middle.shape[2] * middle.shape[3] <= _KERNEL
        if middle.shape[:2] == (len(first), len(first)) and small:
            del tensors["lora_mid.weight"]
            tensors["lora_A.weight"] = torch.einsum("omkl,mi->oikl", middle.float(), first.float())


def _standing(scale: Tensor, layer: Layer) -> Tensor:
    """DoRA's norms as LyCORIS has them, one below the other."""
    return scale.reshape(-1, *[1] * (layer["lora_A.weight"].ndim - 1))


def _is_xl(concept: Concept) -> bool:
    """Whether the layers are of XL's networks: by what is told, by widths, or by how deep it is."""
    kind = fits(concept.parts)
    told = concept.provenance.told.get("ss_base_model_version", "")
    second = any(part.settings.get("target") == "text_2" for part in concept.parts)
    deep = any(_DEEP.search(name) for part in concept.parts for name in part.tensors)
    return told.startswith("sdxl") or second or deep or (kind is not None and len(kind.widths) > 1)


def _said(concept: Concept, changes: Changes, name: str, *, xl: bool) -> dict[str, str]:
    """What kohya's trainer would have said; what another program said goes before."""
    known, kind = concept.provenance, fits(concept.parts)
    layers = [layer for held in changes.values() for layer in held.values()]
    kinds = {kind for _, kind in changes}
    version = "sdxl_base_v1-0" if xl else _VERSIONS.get(kind.context if kind else 0, "")
    args = {"algo": min(kinds - {"dora"}, default="lora"), "dora_wd": str("dora" in kinds)}
    said = {
        "ss_base_model_version": version,
        "ss_v2": str(version == _VERSIONS[1024]),
        "ss_output_name": name,
        "ss_network_module": "networks.lora" if kinds == {"lora"} else "lycoris.kohya",
        "ss_network_args": json.dumps({} if kinds == {"lora"} else args),
        "ss_network_dim": _only({rank_of(layer) for layer in layers}),
        "ss_network_alpha": _only({float(layer[ALPHA]) for layer in layers}),
        "ss_sd_model_name": Path(known.base).name,
        "ss_steps": str(known.steps or ""),
        "ss_num_train_images": str(len(known.pictures) or ""),
    }
    told = {name: value for name, value in known.told.items() if name.startswith("ss_")}
    return {name: value for name, value in {**said, **told}.items() if value}


def _only(numbers: set[int] | set[float]) -> str:
    """The number that all layers have; kohya's word for many."""
    return str(*numbers) if len(numbers) == 1 else "Dynamic"


def _hash(file: Path) -> str:
    """The fingerprint by which AUTOMATIC1111 knows a file: that of its tensors alone."""
    with file.open("rb") as opened:
        opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        return file_digest(opened, "sha256").hexdigest()
