"""Weight differences: tensors that are added to weights of a network (LyCORIS calls them full)."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Adapter, on_cpu
from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.peft_layers import base_layer, module_paths
from pinxit.adapters.strength import layer_strength
from pinxit.errors import ConceptError
from pinxit.models.kernels.quantize import dequantized_weight, replace_weight
from pinxit.models.model import Model


class WeightDifference(Adapter):
    """Differences, scaled by the strength, that are added to weights and biases of a network."""

    part_type = DifferencePart

    def __init__(self, network: str, differences: Mapping[str, Tensor], *, text: bool) -> None:
        self.network = network
        self.differences = differences
        self.changes_conditioning = text
        self.strength = 1.0

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Add the differences to the weights."""
        network = model.networks[self.network]
        paths = module_paths(network)
        with ExitStack() as undo:
            for name, difference in self.differences.items():
                layer, _, leaf = name.rpartition(".")
                module = base_layer(network.get_submodule(paths[layer]))
                strength = layer_strength(self.strength or 0.0, model, self.network, layer)
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
        for name, tensor in part.differences.items():
            layer, _, leaf = name.rpartition(".")
            module = network.get_submodule(paths[layer]) if layer in paths else nn.Module()
            weight = getattr(base_layer(module), leaf, None)
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


def _as_matrix(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape as a matrix, or as a vector."""
    return tuple(tensor.shape if tensor.ndim < 2 else tensor.flatten(1).shape)
