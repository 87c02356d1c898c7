"""The weights of a base model as they lie in its files: layers are changed one at a time."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.kinds.lora import restored_layer
from pinxit.adapters.lora_part import ALPHA, LoraPart
from pinxit.adapters.parts import Part
from pinxit.adapters.peft_layers import merge_weights
from pinxit.concepts.concept import Concept
from pinxit.concepts.format import Target
from pinxit.concepts.full_model_file import BASE_HINT, base_path, trainable_weights
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import disk_errors
from pinxit.files.mapped import forget_pages, map_scratch
from pinxit.models.open_base import find_base

_ALIGNMENT = 64
Name = tuple[str, str]


class BaseWeights:
    """The weights of a base model by network and name; they are views of its files.

    Raises ConceptError if no base model is given and `concept` does not state its own.
    """

    def __init__(self, base: str | None, concept: Concept) -> None:
        self.source = find_base(base_path(concept, Target(Path(), base or None)))
        self.name = self.source.name

    @cached_property
    def networks(self) -> dict[str, dict[str, Tensor]]:
        """The weights by network and name."""
        return trainable_weights(self.source)

    def check_has(self, network: str, name: str) -> None:
        """Raise ConceptError if the base model has no such weight."""
        if name not in self.networks.get(network, {}):
            raise ConceptError(
                f"the concept changes the weight `{network}.{name}`, but {self.name} has none",
                BASE_HINT,
            )

    def check_shape(self, network: str, name: str, tensor: Tensor) -> None:
        """Raise ConceptError if a tensor cannot be reshaped to a weight."""
        weight = self.networks[network][name]
        if tensor.numel() != weight.numel() or len(tensor) != len(weight):
            raise ConceptError(
                f"`{network}.{name}` has the shape {tuple(tensor.shape)}, but "
                f"{tuple(weight.shape)} in {self.name}",
                BASE_HINT,
            )

    def changed(self, weight: Tensor, part: Part, name: str, strength: float) -> Tensor:
        """A weight in fp32 with the change of a part; itself if the part does not change it."""
        layer = name.removesuffix(".weight")
        if isinstance(part, DifferencePart) and name in part.weights:
            difference = part.weights[name]
            self.check_shape(part.network, name, difference)
            return weight.float() + strength * difference.float().reshape(weight.shape)
        if not isinstance(part, LoraPart) or name == layer or layer not in part.layers:
            return weight
        module = _layer(weight)
        factors = restored_layer(part, layer, module, self.name)
        alpha = part.layers[layer].get(ALPHA)
        with torch.no_grad():
            original, merged = merge_weights(
                module, part.variant, factors, None if alpha is None else float(alpha)
            )
            return torch.lerp(original, merged, strength)

    def difference(self, part: LoraPart, layer: str) -> Tensor:
        """What an adapter adds to the weight of a layer at strength 1, in fp32."""
        name = f"{layer}.weight"
        self.check_has(part.network, name)
        weight = self.networks[part.network][name]
        return self.changed(weight, part, name, 1.0) - weight.float()

    def scratch(
        self, folder: Path, names: Sequence[Name], dtype: torch.dtype | None
    ) -> "ScratchTensors":
        """Space in a temporary file for weights of these names; DiskError if the disk is full."""
        weights = (self.networks[network][name] for network, name in names)
        sizes = (w.numel() * (dtype or w.dtype).itemsize + _ALIGNMENT for w in weights)
        return ScratchTensors(folder, sum(sizes))


class ScratchTensors:
    """Tensors in a temporary file: more of them than fit into memory."""

    def __init__(self, folder: Path, size: int) -> None:
        with disk_errors(folder):
            self._data = map_scratch(folder, max(size, 1))
        self._used = 0

    def store(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of a tensor in this number format, in the file."""
        if not tensor.numel():
            return tensor.to(dtype)
        count = tensor.numel()
        view = torch.frombuffer(self._data, dtype=dtype, count=count, offset=self._used)
        copy = view.view(tensor.shape).copy_(tensor)
        self._used += -(-copy.nbytes // _ALIGNMENT) * _ALIGNMENT
        forget_pages(2 * copy.nbytes)
        return copy


def _layer(weight: Tensor) -> Any:
    """A layer with this weight, for the libraries that change layers."""
    if weight.ndim == 4:
        outputs, inputs, *sides = weight.shape
        layer: Any = nn.Conv2d(inputs, outputs, (sides[0], sides[1]), bias=False, device="meta")
    else:
        layer = nn.Linear(weight.shape[-1], len(weight), bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
