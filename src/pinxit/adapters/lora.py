# pyright: standard, reportPrivateImportUsage=false
"""Small weights beside a network's layers that change what the layers do: LoRA and its kin."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Part
from pinxit.adapters.batched_lora import Factors, LowRanks
from pinxit.adapters.peft_layers import (
    KINDS,
    Kind,
    Tensors,
    Weights,
    filled,
    fits,
    fresh,
    kept,
    merged,
    own_layer,
    paths_of,
    placed,
    split,
    takes,
)
from pinxit.errors import ConceptError, RecipeError, did_you_mean
from pinxit.models.kernels.quantize import put
from pinxit.models.model import Model
from pinxit.rng import generator

Layers = Literal["cross-attention", "attention", "transformer", "all"]

PART = "lora"  # what a part of any kind is called

_BLOCKS = "attentions|transformer_blocks|layers"
_GROUPS: dict[Layers, str] = {
    # A text tower has only self-attention, a transformer on pictures and text only joint ones.
    "cross-attention": r"\.(attn2?|self_attn)\.",
    "attention": r"\.(attn\d?|self_attn)\.",
    "transformer": rf"(^|\.)({_BLOCKS})\.\d+\.",
    "all": rf"(^|\.)({_BLOCKS}|resnets|downsamplers|upsamplers)\.\d+\.",
}
_NORM = re.compile(r"\.norm\w*\.")
_FITTING = "use it with the kind of base it was trained on"
_DAMAGED = "the file is damaged, or was put together by hand"


@dataclass(frozen=True)
class Form:
    """What to lay beside which layers: the kind, and its rank, which for oft is a block's size.

    A change counts alpha / rank times.
    """

    kind: Kind
    rank: int
    alpha: float
    layers: Layers


@dataclass(eq=False)
class LowRank:
    """Small weights beside the layers of one network, fp32: LoRA (arXiv:2106.09685) and its kin.

    While they are learned (`strength` is None), each layer is one of peft's around the base's.
    What was learned is added to the layers' weights instead, `strength` times.
    """

    target: str
    kind: Kind
    layers: dict[str, Weights]
    alphas: Mapping[str, float]
    touches_text: bool
    strength: float | None = None
    _undo: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    @classmethod
    def of(cls, model: Model, target: str, form: Form, seed: int) -> Self:
        """Fresh weights, which change nothing yet, to be trained; they follow from the seed.

        RecipeError if the base's layers are in 8 bits, beside which plain LoRA alone is learned.
        """
        if model.placement.precision == "int8" and form.kind != "lora":
            raise RecipeError(
                f"{form.kind} is learned from layers' weights, and those of {model.name} are "
                "open in 8 bits",
                "take plain LoRA, or another --precision",
            )
        layers: dict[str, Weights] = {}
        with torch.random.fork_rng([]), torch.no_grad():
            for name, layer in _chosen(model, target, form).items():
                start = generator(seed, "start", target, name)
                torch.default_generator.manual_seed(start.initial_seed())
                layers[name] = fresh(layer, form.kind, form.rank)
        alphas = {} if form.kind == "oft" else dict.fromkeys(layers, form.alpha)
        return cls(target, form.kind, layers, alphas, target in model.towers)

    def inject(self, model: Model) -> None:
        """The layers are changed from now on."""
        network = model.networks[self.target]
        paths = paths_of(network)
        with torch.random.fork_rng([]), torch.no_grad(), ExitStack() as undo:
            for name, weights in self.layers.items():
                layer, alpha = network.get_submodule(paths[name]), self.alphas.get(name)
                if self.strength is None:
                    undo.callback(network.set_submodule, paths[name], layer)
                    network.set_submodule(paths[name], filled(layer, self.kind, weights, alpha))
                else:
                    base = own_layer(layer)
                    own, changed = merged(base, self.kind, weights, alpha)
                    undo.callback(put(base, torch.lerp(own, changed, self.strength)))
            self._undo = undo.pop_all()

    def eject(self, model: Model) -> None:  # noqa: ARG002
        """The layers are the base's own again."""
        self._undo.close()

    @classmethod
    def joined(cls, several: Sequence[Self]) -> LowRanks:
        """Plain ones of one target and form, each for its own concept's samples."""
        first = several[0]
        assert {one.kind for one in several} == {"lora"}, "only plain LoRA can be joined"
        return LowRanks(first.target, {name: _factors(several, name) for name in first.layers})

    def weights(self) -> Mapping[str, nn.Parameter]:
        """All of them, by layer and name, while they are learned."""
        held = self.layers.items() if self.strength is None else ()
        return {f"{layer}.{name}": w for layer, some in held for name, w in some.items()}

    def part(self) -> Part:
        """The weights by layer, and of each layer alpha."""
        tensors: dict[str, Tensor] = {}
        for layer, held in self.layers.items():
            tensors |= {f"{layer}.{name}": kept(name, weight) for name, weight in held.items()}
            if layer in self.alphas:
                tensors[f"{layer}.alpha"] = torch.tensor(self.alphas[layer])
        return Part(PART, {"target": self.target, "kind": self.kind}, tensors)

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """What was learned; ConceptError if layers or shapes are not those of the base."""
        target, kind = part.settings["target"], part.settings["kind"]
        if kind not in KINDS:
            raise ConceptError(f"no adapter is of the kind `{kind}`", did_you_mean(kind, KINDS))
        if target not in model.networks:
            has = ", ".join(model.networks)
            raise ConceptError(
                f"the concept changes the network `{target}`, and {model.name} has {has}", _FITTING
            )
        tensors, alphas = _by_layer(part.tensors)
        layers: dict[str, Weights] = {}
        network = model.networks[target]
        paths = paths_of(network)
        for name, held in tensors.items():
            layer = own_layer(network.get_submodule(paths[name])) if name in paths else None
            _must_fit(f"`{target}.{name}`", layer, kind, held, model)
            layers[name] = {key: placed(key, tensor, layer) for key, tensor in held.items()}
        return cls(target, kind, layers, alphas, target in model.towers, strength=1.0)


