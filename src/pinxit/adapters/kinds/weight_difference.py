"""Weight differences: tensors that are added to weights of a network (LyCORIS calls them full)."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinxit.adapters.adapter import Adapter, on_cpu
from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.peft_layers import base_layer, module_paths
from pinxit.adapters.strength import layer_strength
from pinxit.errors import ConceptError
from pinxit.models.kernels.quantize import dequantized_weight, replace_weight, weight_shape
from pinxit.models.model import Model


class WeightDifference(Adapter):
    """Differences, scaled by the strength, that are added to weights and biases of a network.

    During training (`strength` is None) they are parameters, and change the outputs of their layers
    instead, so that the weights of the base model may be in any precision.
    """

    part_type = DifferencePart

    def __init__(self, network: str, differences: Mapping[str, Tensor], *, text: bool) -> None:
        self.network = network
        self.differences = differences
        self.changes_conditioning = text
        self.strength = 1.0

    @classmethod
    def of(cls, model: Model, network: str, layers: Sequence[str]) -> Self:
        """Trainable differences, 0 at first, of the weights of linear layers."""
        module, differences = model.networks[network], dict[str, Tensor]()
        paths = module_paths(module)
        for name in layers:
            shape = weight_shape(base_layer(module.get_submodule(paths[name])))
            zeros = torch.zeros(shape, device=model.device)
            differences[f"{name}.weight"] = nn.Parameter(zeros)
        adapter = cls(network, differences, text=network in model.text_encoders)
        adapter.strength = None
        return adapter

    def weights(self) -> Mapping[str, nn.Parameter]:
        """The differences during training; empty for a trained adapter."""
        if self.strength is not None:
            return {}
        return {n: d for n, d in self.differences.items() if isinstance(d, nn.Parameter)}

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Add the differences to the weights, or in training their effect to the outputs."""
        network = model.networks[self.network]
        paths = module_paths(network)
        with ExitStack() as undo:
            for name, difference in self.differences.items():
                layer, _, leaf = name.rpartition(".")
                module = base_layer(network.get_submodule(paths[layer]))
                if self.strength is None:
                    hook = partial(_add_effect, difference)
                    undo.callback(module.register_forward_hook(hook).remove)
                    continue
                strength = layer_strength(self.strength, model, self.network, layer)
                change = strength * difference.to(module.weight.device, torch.float32)
                if leaf == "weight":
                    changed = dequantized_weight(module) + change
                    undo.callback(replace_weight(module, changed))
                    continue
                undo.callback(setattr, module, leaf, module.bias)
                bias = (module.bias.float() + change).to(module.bias.dtype)
                module.bias = nn.Parameter(bias, requires_grad=False)
            yield

    def part(self) -> DifferencePart:
        """The differences as data."""
        return DifferencePart(self.network, on_cpu(self.differences))

    @classmethod
    def restore(cls, part: DifferencePart, model: Model) -> Self:
        """The differences for this model; ConceptError if a layer or a shape does not fit."""
        network = model.networks.get(part.network, nn.Module())
        paths = module_paths(network)
        differences: dict[str, Tensor] = {}
        for name, tensor in part.weights.items():
            layer, _, leaf = name.rpartition(".")
            module = network.get_submodule(paths[layer]) if layer in paths else nn.Module()
            weight = getattr(base_layer(module), leaf, None)
            if leaf == "weight" and weight is not None:
                weight = torch.empty(weight_shape(base_layer(module)), device="meta")
            # A kernel may be stored as a matrix, and a matrix as a kernel of 1 x 1.
            if not isinstance(weight, Tensor) or _as_matrix(weight) != _as_matrix(tensor):
                own = f"the shape {tuple(weight.shape)}" if weight is not None else "none"
                raise ConceptError(
                    f"the concept changes the weight `{part.network}.{name}` by a difference of "
                    f"the shape {tuple(tensor.shape)}, but {model.name} has {own}",
                    "use it with the kind of base model that it was trained on",
                )
            differences[name] = tensor.reshape(weight.shape)
        return cls(part.network, differences, text=part.network in model.text_encoders)


def _add_effect(
    difference: Tensor, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """A forward hook that adds the effect of a difference to the output of a linear layer."""
    return output + F.linear(inputs[0].to(difference.dtype), difference).to(output.dtype)


def _as_matrix(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape as a matrix, or as a vector."""
    return tuple(tensor.shape if tensor.ndim < 2 else tensor.flatten(1).shape)
