# pyright: standard, reportPrivateImportUsage=false
"""LoRA, DoRA, LoHa, LoKr and OFT: small trainable weights that change a network's layers."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from pinxit.adapters.adapter import Adapter
from pinxit.adapters.batched_lora import BatchedLora, LoraFactors
from pinxit.adapters.lora_part import ALPHA, LayerTensors, LoraConfig, LoraPart, LoraVariant
from pinxit.adapters.peft_layers import (
    LayerWeights,
    adapted_layer,
    base_layer,
    fitted,
    from_stored,
    initial_weights,
    merge_weights,
    module_paths,
    supports,
    to_stored,
    weights_fit,
)
from pinxit.adapters.strength import Strength, layer_strength
from pinxit.errors import ConceptError, RecipeError
from pinxit.models.kernels.quantize import replace_weight, weight_shape
from pinxit.models.model import Model
from pinxit.rng import generator

_NORM = re.compile(r"\.norm\w*\.")
_BASE_HINT = "use it with the kind of base model that it was trained on"


@dataclass(eq=False)
class LoraAdapter(Adapter):
    """LoRA (arXiv:2106.09685), or a variant of it, on layers of one network, in fp32.

    During training (`strength` is None) a peft layer wraps each layer of the network `network`.
    A trained adapter is merged into the weights of the layers instead, scaled by `strength`.
    """

    network: str
    variant: LoraVariant
    layers: dict[str, LayerWeights]
    alphas: Mapping[str, float]
    changes_conditioning: bool
    strength: Strength | None = None
    part_type = LoraPart

    @classmethod
    def of(cls, model: Model, network: str, config: LoraConfig, seed: int) -> Self:
        """A trainable adapter that changes nothing yet; the seed determines its initial weights.

        On a quantized model only plain LoRA works.
        """
        layers: dict[str, LayerWeights] = {}
        with torch.random.fork_rng([]), torch.no_grad():
            for name, layer in _target_layers(model, network, config).items():
                start = generator(seed, "start", network, name)
                torch.default_generator.manual_seed(start.initial_seed())
                layers[name] = initial_weights(layer, config.variant, config.rank)
        alphas = {} if config.variant == "oft" else dict.fromkeys(layers, config.alpha)
        return cls(network, config.variant, layers, alphas, network in model.text_encoders)

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Wrap the layers for training, or merge the trained change into their weights."""
        network = model.networks[self.network]
        paths = module_paths(network)
        with ExitStack() as undo:
            with torch.random.fork_rng([]), torch.no_grad():
                for name, weights in self.layers.items():
                    path, alpha = paths[name], self.alphas.get(name)
                    layer = network.get_submodule(path)
                    if self.strength is None:
                        undo.callback(network.set_submodule, path, layer)
                        adapted = adapted_layer(layer, self.variant, weights, alpha)
                        network.set_submodule(path, adapted)
                    else:
                        base = base_layer(layer)
                        strength = layer_strength(self.strength, model, self.network, name)
                        original, merged = merge_weights(base, self.variant, weights, alpha)
                        changed = torch.lerp(original, merged, strength)
                        undo.callback(replace_weight(base, changed))
            yield

    @classmethod
    def batched(cls, adapters: Sequence[Self]) -> BatchedLora:
        """Combine plain LoRAs of one network and one config, one per concept."""
        first = adapters[0]
        assert {adapter.variant for adapter in adapters} == {"lora"}, (
            "only plain LoRA can be batched"
        )
        return BatchedLora(
            first.network, {name: lora_factors(adapters, name) for name in first.layers}
        )

    def weights(self) -> Mapping[str, nn.Parameter]:
        """All weights by layer and name during training; empty for a trained adapter."""
        if self.strength is not None:
            return {}
        return {
            f"{layer}.{name}": weight
            for layer, weights in self.layers.items()
            for name, weight in weights.items()
        }

    def part(self) -> LoraPart:
        """The weights and the alpha of each layer as data."""
        layers: dict[str, LayerTensors] = {}
        for layer, weights in self.layers.items():
            alpha = {ALPHA: torch.tensor(self.alphas[layer])} if layer in self.alphas else {}
            stored = {name: to_stored(name, weight) for name, weight in weights.items()}
            layers[layer] = stored | alpha
        return LoraPart(self.network, self.variant, layers)

    @classmethod
    def restore(cls, part: LoraPart, model: Model) -> Self:
        """The trained adapter for this model; ConceptError if layers or shapes do not fit."""
        if part.network not in model.networks:
            networks = ", ".join(model.networks)
            raise ConceptError(
                f"the concept changes the network `{part.network}`, but {model.name} has only "
                f"{networks}",
                _BASE_HINT,
            )
        layers: dict[str, LayerWeights] = {}
        alphas: dict[str, float] = {}
        network = model.networks[part.network]
        paths = module_paths(network)
        for name, tensors in part.layers.items():
            layer = base_layer(network.get_submodule(paths[name])) if name in paths else None
            layers[name] = restored_layer(part, name, layer, model.name)
            if ALPHA in tensors:
                alphas[name] = float(tensors[ALPHA])
        is_text = part.network in model.text_encoders
        return cls(part.network, part.variant, layers, alphas, is_text, strength=1.0)


def restored_layer(part: LoraPart, name: str, layer: Any, base_name: str) -> LayerWeights:
    """The weights of a trained adapter for a layer, which is None if the model has no such layer.

    Raises ConceptError if they do not fit.
    """
    where = f"`{part.network}.{name}`"
    if layer is None or not supports(layer, part.variant):
        raise ConceptError(
            f"the concept changes the layer {where}, but {base_name} has no such layer", _BASE_HINT
        )
    weights = {
        # peft's products of Kronecker factors need tensors in the order of their dimensions.
        key: fitted(key, tensor, layer).contiguous()
        for key, tensor in part.layers[name].items()
        if key != ALPHA
    }
    with torch.random.fork_rng([]):
        if not weights_fit(layer, part.variant, weights):
            shapes = ", ".join(f"{key} {tuple(weight.shape)}" for key, weight in weights.items())
            raise ConceptError(
                f"{where} has the shape {tuple(weight_shape(layer))} in {base_name}, but the "
                f"{part.variant} tensors of the concept for it are: {shapes or 'none'}",
                _BASE_HINT,
            )
    return {key: from_stored(key, tensor, layer) for key, tensor in weights.items()}


def lora_factors(adapters: Sequence[LoraAdapter], layer: str) -> LoraFactors:
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
    layers = {name: layer for name, layer in group.items() if supports(layer, config.variant)}
    if not layers:
        raise RecipeError(
            f"the network `{target}` of {model.name} has no layers in the group {config.layers} "
            f"that {config.variant} supports",
            "use --layers all, which selects more layers",
        )
    return layers
