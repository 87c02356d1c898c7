"""LoRAs of several concepts in one network; each sample of a batch uses that of its concept."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import ModelChange
from pinxit.adapters.peft_layers import module_paths
from pinxit.models.model import Model


@dataclass(frozen=True)
class LoraFactors:
    """LoRA weights of one layer by concept: down (r, in, ...), up (out, r, ...), alpha / r."""

    down: Sequence[Tensor]
    up: Sequence[Tensor]
    scale: Sequence[float]


class BatchedLora(ModelChange):
    """Plain LoRAs (arXiv:2106.09685) of equal shapes, one per concept, applied per sample.

    The weights are gathered for each sample. A single LoRA of the summed rank with a mask between
    its factors computes the same, but a NaN in the samples of one concept, multiplied by zero,
    would reach the gradients of all concepts.
    """

    def __init__(self, network: str, layers: Mapping[str, LoraFactors]) -> None:
        self.network = network
        self.layers = dict(layers)
        self._concepts = torch.zeros(1, dtype=torch.long)

    def before_denoise(self, timesteps: Tensor, concepts: Tensor | None) -> None:  # noqa: ARG002
        """Set the concept of each sample."""
        if concepts is not None:
            self._concepts = concepts

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Add the LoRAs to their layers as forward hooks."""
        network = model.networks[self.network]
        paths = module_paths(network)
        with ExitStack() as stack:
            for name, factors in self.layers.items():
                layer = network.get_submodule(paths[name])
                handle = layer.register_forward_hook(partial(self.add_lora, factors))
                stack.callback(handle.remove)
            yield

    def add_lora(
        self, factors: LoraFactors, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        """A forward hook that adds the LoRA of each sample's concept to a layer's output."""
        concepts = self._concepts.to(output.device).expand(len(output))
        down = torch.stack(list(factors.down))[concepts]
        up = torch.stack(list(factors.up))[concepts].flatten(2)
        scale = torch.tensor(factors.scale, device=output.device)[concepts]
        low_rank = _down_projection(layer, inputs[0].to(down.dtype), down)
        change = torch.bmm(up * scale[:, None, None].to(up.dtype), low_rank)
        if not isinstance(layer, nn.Conv2d):
            change = change.mT
        return (output + change.reshape(output.shape)).to(output.dtype)


def _down_projection(layer: nn.Module, inputs: Tensor, down: Tensor) -> Tensor:
    """The inputs (B, ...) projected by each sample's down factor, (B, r, positions)."""
    if not isinstance(layer, nn.Conv2d):
        return torch.bmm(down, inputs.reshape(len(inputs), -1, inputs.shape[-1]).mT)
    batch_size = len(inputs)
    # A grouped convolution uses another kernel for each sample.
    low_rank = nn.functional.conv2d(
        inputs.flatten(0, 1)[None],
        down.flatten(0, 1),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=batch_size,
    )
    return low_rank.reshape(batch_size, down.shape[1], -1)
