"""The strength of a trained adapter: one number, or a number for each group of layers."""

import math
import re
from typing import get_args

from pinxit.adapters.lora_part import LayerGroup
from pinxit.errors import ConceptError, RequestError, did_you_mean
from pinxit.models.model import Model

# A number for all layers, or pairs of a group and a number.
Strength = float | tuple[tuple[str, float], ...]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_GROUP = rf"[a-z][\w-]*={_NUMBER}"
# `PATH:0.7` or `PATH:attention=0.5,all=1`
PATH_WITH_STRENGTH = re.compile(
    rf"(.+):({_NUMBER}|{_GROUP}(?:,{_GROUP})*)", re.DOTALL | re.IGNORECASE
)


def parse_strength(text: str) -> Strength:
    """The strength in a text that PATH_WITH_STRENGTH matches; RequestError if it is not finite."""
    pairs = [pair.rpartition("=") for pair in text.split(",")]
    if not all(math.isfinite(float(number)) for _, _, number in pairs):
        raise RequestError(
            f"the strength in `{text}` is not a finite number", "choose one such as 0.7"
        )
    if pairs[0][0]:
        return tuple((group, float(number)) for group, _, number in pairs)
    return float(text)


def strength_text(strength: Strength) -> str:
    """The inverse of `parse_strength`."""
    if isinstance(strength, tuple):
        return ",".join(f"{group}={number!r}" for group, number in strength)
    return repr(strength)


def check_groups(strength: Strength, model: Model) -> None:
    """Raise ConceptError if the model has no such group of layers or network."""
    known = {*model.networks, *model.layer_groups, *model.text_layer_groups}
    for group, _ in strength if isinstance(strength, tuple) else ():
        if group not in known:
            usual = [*get_args(LayerGroup), *model.networks]
            raise ConceptError(
                f"{model.name} has no group of layers `{group}`", did_you_mean(group, usual)
            )


def layer_strength(strength: Strength, model: Model, network: str, layer: str) -> float:
    """The strength of a layer: that of the first group that contains it, 1 without such a group.

    A group is one of the model's layer groups, or a network.
    """
    if not isinstance(strength, tuple):
        return strength
    for group, number in strength:
        if group == network or model.layer_pattern(network, group).search(layer):
            return number
    return 1.0
