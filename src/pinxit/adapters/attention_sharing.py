"""Share attention outputs and features between the samples of a batch."""

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pinxit.errors import RequestError
from pinxit.models.model import Model

# Self-attention of a U-Net's decoder, and joint attention of a diffusion transformer.
_ATTENTION = r"(up_blocks\..+\.attn1|transformer_blocks\.\d+\.attn)"
# Which positions attend to each other (Plug-and-Play, arXiv:2211.12572).
QUERIES_AND_KEYS = rf"{_ATTENTION}\.to_[qk]"
# What is attended to (MasaCtrl, arXiv:2304.08465).
KEYS_AND_VALUES = rf"{_ATTENTION}\.to_[kv]"
# The layout of the image: features of the second level of the decoder (Plug-and-Play).
DECODER_FEATURES = r"up_blocks\.1\.resnets\.[01]\.conv2"


class AttentionSharing:
    """A model change: while `enabled`, layers copy their outputs between branches of a batch.

    A batch consists of `num_branches` branches of `num_samples` samples each, or of twice as many
    branches with classifier-free guidance. In the layers whose names match one of the patterns
    `layers`, the outputs of branch 0 are replaced by those of the branch `source`.
    """

    def __init__(
        self, layers: Sequence[str], source: int, num_branches: int, num_samples: int
    ) -> None:
        self.enabled = False
        self._layers = re.compile("|".join(layers))
        self._source = source
        self._shape = (-1, num_branches, num_samples)
        self._hooks: list[RemovableHandle] = []

    def inject(self, model: Model) -> None:
        """Add hooks to the matching layers; RequestError if the model has none of them."""
        for name, layer in model.networks["denoiser"].named_modules():
            if self._layers.fullmatch(name):
                self._hooks.append(layer.register_forward_hook(self._copy_source))
        if not self._hooks:
            raise RequestError(
                f"{model.name} has no attention layers that this control can share",
                "use --control img2img, which works with every base model",
            )

    def eject(self, model: Model) -> None:  # noqa: ARG002
        """Remove the hooks."""
        while self._hooks:
            self._hooks.pop().remove()

    def _copy_source(self, layer: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG002
        if not self.enabled:
            return output
        branches = output.unflatten(0, self._shape).clone()
        branches[:, 0] = branches[:, self._source]
        return branches.flatten(0, 2)