def _factors(several: Sequence[LowRank], layer: str) -> Factors:
    """What several plain LoRAs have for a layer."""
    down = [one.layers[layer]["lora_A.weight"] for one in several]
    up = [one.layers[layer]["lora_B.weight"] for one in several]
    ranks = [len(weight) for weight in down]
    scale = [one.alphas.get(layer, rank) / rank for one, rank in zip(several, ranks, strict=True)]
    return Factors(down, up, scale)


def _chosen(model: Model, target: str, form: Form) -> dict[str, Any]:
    """The layers of a network that a form is for; RecipeError if there are none."""
    network = model.networks[target]
    chosen = {
        name: network.get_submodule(path)
        for name, path in paths_of(network).items()
        if re.search(_GROUPS[form.layers], name) and not _NORM.search(name)
    }
    layers = {name: layer for name, layer in chosen.items() if takes(layer, form.kind)}
    if not layers:
        raise RecipeError(
            f"`{target}` of {model.name} has no {form.layers} layers for {form.kind}",
            "take more with --layers all",
        )
    return layers


def _by_layer(tensors: Tensors) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The weights of each layer, and its alpha; ConceptError for names that no kind has."""
    layers: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        layer, leaf = split(name) or ("", "")
        if not layer or (leaf == "alpha" and tensor.numel() != 1):
            shape = tuple(tensor.shape)
            raise ConceptError(f"`{name}` {shape} of the concept is no adapter's", _DAMAGED)
        held = layers.setdefault(layer, {})
        if leaf == "alpha":
            alphas[layer] = float(tensor)
        else:
            held[leaf] = tensor
    return layers, alphas


def _must_fit(where: str, layer: Any, kind: Kind, weights: Tensors, model: Model) -> None:
    """ConceptError if a base's layer cannot be changed by such weights."""
    if layer is None or not takes(layer, kind):
        raise ConceptError(
            f"the concept changes {where}, and {model.name} has no such layer", _FITTING
        )
    with torch.random.fork_rng([]):
        if not fits(layer, kind, weights):
            own = tuple(layer.weight.shape)
            held = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in weights.items())
            raise ConceptError(
                f"{where} is {own} in {model.name}, and the concept has {held or 'nothing'} for it "
                f"as {kind}",
                _FITTING,
            )
