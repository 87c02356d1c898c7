"""Layers that answer for some samples of a batch what they answer for others."""

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pinxit.errors import RequestError
from pinxit.models.model import Model

# By what is shared, the layers of a U-Net's decoder, and of a transformer on pictures and text.
_ATTENTION = r"(up_blocks\..+\.attn1|transformer_blocks\.\d+\.attn)"
# Where pictures look: self-attention's queries and keys (Plug-and-Play, arXiv:2211.12572).
PLACES = rf"{_ATTENTION}\.to_[qk]"
# What they see there: keys and values (MasaCtrl, arXiv:2304.08465).
CONTENTS = rf"{_ATTENTION}\.to_[kv]"
# What is where: features of the second level of the decoder (Plug-and-Play).
FEATURES = r"up_blocks\.1\.resnets\.[01]\.conv2"


class Sharing:
    """An adapter: while `on`, layers answer for pictures what they answer for others beside them.

    `layers` are patterns of layers' names. A batch is made of `parts` of so many samples each, or
    of twice as many: the pictures are the first part, the others that of the number `role`.
    """

    def __init__(self, layers: Sequence[str], role: int, parts: int, count: int) -> None:
        self.on = False
        self._layers = re.compile("|".join(layers))
        self._role = role
        self._batch = (-1, parts, count)
        self._hooks: list[RemovableHandle] = []

    def inject(self, model: Model) -> None:
        """Listen to the layers; RequestError if the base has none of them."""
        for name, layer in model.networks["denoiser"].named_modules():
            if self._layers.fullmatch(name):
                self._hooks.append(layer.register_forward_hook(self._shared))
        if not self._hooks:
            raise RequestError(
                f"{model.name} has no layers by which one picture can hold another",
                "take --control img2img, which every base can",
            )

    def eject(self, model: Model) -> None:  # noqa: ARG002
        """Leave the layers alone."""
        while self._hooks:
            self._hooks.pop().remove()

    def _shared(self, layer: nn.Module, given: object, answer: Tensor) -> Tensor:  # noqa: ARG002
        if not self.on:
            return answer
        rows = answer.unflatten(0, self._batch).clone()
        rows[:, 0] = rows[:, self._role]
        return rows.flatten(0, 2)
