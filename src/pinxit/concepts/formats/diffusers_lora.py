"""diffusers' LoRAs: `pytorch_lora_weights`, with alpha in the metadata and a word beside."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pinxit.concepts.concept import Concept
from pinxit.concepts.format import EMB_PARAMS, Target, packed, unpacked
from pinxit.concepts.lora_file import (
    ALPHA,
    DAMAGED,
    MAGNITUDE,
    SETTINGS,
    AdapterFile,
    Held,
    Layer,
    card,
    rank_of,
)
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import replace_tensors
from pinxit.files.open_any import Opened, opened
from pinxit.models.original_names import bare

# A network, a layer, and a tensor of it, in the three manners that diffusers has had.
_KEY = re.compile(
    r"(?:(unet|transformer|text_encoder|text_encoder_2)\.)?(.+?)(?:_lora|\.lora|\.lora_linear_layer)?"
    r"\.(lora_A|lora_B|down|up|lora_magnitude_vector|alpha)(?:\.default)?(?:\.weight)?"
)
_SURE = re.compile(r".+[._](lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.(down|up)).*")
_A, _B = "lora_A.weight", "lora_B.weight"
_TENSORS = {"lora_A": _A, "down": _A, "lora_B": _B, "up": _B}
_TARGETS = {"text_encoder": "text", "text_encoder_2": "text_2"}
_PREFIXES = {target: prefix for prefix, target in _TARGETS.items()}
_WEIGHTS = "pytorch_lora_weights"


class DiffusersLora(AdapterFile):
    """A file or a folder with one; the word of a pivotal run in a file of its own, `_emb`."""

    endings = (".safetensors", "")
    used_by = "diffusers' `load_lora_weights`"
    kinds = frozenset({"lora", "dora"})

    def recognises(self, found: Opened) -> bool:
        """By the names of a layer's two matrices; kohya's are called otherwise."""
        return "pinxit" not in found.metadata and any(map(_SURE.fullmatch, found.tensors))

    def unpack(self, found: Opened) -> Held:
        """Layers with their alphas, and the word beside, if any."""
        held, told = Held(), _told(found)
        for key, tensor in found.tensors.items():
            match = _KEY.fullmatch(key.replace(".processor.", "."))
            if not match:
                raise ConceptError(f"{found.path} has `{key}`, which is no layer's", DAMAGED)
            target = _TARGETS.get(match[1] or "", "denoiser")
            layer = _named(match[2], text=target != "denoiser")
            name = _TENSORS.get(match[3], match[3])
            tensors = held.layers.setdefault((target, layer), {})
            tensors[name] = tensor.flatten() if name == MAGNITUDE else tensor
            said = told.get(match[1] or "unet", {})
            if name == _A and said:
                tensors[ALPHA] = _alpha(said, layer, len(tensor) if tensor.ndim else 1)
        beside = _beside(found.path)
        if beside.is_file():
            word = opened(beside)
            held.words[word.text("word") or ""] = unpacked(word.tensors, EMB_PARAMS)
        return held

    def write(self, concept: Concept, target: Target) -> None:
        """A file, in a folder if OUT is one, with the scale of each layer in its metadata."""
        changes, out = self.changes(concept), target.out
        target.must_be_plain()
        words = [part for part in concept.parts if part.kind == "new-word"]
        if len(words) > 1 or len({network for network, _ in changes}) < len(changes):
            raise ConceptError(
                f"{concept.token} has {len(words)} words and {len(changes)} changes, and this "
                "layout has a place for one word and one kind of change to a network",
                "write it with --format kohya",
            )
        if not out.suffix:
            out.mkdir(parents=True)
            out /= f"{_WEIGHTS}.safetensors"
        for part in words:
            about = {"format": "pt", "word": part.settings["word"]}
            replace_tensors(_beside(out), packed(part.tensors, "clip_l"), about)
        tensors: Layer = {}
        told: dict[str, object] = {}
        for (network, kind), layers in changes.items():
            whole = any(layer.startswith("transformer_blocks.") for layer in layers)
            prefix = _PREFIXES.get(network, "transformer" if whole else "unet")
            tensors |= _packed(prefix, layers)
            said = _config(layers) | {"use_dora": kind == "dora"}
            told |= {f"{prefix}.{name}": value for name, value in said.items()}
        settings = {SETTINGS: json.dumps(told, sort_keys=True)}
        replace_tensors(out, tensors, card(concept, target.out) | settings)


def _beside(file: Path) -> Path:
    """Where diffusers' scripts put the word of a pivotal run."""
    stem = file.absolute().parent.name if file.stem == _WEIGHTS else file.stem
    return file.with_name(f"{stem}_emb.safetensors")


def _packed(prefix: str, layers: Mapping[str, Layer]) -> Layer:
    """A network's tensors with names and shapes that all releases of transformers read."""
    tensors: Layer = {}
    for layer, held in layers.items():
        full = prefix in _TARGETS and layer != "text_projection"
        place = f"{prefix}.text_model.{layer}" if full else f"{prefix}.{layer}"
        for name, tensor in held.items():
            if name == MAGNITUDE:
                # transformers finds it only so, and the others also so.
                end = f"{name}.weight" if prefix in _TARGETS else name
                shape = (1, -1, 1, 1) if held[_A].ndim == 4 else (-1,)
                tensors[f"{place}.{end}"] = tensor.reshape(shape)
            elif name != ALPHA:
                tensors[f"{place}.{name}"] = tensor
    return tensors


def _named(layer: str, *, text: bool) -> str:
    """A layer by the name that it has in the network, whatever it was called in older files."""
    if text:
        return bare(re.sub(r"\bto_(q|k|v|out)$", r"\1_proj", layer))
    return f"{layer}.0" if layer.endswith(".to_out") else layer


def _config(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """What peft must be told of a network's layers: the usual rank and alpha, and all others."""
    ranks = {layer: rank_of(held) for layer, held in layers.items()}
    scales = {layer: float(held[ALPHA]) for layer, held in layers.items()}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, scales))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {layer: own for layer, own in ranks.items() if own != rank},
        "alpha_pattern": {layer: own for layer, own in scales.items() if own != alpha},
        "target_modules": sorted(layers),
    }


def _told(found: Opened) -> dict[str, dict[str, Any]]:
    """peft's settings by network; ConceptError if what is there is no table."""
    try:
        whole: object = json.loads(found.metadata.get(SETTINGS, "{}"))
    except (ValueError, RecursionError):
        whole = None
    if not isinstance(whole, dict):
        raise ConceptError(f"{found.path} has a `{SETTINGS}` that is no table", DAMAGED)
    networks: dict[str, dict[str, Any]] = {}
    for key, value in cast("dict[str, Any]", whole).items():
        network, _, name = key.partition(".")
        networks.setdefault(network, {})[name] = value
    return networks


def _alpha(said: Mapping[str, Any], layer: str, rank: int) -> Tensor:
    """What the settings say of a layer: peft matches the ends of names."""
    pattern: Any = said.get("alpha_pattern")
    others = cast("dict[str, Any]", pattern) if isinstance(pattern, dict) else {}
    own = (v for key, v in others.items() if f".{layer}".endswith(f".{bare(key.strip('^$'))}"))
    found: Any = next(own, said.get("lora_alpha", 8))  # as peft itself
    sound = isinstance(found, int | float) and -1e30 < found < 1e30
    alpha = float(found) if sound else math.nan
    return torch.tensor(alpha * math.sqrt(rank) if said.get("use_rslora") else alpha)
