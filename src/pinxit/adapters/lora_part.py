"""LoRA, DoRA, LoHa, LoKr and OFT weights as data: names, shapes, ranks and alphas."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

from torch import Tensor

from pinxit.adapters.parts import Part, weight_count
from pinxit.errors import ConceptError, did_you_mean
from pinxit.models.family import FamilyFacts, all_facts

LoraVariant = Literal["lora", "dora", "loha", "lokr", "oft"]
LORA_VARIANTS: tuple[LoraVariant, ...] = get_args(LoraVariant)
LayerGroup = Literal["cross-attention", "attention", "transformer", "all"]
LayerTensors = Mapping[str, Tensor]

ALPHA, MAGNITUDE = "alpha", "lora_magnitude_vector"
DAMAGED_HINT = "the file is damaged, or of an unknown kind; pinxit reads LoRA, DoRA, LoHa and LoKr"
_LORA = {"lora_A.weight", "lora_B.weight"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR_W1 = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_LOKR_W2 = ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
# The names of a layer's weights, which are those of peft: one of these sets.
_WEIGHT_NAMES: dict[LoraVariant, list[set[str]]] = {
    "lora": [_LORA],
    "dora": [_LORA | {MAGNITUDE}],
    "loha": [_LOHA, _LOHA | {"hada_t1", "hada_t2"}],
    "lokr": [first | second for first in _LOKR_W1 for second in _LOKR_W2],
    "oft": [{"oft_R.weight"}],
}
_ALL_NAMES = {name for sets in _WEIGHT_NAMES.values() for names in sets for name in names}
_TENSOR_NAME = re.compile(rf"(.+)\.(alpha|{'|'.join(map(re.escape, sorted(_ALL_NAMES)))})")
# The two factors of a layer's change, and the core between them (Tucker, convolutions only).
_FACTORS = (
    ("lora_B.weight", "lora_A.weight", ""),
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b", ""),
    ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
# The product of the second dimensions of these is the number of inputs of a layer.
_INPUT_FACTORS = {"lora_A.weight", "hada_w1_b", "lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b"}


@dataclass(frozen=True)
class LoraConfig:
    """Variant, rank and layers of a new adapter. `rank` is the block size for OFT.

    The change of a layer is scaled by alpha / rank.
    """

    variant: LoraVariant
    rank: int
    alpha: float
    layers: LayerGroup


@dataclass(frozen=True)
class LoraPart(Part):
    """Trained changes of a network's layers: tensors by layer and name, with peft's names.

    The name `alpha` is a layer's alpha; without it, the scale of the change is 1.
    """

    network: str
    variant: LoraVariant
    layers: Mapping[str, LayerTensors]
    kind: ClassVar[str] = "lora"
    has_strength: ClassVar[bool] = True

    @property
    def settings(self) -> dict[str, str]:
        """The network and the variant."""
        return {"target": self.network, "kind": self.variant}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by layer and name, joined with `.`."""
        return {
            f"{layer}.{name}": tensor
            for layer, tensors in self.layers.items()
            for name, tensor in tensors.items()
        }

    @classmethod
    def from_stored(cls, settings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`.

        Raises KeyError if a setting is missing, ConceptError if it is unknown or if the tensors of
        a layer are incomplete or do not match.
        """
        network, stored = settings["target"], settings["kind"]
        variant: LoraVariant | None = next((v for v in LORA_VARIANTS if v == stored), None)
        if variant is None:
            raise ConceptError(
                f"unknown adapter kind `{stored}`", did_you_mean(stored, LORA_VARIANTS)
            )
        layers: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            match = _TENSOR_NAME.fullmatch(name)
            if not match:
                raise ConceptError(
                    f"the tensor `{name}` belongs to no kind of adapter", DAMAGED_HINT
                )
            layers.setdefault(match[1], {})[match[2]] = tensor
        for layer, layer_tensors in layers.items():
            where = f"the layer `{layer}` of `{network}`"
            if layer_variant(layer_tensors, where) != variant:
                raise ConceptError(f"{where} has no {variant} weights", DAMAGED_HINT)
        return cls(network, variant, layers)

    @property
    def key(self) -> str:
        """The network and the variant."""
        return f"{self.network}.{self.variant}"

    @property
    def ranks(self) -> list[int]:
        """The rank of each layer."""
        return [layer_rank(tensors) for tensors in self.layers.values()]

    @property
    def alphas(self) -> list[float]:
        """The alphas of all layers that have one."""
        return [float(tensors[ALPHA]) for tensors in self.layers.values() if ALPHA in tensors]

    def input_width(self, suffix: str) -> int:
        """The number of inputs of the layers whose name has this suffix; 0 if there are none."""
        layers = [tensors for name, tensors in self.layers.items() if name.endswith(suffix)]
        if not layers:
            return 0
        factors = [t for name, t in layers[-1].items() if name in _INPUT_FACTORS]
        return math.prod(factor.shape[1:2].numel() for factor in factors)

    def describe(self) -> list[tuple[str, str]]:
        """The variant, the layers, the ranks, and the base models that it fits."""
        weights = (t for name, t in self.tensors.items() if not name.endswith(f".{ALPHA}"))
        count, size = len(self.layers), weight_count(weights)
        rows = [("adapter", f"{self.variant} of {count} layers of `{self.network}`, {size}")]
        if self.variant != "oft":
            alpha = _range(self.alphas) if self.alphas else "the same"
            rows.append(("rank", f"{_range(self.ranks)}, alpha {alpha}"))
        # Several families have the same first text encoder, so only the denoiser tells the family.
        family = lora_family([self]) if self.network == "denoiser" else None
        return rows + ([("fits", family.title)] if family else [])


def layer_variant(tensors: LayerTensors, where: str) -> LoraVariant:
    """The variant that a layer's tensors belong to.

    Raises ConceptError if a tensor is missing or if the shapes do not match.
    """
    names = tensors.keys() - {ALPHA}
    variant: LoraVariant | None = next((v for v, s in _WEIGHT_NAMES.items() if names in s), None)
    if variant is None:
        raise ConceptError(
            f"{where} has no complete set of weights: {', '.join(sorted(names)) or 'none'}",
            DAMAGED_HINT,
        )
    if not _shapes_match(tensors):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in sorted(tensors.items()))
        raise ConceptError(f"{where} has tensors that do not match: {shapes}", DAMAGED_HINT)
    return variant


def factor_rank(tensors: LayerTensors) -> int | None:
    """The rank of a layer's change; None if it is stored without factors."""
    return next((len(tensors[right]) for _, right, _ in _FACTORS if right in tensors), None)


def layer_rank(tensors: LayerTensors) -> int:
    """The rank of a layer's change; 1 if it is stored without factors."""
    return factor_rank(tensors) or 1


def lora_family(parts: Iterable[Part]) -> FamilyFacts | None:
    """The model family whose layers have the widths of these parts; None if unknown."""
    loras = [part for part in parts if isinstance(part, LoraPart)]
    return next((facts for facts in all_facts() if _widths_match(loras, facts)), None)


def _widths_match(loras: Iterable[LoraPart], facts: FamilyFacts) -> bool:
    """Whether the layers that show the family have its context width, or its text widths."""
    widths: dict[str, int] = {}
    for part in loras:
        suffix = facts.context_layer if part.network == "denoiser" else facts.text_layer
        if width := part.input_width(suffix):
            widths[part.network] = width
    if "denoiser" in widths:
        return widths["denoiser"] == facts.context_width
    text_widths = tuple(widths[network] for network in sorted(widths))
    return bool(text_widths) and text_widths == facts.text_widths


def _shapes_match(tensors: LayerTensors) -> bool:
    """Whether all tensors are floating point and not empty, and all factors have the same rank."""
    vectors = (ALPHA, MAGNITUDE)
    for name, tensor in tensors.items():
        has_dimensions = tensor.ndim >= 2 or name in vectors
        has_type = tensor.is_floating_point() or name == ALPHA
        # OFT with blocks of size 1 has no angles.
        if not (has_dimensions and has_type and (tensor.numel() or name == "oft_R.weight")):
            return False
    ranks: set[int] = set()
    for left, right, between in _FACTORS:
        if right in tensors:
            core = tensors.get(between)
            ranks |= {len(tensors[right]), tensors[left].shape[1 if core is None else 0]}
            ranks |= set(core.shape[:2]) if core is not None else set()
    sizes = {ALPHA: 1, MAGNITUDE: len(tensors.get("lora_B.weight", ()))}
    return len(ranks) <= 1 and all(tensors[n].numel() == sizes[n] for n in vectors if n in tensors)


def _range(values: Iterable[float]) -> str:
    """The smallest and the largest value; one number if all are the same."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
