"""Full weights: trained weights that replace all weights of a network."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Adapter, on_cpu
from pinxit.adapters.parts import FullWeightsPart
from pinxit.errors import ConceptError
from pinxit.models.model import Model
from pinxit.models.sharding import ShardedNetwork


class FullWeightsAdapter(Adapter):
    """Trained weights that replace all weights of a network, which are unloaded meanwhile."""

    part_type = FullWeightsPart

    def __init__(self, network: str, tensors: Mapping[str, Tensor], *, text: bool) -> None:
        self.network = network
        self.parameters = {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
        self.changes_conditioning = text
        self.sharded: ShardedNetwork | None = None

    @classmethod
    def of(cls, model: Model, network: str) -> Self:
        """Start training from the network's weights, which the adapter takes over.

        Raises ConceptError if the network is quantized.
        """
        _check_not_quantized(model, network)
        weights = {name: w.detach() for name, w in model.networks[network].named_parameters()}
        model.offload(network)
        return cls(network, weights, text=network in model.text_encoders)

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Put the weights into the network, which afterwards reads its own from the file again."""
        if self.sharded:
            model.offload(self.network)
            with model.replaced(self.network, self.sharded.module):
                yield
            return
        module = model.emptied(self.network)
        originals: dict[str, nn.Parameter] = {}
        try:
            for name, weight in self.parameters.items():
                originals[name] = _replace_weight(module, name, weight)
            yield
        finally:
            for name, weight in originals.items():
                _replace_weight(module, name, weight)
            model.offload(self.network)

    def weights(self) -> Mapping[str, nn.Parameter]:
        """All weights by their names in the network."""
        return self.parameters

    def shard(self, model: Model) -> ShardedNetwork:
        """Divide the weights among processes."""
        self.sharded = ShardedNetwork(model.all_networks[self.network], self.parameters)
        return self.sharded

    def part(self) -> FullWeightsPart:
        """The weights and the name of their network as data."""
        assert self.whole or not self.sharded
        return FullWeightsPart(self.network, on_cpu(self.whole or self.parameters))

    @classmethod
    def restore(cls, part: FullWeightsPart, model: Model) -> Self:
        """The weights for this model; ConceptError if names or shapes differ from the model's."""
        network = part.network
        if network not in model.networks:
            raise ConceptError(
                f"the concept replaces the network `{network[:80]}`, which {model.name} does not "
                "have",
                f"its networks are: {', '.join(model.networks)}",
            )
        _check_not_quantized(model, network)
        module = model.networks[network]
        originals = dict(module.named_parameters())
        # Some releases of transformers prefix the weight names of text encoders, others do not.
        names = {name.removeprefix("text_model."): name for name in originals}
        weights = {
            names.get(name.removeprefix("text_model."), name): tensor
            for name, tensor in part.weights.items()
        }
        if originals.keys() != weights.keys():
            raise ConceptError(
                f"the concept has {len(part.weights)} weights for the network `{network}`, but "
                f"{model.name} has {len(originals)} for it, or has other names",
                "use it with the kind of base model that it was trained on",
            )
        for name, tensor in weights.items():
            if tensor.shape != originals[name].shape:
                raise ConceptError(
                    f"`{network}.{name}` has the shape {tuple(tensor.shape)} in the concept, but "
                    f"{tuple(originals[name].shape)} in {model.name}",
                    "use it with the kind of base model that it was trained on",
                )
        tensors = {name: _channels_last(t).to(originals[name]) for name, t in weights.items()}
        return cls(network, tensors, text=network in model.text_encoders)


def _check_not_quantized(model: Model, network: str) -> None:
    if model.placement.is_quantized and network == "denoiser":
        raise ConceptError(
            f"{model.name} is open in {model.placement.precision}, so its denoiser weights cannot "
            "be trained or replaced",
            "open it with another --precision, such as bf16",
        )


def _replace_weight(network: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter:
    """Set a weight of a network and return the previous one."""
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    previous = module.get_parameter(leaf)
    setattr(module, leaf, weight)
    return previous


def _channels_last(tensor: Tensor) -> Tensor:
    """Convolution weights in the memory layout that computes fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
