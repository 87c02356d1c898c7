"""Timestep LoRA: a LoRA whose rank falls as noise rises (T-LoRA, arXiv:2507.05964)."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig, LoraPart, TimestepLoraPart
from pinxit.adapters.peft_layers import LayerWeights, module_paths
from pinxit.adapters.strength import layer_strength
from pinxit.models.model import Model
from pinxit.rng import generator

# Timesteps count from 0, no noise, to this, in all families.
_MAX_TIMESTEP = 1000


@dataclass(eq=False)
class TimestepLora(LoraAdapter):
    """A LoRA of which, at timestep t, only the first ranks are used.

    Their number falls from the full rank at t = 0 to `min_rank` at the noisiest timestep, where a
    subject is easily learned together with its pose and background. The change of a layer depends
    on the timestep, so it is never merged into the weights.
    """

    min_rank: int = 1
    part_type = TimestepLoraPart

    def __post_init__(self) -> None:
        self._timesteps = torch.zeros(1)

    @classmethod
    def of(cls, model: Model, network: str, config: LoraConfig, seed: int) -> Self:
        """A trainable adapter that changes nothing yet, with orthogonal rows in each down factor.

        Otherwise the ranks that are always used would learn what the others learn too.
        """
        adapter = super().of(model, network, config, seed)
        for name, weights in adapter.layers.items():
            down = weights["lora_A.weight"]
            rng = generator(seed, "orthogonal", network, name)
            norm = down.detach().flatten(1).norm(dim=1).mean()
            with torch.no_grad():
                rows = torch.randn(down.flatten(1).shape, generator=rng).to(down.device)
                # Vh has orthogonal rows, or if there are more rows than columns, U such columns.
                left, _, right = torch.linalg.svd(rows, full_matrices=False)
                down.copy_((left @ right).view_as(down))
                down.mul_(norm / down.flatten(1).norm(dim=1).mean())
        return adapter

    def before_denoise(self, timesteps: Tensor, concepts: Tensor | None) -> None:  # noqa: ARG002
        """Set the timesteps."""
        self._timesteps = timesteps

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Add the change of each layer to its output."""
        network = model.networks[self.network]
        paths = module_paths(network)
        with ExitStack() as stack:
            for name, weights in self.layers.items():
                strength = 1.0
                if self.strength is not None:
                    strength = layer_strength(self.strength, model, self.network, name)
                rank = len(weights["lora_A.weight"])
                scale = strength * self.alphas.get(name, rank) / rank
                hook = partial(self._add_lora, weights, scale)
                layer = network.get_submodule(paths[name])
                stack.callback(layer.register_forward_hook(hook).remove)
            yield

    def mask(self, rank: int) -> Tensor:
        """Which ranks are used at the timesteps, (B, rank), 0 or 1."""
        least = min(self.min_rank, rank)
        remaining = (1 - self._timesteps.float() / _MAX_TIMESTEP).clamp(0, 1)
        used = (remaining * (rank - least)).floor() + least
        ranks = torch.arange(rank, device=used.device)
        return (ranks < used[:, None]).float()

    def _add_lora(
        self,
        weights: LayerWeights,
        scale: float,
        layer: nn.Module,
        inputs: tuple[Tensor, ...],
        output: Tensor,
    ) -> Tensor:
        """A forward hook that adds the LoRA to a layer's output."""
        down, up = weights["lora_A.weight"], weights["lora_B.weight"]
        values, mask = inputs[0].to(down.dtype), self.mask(len(down)).to(output.device)
        if isinstance(layer, nn.Conv2d):
            sizes: Any = (layer.stride, layer.padding, layer.dilation)
            low_rank = F.conv2d(values, down, None, *sizes) * mask[:, :, None, None]
            change = F.conv2d(low_rank, up)
        else:
            between = [1] * (values.ndim - 2)
            low_rank = F.linear(values, down) * mask.view(len(mask), *between, -1)
            change = F.linear(low_rank, up)
        return (output + scale * change).to(output.dtype)

    def part(self) -> TimestepLoraPart:
        """The weights, alphas and `min_rank` as data."""
        part = super().part()
        return TimestepLoraPart(part.network, part.variant, part.layers, self.min_rank)

    @classmethod
    def restore(cls, part: LoraPart, model: Model) -> Self:
        """The trained adapter for this model; ConceptError if layers or shapes do not fit."""
        assert isinstance(part, TimestepLoraPart)
        adapter = super().restore(part, model)
        adapter.min_rank = part.min_rank
        return adapter
