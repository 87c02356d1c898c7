"""Read the layers of adapter files of all programs: one reader for all naming schemes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pinxit.adapters.lora_part import ALPHA, DAMAGED_HINT, MAGNITUDE, factor_rank
from pinxit.concepts.format import EMB_PARAMS, tables_from_keys
from pinxit.concepts.layer_names import (
    TensorName,
    joined_layers,
    other_model,
    parse_layer,
    parse_tensor_name,
)
from pinxit.concepts.peft_settings import layer_alpha, layer_rank_setting, network_settings
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile
from pinxit.models.joined_layers import modulation_swapped

LayerTensors = dict[str, Tensor]

_BUNDLE_KEY = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.\*|clip_[lg](?:_out)?|emb_params)")
_MAX_KERNEL_SIZE = 49  # the largest kernels have 7 x 7 weights
_A, _B = "lora_A.weight", "lora_B.weight"
# Differences of a layer's weight and bias, of any layer and of norms (LyCORIS).
_DIFFERENCES = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
# Tensors with a row for each output of a layer.
_BY_OUTPUT = {_B, "lora_B.bias", "dora_scale", MAGNITUDE, "diff", "diff_b"}
_READ = re.compile(
    rf"{ALPHA}|scalar|scale|dora_scale|{MAGNITUDE}|lora_[AB]\.weight|lora_B\.bias|lora_mid\.weight"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_w[12](?:_[ab])?|lokr_t2"
)
# What other tensors are, in words.
_UNSUPPORTED = {
    "GLoRA": r"([ab][12]|bm)\.weight",
    "OFT": r"oft_\w+(\.weight)?|rescale",
    "BOFT": r"boft_\w+",
    "IA3": r"on_input|ia3_l",
    "VeRA": r"vera_\w+",
    "RandLoRA": r"randlora_\w+",
    "a LoRA of the layer of token embeddings": r"lora_embedding_[AB]",
    "a LoKr with a Tucker core in its first factor": r"lokr_t1",
    "a bias as a sparse tensor": r"bias_\w+",
    "a LoRA that changes the size of the layer": r"reshape_weight",
    "complete weights of a layer instead of a change": r"weight|bias|set_weight|diff_set",
}
_KINDS_HINT = (
    "pinxit reads LoRA, DoRA, LoHa, LoKr and differences of weights; use the program that made the "
    "file to convert it into one of these, or to merge it into a checkpoint"
)


@dataclass(frozen=True)
class LayerChanges:
    """The content of an adapter file.

    `layers` are tensors by network and layer, with peft's names; `differences` are differences of
    weights by network and name; `embeddings` are tables by token and text encoder.
    """

    layers: dict[tuple[str, str], LayerTensors] = field(
        default_factory=dict[tuple[str, str], LayerTensors]
    )
    differences: dict[str, LayerTensors] = field(default_factory=dict[str, LayerTensors])
    embeddings: dict[str, LayerTensors] = field(default_factory=dict[str, LayerTensors])


def has_adapter(file: OpenedFile, *, peft_names: bool) -> bool:
    """Whether a file has tensors of adapters, with the names of peft or with those of kohya."""
    names = map(parse_tensor_name, file.tensors)
    return any(name.is_adapter and name.is_peft == peft_names for name in names)


def read_layers(file: OpenedFile) -> LayerChanges:
    """The layers of an adapter file, and the embeddings that are bundled in it.

    Raises ConceptError for layers of other models and for kinds of adapters that pinxit does not
    read; the message says what they are.
    """
    content = LayerChanges()
    bundles: dict[str, LayerTensors] = {}
    joined: dict[tuple[tuple[str, int], ...], LayerTensors] = {}
    for key, tensor in file.tensors.items():
        if bundled := _BUNDLE_KEY.fullmatch(key):
            name = EMB_PARAMS if bundled[2].endswith("*") else bundled[2]
            bundles.setdefault(bundled[1], {})[name] = tensor
            continue
        tensor_name = parse_tensor_name(key)
        if parts := joined_layers(tensor_name.path):
            layer_tensors = joined.setdefault(parts, {})
        else:
            layer = _known_layer(file, key, tensor_name)
            layer_tensors = content.layers.setdefault(layer, {})
        layer_tensors[tensor_name.tensor] = tensor
    for parts, tensors in joined.items():
        where = f"{file.path}: the layers {', '.join(name for name, _ in parts)}"
        separate = _separate(_without_padding(tensors), [factor for _, factor in parts], where)
        for (name, _), part in zip(parts, separate, strict=True):
            if part:
                content.layers["denoiser", name] = modulation_swapped(name, part)
    for token, tables in bundles.items():
        content.embeddings[token] = tables_from_keys(tables, EMB_PARAMS)
    _move_differences(content, file)
    return content


def _move_differences(content: LayerChanges, file: OpenedFile) -> None:
    """Check each layer, make its tensors uniform, and separate differences from factors."""
    settings = network_settings(file)
    for (network, layer), tensors in list(content.layers.items()):
        where = f"{file.path}: the layer `{layer}` of `{network}`"
        _check_kind(tensors, where)
        _normalize(tensors, where)
        _apply_settings(tensors, settings.get(network, {}), layer, where)
        for name in tensors.keys() & _DIFFERENCES.keys():
            weights = content.differences.setdefault(network, {})
            weights[f"{layer}.{_DIFFERENCES[name]}"] = tensors.pop(name)
        if not tensors.keys() - {ALPHA}:
            del content.layers[network, layer]


def _known_layer(file: OpenedFile, key: str, name: TensorName) -> tuple[str, str]:
    """The network and the layer of a tensor; ConceptError if there is no such layer."""
    shown = key if len(key) < 100 else f"{key[:99]}…"
    if not name.is_adapter:
        raise ConceptError(
            f"{file.path} has a tensor `{shown}`, which belongs to no layer", DAMAGED_HINT
        )
    layer = parse_layer(name.path)
    if layer is None:
        raise ConceptError(
            f"{file.path} changes a layer with the tensor `{shown}`, which no base model that "
            "pinxit opens has",
            f"it is for {other_model(name.path)}",
        )
    return layer


def _check_kind(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ConceptError for a kind of adapter that cannot be read, with its name."""
    for name in tensors:
        for kind, pattern in _UNSUPPORTED.items():
            if re.fullmatch(pattern, name):
                raise ConceptError(f"{where} has `{name}`: this is {kind}", _KINDS_HINT)
        if name not in _DIFFERENCES and not _READ.fullmatch(name):
            raise ConceptError(f"{where} has `{name}`, a kind of adapter not known", _KINDS_HINT)
        if not tensors[name].is_floating_point() and name != ALPHA:
            dtype = str(tensors[name].dtype).removeprefix("torch.")
            raise ConceptError(
                f"{where} has `{name}` as {dtype}, not as floating point numbers",
                "the file is quantized or damaged: use the original",
            )
    kinds = {
        name.partition("_")[0] for name in tensors if name.startswith(("lora_A", "hada", "lokr"))
    }
    if len(kinds) > 1:
        titles = {"lora": "LoRA", "hada": "LoHa", "lokr": "LoKr"}
        both = " and ".join(titles[kind] for kind in sorted(kinds))
        raise ConceptError(f"{where} has {both} in one layer", _KINDS_HINT)
    if tensors.keys() & {MAGNITUDE, "dora_scale"} and _B not in tensors:
        raise ConceptError(f"{where} has the magnitudes of a DoRA without a LoRA", _KINDS_HINT)


