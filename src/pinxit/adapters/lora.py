# pyright: standard, reportPrivateImportUsage=false
"""LoRA, DoRA, LoHa, LoKr and OFT: small trainable weights that change a network's layers."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Part
from pinxit.adapters.batched_lora import BatchedLora, LoraFactors
from pinxit.adapters.peft_layers import (
    ADAPTER_KINDS,
    AdapterKind,
    LayerWeights,
    Tensors,
    adapted_layer,
    base_layer,
    from_stored,
    initial_weights,
    merge_weights,
    module_paths,
    split_name,
    supports,
    to_stored,
    weights_fit,
)
from pinxit.errors import ConceptError, RecipeError, did_you_mean
from pinxit.models.kernels.quantize import replace_weight
from pinxit.models.model import Model
from pinxit.rng import generator

LayerGroup = Literal["cross-attention", "attention", "transformer", "all"]

LORA_PART = "lora"  # the `Part.kind` of all adapter kinds

_NORM = re.compile(r"\.norm\w*\.")
_BASE_HINT = "use it with the kind of base model that it was trained on"
_DAMAGED_HINT = "the file is damaged or was edited by hand; use a copy of the original"


@dataclass(frozen=True)
class LoraConfig:
    """Kind, rank and layers of a new adapter. `rank` is the block size for OFT.

    The change of a layer is scaled by alpha / rank.
    """

    kind: AdapterKind
    rank: int
    alpha: float
    layers: LayerGroup


@dataclass(eq=False)
class LoraAdapter:
    """LoRA (arXiv:2106.09685), or a variant of it, on layers of one network, in fp32.

    `target` is the network. During training (`strength` is None) a peft layer wraps each layer.
    A trained adapter is merged into the weights of the layers instead, scaled by `strength`.
    """

    target: str
    kind: AdapterKind
    layers: dict[str, LayerWeights]
    alphas: Mapping[str, float]
    changes_conditioning: bool
    strength: float | None = None
    _undo: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    @classmethod
    def of(cls, model: Model, target: str, config: LoraConfig, seed: int) -> Self:
        """A trainable adapter that changes nothing yet; the seed determines its initial weights.

        Raises RecipeError if the model is open in int8 and the kind is not plain LoRA.
        """
        if model.placement.precision == "int8" and config.kind != "lora":
            raise RecipeError(
                f"{config.kind} cannot be trained on a base model in int8, and {model.name} is "
                "open in int8",
                "use --adapter lora, or another --precision such as bf16",
            )
        layers: dict[str, LayerWeights] = {}
        with torch.random.fork_rng([]), torch.no_grad():
            for name, layer in _target_layers(model, target, config).items():
                start = generator(seed, "start", target, name)
                torch.default_generator.manual_seed(start.initial_seed())
                layers[name] = initial_weights(layer, config.kind, config.rank)
        alphas = {} if config.kind == "oft" else dict.fromkeys(layers, config.alpha)
        return cls(target, config.kind, layers, alphas, target in model.text_encoders)

    def inject(self, model: Model) -> None:
        """Wrap the layers for training, or merge the trained change into their weights."""
        network = model.networks[self.target]
        paths = module_paths(network)
        with torch.random.fork_rng([]), torch.no_grad(), ExitStack() as undo:
            for name, weights in self.layers.items():
                path, alpha = paths[name], self.alphas.get(name)
                layer = network.get_submodule(path)
                if self.strength is None:
                    undo.callback(network.set_submodule, path, layer)
                    network.set_submodule(path, adapted_layer(layer, self.kind, weights, alpha))
                else:
                    base = base_layer(layer)
                    original, merged = merge_weights(base, self.kind, weights, alpha)
                    undo.callback(replace_weight(base, torch.lerp(original, merged, self.strength)))
            self._undo = undo.pop_all()

    def eject(self, model: Model) -> None:  # noqa: ARG002
        """Restore the layers of the model."""
        self._undo.close()

    @classmethod
    def batched(cls, adapters: Sequence[Self]) -> BatchedLora:
        """Combine plain LoRAs of one network and one config, one per concept."""
        first = adapters[0]
        assert {adapter.kind for adapter in adapters} == {"lora"}, "only plain LoRA can be batched"
        return BatchedLora(first.target, {name: _factors(adapters, name) for name in first.layers})

    def weights(self) -> Mapping[str, nn.Parameter]:
        """All weights by layer and name during training; empty for a trained adapter."""
        if self.strength is not None:
            return {}
        return {
            f"{layer}.{name}": weight
            for layer, weights in self.layers.items()
            for name, weight in weights.items()
        }

    def part(self) -> Part:
        """The weights and the alpha of each layer as data."""
        tensors: dict[str, Tensor] = {}
        for layer, weights in self.layers.items():
            for name, weight in weights.items():
                tensors[f"{layer}.{name}"] = to_stored(name, weight)
            if layer in self.alphas:
                tensors[f"{layer}.alpha"] = torch.tensor(self.alphas[layer])
        return Part(LORA_PART, {"target": self.target, "kind": self.kind}, tensors)

    @classmethod
    def restore(cls, part: Part, model: Model) -> Self:
        """The trained adapter for this model; ConceptError if layers or shapes do not fit."""
        target, kind = part.settings["target"], part.settings["kind"]
        if kind not in ADAPTER_KINDS:
            raise ConceptError(f"unknown adapter kind `{kind}`", did_you_mean(kind, ADAPTER_KINDS))
        if target not in model.networks:
            networks = ", ".join(model.networks)
            raise ConceptError(
                f"the concept changes the network `{target}`, but {model.name} has only {networks}",
                _BASE_HINT,
            )
        layer_tensors, alphas = _split_by_layer(part.tensors)
        layers: dict[str, LayerWeights] = {}
        network = model.networks[target]
        paths = module_paths(network)
        for name, tensors in layer_tensors.items():
            layer = base_layer(network.get_submodule(paths[name])) if name in paths else None
            _check_fits(f"`{target}.{name}`", layer, kind, tensors, model)
            layers[name] = {key: from_stored(key, tensor, layer) for key, tensor in tensors.items()}
        return cls(target, kind, layers, alphas, target in model.text_encoders, strength=1.0)


def _factors(adapters: Sequence[LoraAdapter], layer: str) -> LoraFactors:
    """The weights and scales of several plain LoRAs for one layer."""
    down = [adapter.layers[layer]["lora_A.weight"] for adapter in adapters]
    up = [adapter.layers[layer]["lora_B.weight"] for adapter in adapters]
    scale = [
        adapter.alphas.get(layer, len(weight)) / len(weight)
        for adapter, weight in zip(adapters, down, strict=True)
    ]
    return LoraFactors(down, up, scale)


def _target_layers(model: Model, target: str, config: LoraConfig) -> dict[str, Any]:
    """The layers of a network that a config selects; RecipeError if there are none."""
    network, pattern = model.networks[target], model.layer_pattern(target, config.layers)
    group = {
        name: network.get_submodule(path)
        for name, path in module_paths(network).items()
        if pattern.search(name) and not _NORM.search(name)
    }
    layers = {name: layer for name, layer in group.items() if supports(layer, config.kind)}
    if not layers:
        raise RecipeError(
            f"the network `{target}` of {model.name} has no layers in the group {config.layers} "
            f"that {config.kind} supports",
            "use --layers all, which selects more layers",
        )
    return layers


def _split_by_layer(tensors: Tensors) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The tensors and the alpha of each layer; ConceptError for unknown tensor names."""
    layers: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        layer, leaf = split_name(name) or ("", "")
        if not layer or (leaf == "alpha" and tensor.numel() != 1):
            shape = tuple(tensor.shape)
            raise ConceptError(
                f"the concept has a tensor `{name}` {shape}, which belongs to no kind of adapter",
                _DAMAGED_HINT,
            )
        layer_tensors = layers.setdefault(layer, {})
        if leaf == "alpha":
            alphas[layer] = float(tensor)
        else:
            layer_tensors[leaf] = tensor
    return layers, alphas


def _check_fits(where: str, layer: Any, kind: AdapterKind, weights: Tensors, model: Model) -> None:
    """Raise ConceptError if the model has no such layer or the weights do not fit it."""
    if layer is None or not supports(layer, kind):
        raise ConceptError(
            f"the concept changes the layer {where}, but {model.name} has no such layer", _BASE_HINT
        )
    with torch.random.fork_rng([]):
        if not weights_fit(layer, kind, weights):
            shapes = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in weights.items())
            raise ConceptError(
                f"{where} has the shape {tuple(layer.weight.shape)} in {model.name}, but the "
                f"{kind} tensors of the concept for it are: {shapes or 'none'}",
                _BASE_HINT,
            )
