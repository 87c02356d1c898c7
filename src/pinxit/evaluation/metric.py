"""What a metric is: a score for each image, from reference images or prompts."""

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

_SIDE = 64  # the image size of pocket's classifier


class Metric(ABC):
    """A score of images; the fields of a subclass are its settings.

    The score of an image depends on that image, the set of references, and its own prompt only.
    """

    better: ClassVar[Literal["more", "less"]]

    @abstractmethod
    def score(
        self, images: Sequence["Image"], references: Sequence["Image"], prompts: Sequence[str]
    ) -> list[float]:
        """A score for each image; `prompts` has one for each, or is empty if not needed."""


@dataclass(frozen=True)
class Score:
    """The mean of a metric, with the means of look-alikes (floor) and real images (ceiling)."""

    value: float
    floor: float
    ceiling: float

    @property
    def relative(self) -> float:
        """The position between floor (0) and ceiling (1)."""
        return relative_position(self.value, self.floor, self.ceiling)


@dataclass(frozen=True)
class Scale:
    """A metric with references, and its means for look-alikes (floor) and real images (ceiling)."""

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
        held_out_images: Sequence["Image"] = (),
    ) -> "Scale":
        """The scale of these images; without held-out ones, the ceiling is among references."""
        floor = fmean(metric.score(lookalikes, references, ()))
        if held_out_images:
            ceiling = fmean(metric.score(held_out_images, references, ()))
        else:
            ceiling = fmean(leave_one_out_scores(metric, references))
        return cls(metric, tuple(references), floor, ceiling)

    def score(self, images: Sequence["Image"]) -> Score:
        """The mean score of images, with this scale's floor and ceiling."""
        return Score(
            fmean(self.metric.score(images, self.references, ())), self.floor, self.ceiling
        )


def leave_one_out_scores(metric: Metric, images: Sequence["Image"]) -> list[float]:
    """The score of each image with the others as references; of a single one, of its mirror."""
    if len(images) == 1:
        from PIL import ImageOps

        return metric.score([ImageOps.mirror(images[0])], images, ())
    scores: list[float] = []
    for i, image in enumerate(images):
        others = [*images[:i], *images[i + 1 :]]
        scores += metric.score([image], others, ())
    return scores


def relative_position(value: float, floor: float, ceiling: float) -> float:
    """The position of a value between floor (0) and ceiling (1); the floor may be the larger."""
    if floor == ceiling:
        raise RequestError(
            f"floor and ceiling are both {floor:g}, so nothing can be placed between them",
            "use other look-alikes, or more real images",
        )
    return (value - floor) / (ceiling - floor)


def stack_images(images: Sequence["Image"], side: int = _SIDE) -> Tensor:
    """Images of any sizes as one tensor (N, 3, side, side) in [-1, 1]."""
    if not images:
        raise RequestError("there are no images to score", "give at least one")
    return torch.cat([to_pixels(image, side, side) for image in images])
