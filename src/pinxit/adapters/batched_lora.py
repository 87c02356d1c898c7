"""LoRAs of several concepts in one network, each beside the samples of its own concept alone."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pinxit.adapters.peft_layers import paths_of
from pinxit.models.model import Model


@dataclass(frozen=True)
class Factors:
    """By concept a layer's weights, down (r, in, ...) and up (out, r, ...), and what they count."""

    down: Sequence[Tensor]
    up: Sequence[Tensor]
    scale: Sequence[float]


class LowRanks:
    """Plain LoRAs (arXiv:2106.09685) of one shape, of which each sample has its concept's.

    The weights are gathered for each sample. One LoRA of all their ranks with a mask between its
    halves says the same, but there what is no number in one concept's samples would come, times
    nought, into the gradients of all.
    """

    touches_text = False

    def __init__(self, target: str, layers: Mapping[str, Factors]) -> None:
        self.target = target
        self.layers = dict(layers)
        self._concepts = torch.zeros(1, dtype=torch.long)
        self._undo = ExitStack()

    def serve(self, concepts: Tensor) -> None:
        """Sample n is of the concept `concepts[n]` from now on; if there is one, so are all."""
        self._concepts = concepts

    def inject(self, model: Model) -> None:
        """The layers are changed from now on."""
        network = model.networks[self.target]
        paths = paths_of(network)
        for name, factors in self.layers.items():
            layer = network.get_submodule(paths[name])
            handle = layer.register_forward_hook(self._changed(factors))
            self._undo.callback(handle.remove)

    def eject(self, model: Model) -> None:  # noqa: ARG002
        """The layers are the base's own again."""
        self._undo.close()

    def _changed(self, factors: Factors) -> Callable[..., Tensor]:
        def change(layer: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
            concepts = self._concepts.to(answer.device).expand(len(answer))
            down = torch.stack(list(factors.down))[concepts]
            up = torch.stack(list(factors.up))[concepts].flatten(2)
            scale = torch.tensor(factors.scale, device=answer.device)[concepts]
            between = _lowered(layer, given[0].to(down.dtype), down)
            change = torch.bmm(up * scale[:, None, None].to(up.dtype), between)
            if not isinstance(layer, nn.Conv2d):
                change = change.mT
            return (answer + change.reshape(answer.shape)).to(answer.dtype)

        return change


def _lowered(layer: nn.Module, given: Tensor, down: Tensor) -> Tensor:
    """What each sample's own first factor makes of it, (B, r, places)."""
    if not isinstance(layer, nn.Conv2d):
        return torch.bmm(down, given.reshape(len(given), -1, given.shape[-1]).mT)
    count = len(given)
    found = nn.functional.conv2d(
        given.flatten(0, 1)[None],
        down.flatten(0, 1),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=count,
    )
    return found.reshape(count, down.shape[1], -1)
