"""Share attention outputs and features between the samples of a batch."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from pinxit.adapters.adapter import ModelChange
from pinxit.errors import RequestError
from pinxit.models.model import Model


class AttentionSharing(ModelChange):
    """A model change: while `enabled`, layers copy their outputs between branches of a batch.

    A batch consists of `num_branches` branches of `num_samples` samples each, or of twice as many
    branches with classifier-free guidance. In the layers of `layer_groups`, the outputs of branch
    0 are replaced by those of the branch `source`.
    """

    def __init__(
        self, layer_groups: Sequence[str], source: int, num_branches: int, num_samples: int
    ) -> None:
        self.enabled = False
        self._layer_groups = tuple(layer_groups)
        self._source = source
        self._shape = (-1, num_branches, num_samples)

    @contextmanager
    def applied(self, model: Model) -> Generator[None]:
        """Add hooks to the layers of the groups; RequestError if the model has none of them."""
        with ExitStack() as stack:
            for layer in shared_layers(model, self._layer_groups):
                stack.callback(layer.register_forward_hook(self._copy_source).remove)
            yield

    def _copy_source(self, layer: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG002
        if not self.enabled:
            return output
        branches = output.unflatten(0, self._shape).clone()
        branches[:, 0] = branches[:, self._source]
        return branches.flatten(0, 2)


def shared_layers(model: Model, layer_groups: Sequence[str]) -> list[nn.Module]:
    """The denoiser's layers of these groups; RequestError if there are none."""
    patterns = [model.layer_pattern("denoiser", group) for group in layer_groups]
    layers = [
        layer
        for name, layer in model.networks["denoiser"].named_modules()
        if any(pattern.search(name) for pattern in patterns)
    ]
    if not layers:
        raise RequestError(
            f"{model.name} has no attention layers that this control can share",
            "use --control img2img, which works with every base model",
        )
    return layers