def _separate(tensors: LayerTensors, factors: Sequence[int], where: str) -> list[LayerTensors]:
    """The tensors of each of the layers that were joined by their outputs.

    `factors` are the outputs of each per input. A layer that was not trained has no tensors.
    """
    _check_kind(tensors, where)
    if len(factors) == 1 or not tensors:
        return [tensors] * len(factors)
    names = tensors.keys() - {_A, ALPHA, "scalar", "scale"}
    width = next((t.shape[1] for name in (_A, "diff") if (t := tensors.get(name)) is not None), 0)
    total = {tensors[name].shape[0] if tensors[name].ndim else 0 for name in names}
    sizes = [width * factor for factor in factors[:-1]]
    if not names <= _BY_OUTPUT or len(total) != 1 or not 0 < sum(sizes) < max(total):
        raise ConceptError(
            f"{where}, which are one layer in the file, has {', '.join(sorted(tensors))}: its "
            "change cannot be divided",
            _KINDS_HINT,
        )
    sizes.append(max(total) - sum(sizes))
    parts = {name: tensors[name].split(sizes) for name in names}
    shared = {name: tensor for name, tensor in tensors.items() if name not in names}
    separate = [
        shared | {name: part[number] for name, part in parts.items()}
        for number in range(len(factors))
    ]
    return _own_ranks(separate) or separate


