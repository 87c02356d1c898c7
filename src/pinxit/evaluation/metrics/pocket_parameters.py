"""Error of the subject's parameters in pocket's world: colours, proportions and emblem."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pinxit.evaluation.metric import Images, Metric, stack_images
from pinxit.pocket.eyes import NUMBERS, Eyes


@dataclass(frozen=True)
class PocketParameters(Metric):
    """Mean error of the parameters that pocket's classifier reads, each in 0..1.

    The true values are `truth` (15,) if given, otherwise the mean of what the classifier reads in
    the references. The emblem counts as one parameter.
    """

    better = "less"
    eyes: Eyes = field(default_factory=Eyes.load)
    truth: tuple[float, ...] | None = None

    def score(self, images: Images, references: Images, prompts: Sequence[str] = ()) -> list[float]:  # noqa: ARG002
        """A mean error for each image, 0 is perfect."""
        if self.truth is None:
            true_values = self.eyes.look(stack_images(references)).hidden.mean(0)
        else:
            true_values = torch.tensor(self.truth)
        return _errors(self.eyes.look(stack_images(images)).hidden, true_values).tolist()


def _errors(predicted: Tensor, true_values: Tensor) -> Tensor:
    """Mean errors (N,) of predicted parameters (N, 15) against the true ones (15,)."""
    error = (predicted - true_values).abs()
    emblem = error[:, NUMBERS:].sum(1, keepdim=True) / 2
    return torch.cat([error[:, :NUMBERS], emblem], 1).mean(1)
