"""What a metric is: pictures, references and prompts to a number per picture."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from pinxit.errors import RequestError
from pinxit.pixels import to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 64  # what pocket's eyes take


class Metric(ABC):
    """A way to judge pictures, whatever painted them; its fields are its settings.

    A picture's number depends on that picture, the references as a set, and its own prompt.
    """

    better: ClassVar[Literal["more", "less"]]

    @abstractmethod
    def score(
        self, images: Sequence["Image"], references: Sequence["Image"], prompts: Sequence[str]
    ) -> list[float]:
        """A number for each picture; `prompts` has one for each, or none where none is needed."""


def share(value: float, floor: float, ceiling: float) -> float:
    """How far `value` is on the way from floor (0) to ceiling (1), whichever of them is larger."""
    if floor == ceiling:
        raise RequestError(
            f"floor and ceiling are both {floor:g}: there is no way between them",
            "take another distractor, or more real pictures",
        )
    return (value - floor) / (ceiling - floor)


def stacked(images: Sequence["Image"], side: int = _SIDE) -> Tensor:
    """Pictures of any sizes as one tensor (N, 3, side, side) in [-1, 1]."""
    if not images:
        raise RequestError("there is no picture to look at", "give at least one")
    return torch.cat([to_pixels(image, side, side) for image in images])
