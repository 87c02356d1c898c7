"""What a metric is: pictures, references and prompts to a number per picture."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from pinxit.errors import RequestError
from pinxit.images.tensors import to_pixels

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


@dataclass(frozen=True)
class Score:
    """A mean of a metric, between what look-alikes (floor) and real pictures (ceiling) reach."""

    value: float
    floor: float
    ceiling: float

    @property
    def share(self) -> float:
        """The share of the way from floor to ceiling."""
        return share(self.value, self.floor, self.ceiling)


@dataclass(frozen=True)
class Scale:
    """A metric with its references, and what it says of look-alikes and of real pictures."""

    metric: Metric
    references: tuple["Image", ...] = field(repr=False)
    floor: float
    ceiling: float

    @classmethod
    def of(
        cls,
        metric: Metric,
        references: Sequence["Image"],
        lookalikes: Sequence["Image"],
        others: Sequence["Image"] = (),
    ) -> "Scale":
        """The scale that these pictures make; without others, references are each other's."""
        low = fmean(metric.score(lookalikes, references, ()))
        high = fmean(metric.score(others, references, ()) if others else apart(metric, references))
        return cls(metric, tuple(references), low, high)

    def score(self, images: Sequence["Image"]) -> Score:
        """The mean over some pictures, on this scale."""
        return Score(
            fmean(self.metric.score(images, self.references, ())), self.floor, self.ceiling
        )


def apart(metric: Metric, images: Sequence["Image"]) -> list[float]:
    """Each picture's number among the others; of one alone, that of its mirror image."""
    if len(images) == 1:
        from PIL import ImageOps

        return metric.score([ImageOps.mirror(images[0])], images, ())
    others = ([*images[:at], *images[at + 1 :]] for at in range(len(images)))
    return [metric.score([image], rest, ())[0] for image, rest in zip(images, others, strict=True)]


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
