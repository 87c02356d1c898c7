"""How far the subject's hidden parameters are off: colours, proportions and emblem."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pinxit.evaluation.metric import Metric, stacked
from pinxit.pocket.eyes import NUMBERS, Eyes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Hidden(Metric):
    """Mean error of what pocket's eyes read off a picture, each parameter in 0..1.

    The right values are `truth` (15,) where the world knows them, and otherwise the mean of what
    the eyes read off the references. The emblem counts as one parameter.
    """

    better = "less"
    eyes: Eyes = field(default_factory=Eyes.load)
    truth: tuple[float, ...] | None = None

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],
        prompts: Sequence[str] = (),  # noqa: ARG002
    ) -> list[float]:
        """A mean error for each picture, 0 at best."""
        if self.truth is None:
            wanted = self.eyes.look(stacked(references)).hidden.mean(0)
        else:
            wanted = torch.tensor(self.truth)
        return _errors(self.eyes.look(stacked(images)).hidden, wanted).tolist()


def _errors(read: Tensor, wanted: Tensor) -> Tensor:
    """Errors (N,) of parameters read (N, 15) against the right ones (15,)."""
    off = (read - wanted).abs()
    emblem = off[:, NUMBERS:].sum(1, keepdim=True) / 2
    return torch.cat([off[:, :NUMBERS], emblem], 1).mean(1)
