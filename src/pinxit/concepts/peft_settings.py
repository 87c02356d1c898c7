"""peft's settings of adapters: in `adapter_config.json`, or in the metadata of diffusers' files."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from pinxit.adapters.lora_part import ALPHA, DAMAGED_HINT, LoraPart, layer_rank
from pinxit.concepts.layer_names import parse_layer
from pinxit.errors import ConceptError
from pinxit.files.open_any import PEFT_CONFIG, OpenedFile

# The metadata key for ranks and alphas in files of diffusers.
PEFT_METADATA_KEY = "lora_adapter_metadata"
_NETWORKS = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "text_encoder": "text",
    "text_encoder_2": "text_2",
}
_TYPES = {"LORA", "LOHA", "LOKR"}
# Initial weights with which training changes the base model's weights as well.
_CHANGES_BASE = re.compile(r"pissa|olora|loftq|corda|lora_ga", re.IGNORECASE)
_DEFAULT_ALPHA = _DEFAULT_RANK = 8
# Patterns of layer names with single characters, classes, groups and few repetitions: no pattern of
# a file takes long.
_SIMPLE_PATTERN = re.compile(r"(?:[\w|()^$-]|\\[.d]|\.|(?<=[.d])[*+]|\[[\w-]{1,9}\])+")
_MAX_REPETITIONS = 3

Settings = dict[str, Any]


def network_settings(file: OpenedFile) -> dict[str, Settings]:
    """peft's settings by network, from the file's metadata or the `adapter_config.json` beside it.

    Raises ConceptError if they are not a JSON object, or of an adapter that cannot be read.
    """
    networks: dict[str, Settings] = {}
    for key, value in _json_object(file, PEFT_METADATA_KEY).items():
        prefix, _, name = key.partition(".")
        networks.setdefault(_NETWORKS.get(prefix, prefix), {})[name] = value
    for prefix, network in {"": "", **_NETWORKS}.items():
        key = f"{prefix}/{PEFT_CONFIG}".lstrip("/")
        if settings := _json_object(file, key):
            networks |= dict.fromkeys([network] if network else _NETWORKS.values(), settings)
    for settings in networks.values():
        _check_readable(settings, file)
    return networks


def _json_object(file: OpenedFile, key: str) -> Settings:
    try:
        values: object = json.loads(file.metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ConceptError(
            f"the metadata `{key}` of {file.path} is not a JSON object", DAMAGED_HINT
        )
    return cast("Settings", values)


def _check_readable(settings: Settings, file: OpenedFile) -> None:
    """Raise ConceptError for settings of an adapter that would be misread."""
    kind = str(settings.get("peft_type") or "LORA")
    if kind not in _TYPES:
        raise ConceptError(
            f"{file.path} is an adapter of peft of the type {kind[:80]}",
            "pinxit reads LoRA, LoHa, LoKr",
        )
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and _CHANGES_BASE.match(start):
        raise ConceptError(
            f"{file.path} was trained with `init_lora_weights: {start}`, which changes the base "
            "model's weights as well; the file does not contain that change",
            "save it in peft with `path_initial_model_for_weight_conversion`",
        )


def layer_alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """The alpha of a layer by peft's settings: alpha / rank is its scale; NaN if invalid."""
    default = settings.get("lora_alpha", settings.get("alpha", _DEFAULT_ALPHA))
    value = _exception(settings, "alpha_pattern", layer, default)
    is_valid = isinstance(value, int | float) and -1e30 < value < 1e30
    alpha = float(value) if is_valid else math.nan
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def layer_rank_setting(settings: Mapping[str, Any], layer: str) -> int:
    """The rank of a layer in peft's settings; ConceptError if it is no positive number."""
    value = _exception(settings, "rank_pattern", layer, settings.get("r", _DEFAULT_RANK))
    if isinstance(value, int) and value > 0:
        return value
    raise ConceptError(f"peft's settings have the rank {value!r} for `{layer}`", DAMAGED_HINT)


def _exception(settings: Mapping[str, Any], pattern: str, layer: str, default: Any) -> Any:
    """The value for a layer in a table of exceptions; its keys match ends of names, as in peft."""
    table: Any = settings.get(pattern)
    values = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    return next((value for key, value in values.items() if _matches(key, layer)), default)


def _matches(key: str, layer: str) -> bool:
    plain = key.strip("^$")
    known = parse_layer(plain)
    if f".{layer}".endswith(f".{plain}") or (known and known[1] == layer):
        return True
    is_simple = _SIMPLE_PATTERN.fullmatch(key) and len(re.findall(r"[*+]", key)) <= _MAX_REPETITIONS
    if not is_simple and not re.fullmatch(r"[\w.^$-]+", key):
        raise ConceptError(
            f"peft's settings have the pattern `{key[:80]}` for names of layers",
            "pinxit reads plain names and simple patterns: write the names of the layers instead",
        )
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{key})", layer) is not None
    except re.error:
        return False


def peft_settings(part: LoraPart) -> dict[str, Any]:
    """peft's settings to write: the most common rank and alpha, and all exceptions."""
    ranks = {layer: layer_rank(tensors) for layer, tensors in part.layers.items()}
    alphas = {layer: float(tensors[ALPHA]) for layer, tensors in part.layers.items()}
    common_rank = Counter(ranks.values()).most_common(1)[0][0]
    common_alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": common_rank,
        "lora_alpha": common_alpha,
        "rank_pattern": {layer: rank for layer, rank in ranks.items() if rank != common_rank},
        "alpha_pattern": {layer: alpha for layer, alpha in alphas.items() if alpha != common_alpha},
        "target_modules": sorted(part.layers),
    }