def _without_padding(tensors: LayerTensors) -> LayerTensors:
    """A layer's tensors without ranks of 0 at the end, which give XLabs' files one rank.

    Without an alpha they do not change the scale. {} if nothing is left.
    """
    down, up = tensors.get(_A), tensors.get(_B)
    if down is None or up is None or len(tensors) > 2 or not down.ndim == up.ndim == 2:
        return tensors
    if len(down) != up.shape[1]:
        return tensors
    used = (down.float().any(1) | up.float().any(0)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 0
    return {_A: down[:rank], _B: up[:, :rank]} if rank else {}


def _own_ranks(layers: Sequence[LayerTensors]) -> list[LayerTensors]:
    """The tensors of layers that were joined with ranks of their own; [] if they share all ranks.

    Then the up factor is block-diagonal, and rows of layers that were not trained are 0.
    """
    if not all(layer.keys() <= {_A, _B, ALPHA, MAGNITUDE, "dora_scale"} for layer in layers):
        return []
    trained = [layer for layer in layers if _B in layer and layer[_B].any()]
    total = layers[0][_A].shape[0] if _A in layers[0] else 0
    if not 0 < len(trained) < total + 1 or total % len(trained):
        return []
    rank = total // len(trained)
    separate: list[LayerTensors] = []
    for layer in layers:
        if not layer[_B].any():
            separate.append({})
            continue
        number = sum(map(bool, separate))
        own = slice(number * rank, (number + 1) * rank)
        others = layer[_B].clone()
        others[:, own] = 0
        if others.any():
            return []
        scale = {ALPHA: layer[ALPHA] / len(trained)} if ALPHA in layer else {}
        separate.append({**layer, _A: layer[_A][own], _B: layer[_B][:, own], **scale})
    return separate


def _normalize(tensors: LayerTensors, where: str) -> None:
    """Bring a layer's tensors into the form of peft: no core, no factors apart, magnitudes flat."""
    _merge_middle(tensors)
    if (magnitude := tensors.pop("dora_scale", None)) is not None:
        tensors[MAGNITUDE] = _output_magnitudes(magnitude, tensors[_B], where)
    if MAGNITUDE in tensors:
        tensors[MAGNITUDE] = tensors[MAGNITUDE].flatten()
    if "scale" in tensors:  # the name of AUTOMATIC1111 for alpha / rank
        tensors.pop(ALPHA, None)
    for name in ("scalar", "scale"):
        if (factor := tensors.pop(name, None)) is not None:
            _multiply(tensors, factor, where)


def _merge_middle(tensors: LayerTensors) -> None:
    """Merge the core of a convolution's LoRA (Tucker) into its down factor."""
    middle, down = tensors.get("lora_mid.weight"), tensors.get(_A)
    if middle is not None and down is not None and middle.ndim == 4:
        matrix = down.flatten(1)
        is_small = middle.shape[2] * middle.shape[3] <= _MAX_KERNEL_SIZE
        if middle.shape[:2] == (len(matrix), len(matrix)) and is_small:
            del tensors["lora_mid.weight"]
            tensors[_A] = torch.einsum("omkl,mi->oikl", middle.float(), matrix.float())


def _output_magnitudes(magnitude: Tensor, up: Tensor, where: str) -> Tensor:
    """DoRA magnitudes; ConceptError if they are those of the layer's inputs."""
    num_outputs = len(up) if up.ndim else 1
    if magnitude.ndim > 1 and len(magnitude) == 1 and num_outputs > 1:
        raise ConceptError(
            f"{where} has DoRA magnitudes for its inputs, {tuple(magnitude.shape)}",
            "pinxit reads DoRA magnitudes for the outputs of a layer, the default of LyCORIS",
        )
    return magnitude


def _multiply(tensors: LayerTensors, factor: Tensor | float, where: str) -> None:
    """Multiply a layer's change by a number."""
    if isinstance(factor, Tensor):
        if factor.numel() != 1:
            raise ConceptError(f"{where} has a scalar of {factor.numel()} values", DAMAGED_HINT)
        factor = float(factor)
    first = (_B, "hada_w1_a", "lokr_w1", "lokr_w1_a", "diff")
    for name in [name for name in first if name in tensors][:1]:
        tensors[name] = tensors[name] if factor == 1 else tensors[name].float() * factor


def _apply_settings(
    tensors: LayerTensors, settings: Mapping[str, Any], layer: str, where: str
) -> None:
    """Apply peft's settings: the scale of a layer's change, for which the file has no tensor."""
    rank = factor_rank(tensors)
    if settings and ALPHA not in tensors:
        if rank:
            tensors[ALPHA] = torch.tensor(layer_alpha(settings, layer, rank))
        elif "lokr_w1" in tensors:
            whole_rank = layer_rank_setting(settings, layer)
            _multiply(tensors, layer_alpha(settings, layer, whole_rank) / whole_rank, where)
    if (bias := tensors.pop("lora_B.bias", None)) is not None and rank:
        scale = float(tensors[ALPHA]) / rank if ALPHA in tensors else 1.0
        tensors["diff_b"] = bias if scale == 1 else bias.float() * scale
