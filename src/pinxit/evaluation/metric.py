"""What a metric is: a score for each image, from reference images or prompts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor

from pinxit.errors import RequestError
from pinxit.evaluation.confidence import bootstrap
from pinxit.images.tensors import to_pixels

Images = Sequence[Image]
_SIDE = 64  # the image size of pocket's classifier


class Metric(ABC):
    """A score of images; the fields of a subclass are its settings.

    The score of an image depends on that image, the set of references, and its own prompt only.
    """

    better: ClassVar[Literal["more", "less"]]

    @abstractmethod
    def score(self, images: Images, references: Images, prompts: Sequence[str]) -> list[float]:
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
    """A metric with references, and its means for look-alikes (floor) and real images (ceiling).

    `separates` is False if the confidence intervals of floor and ceiling overlap: then a position
    between them means nothing.
    """

    metric: Metric
    references: tuple[Image, ...] = field(repr=False)
    floor: float
    ceiling: float
    separates: bool = True

    @classmethod
    def of(
        cls, metric: Metric, references: Images, lookalikes: Images, held_out_images: Images = ()
    ) -> "Scale":
        """The scale of these images; without held-out ones, the ceiling is among references."""
        similar = metric.score(lookalikes, references, ())
        real = real_scores(metric, references, held_out_images)
        floor, ceiling = fmean(similar), fmean(real)
        return cls(metric, tuple(references), floor, ceiling, _apart(metric, similar, real))

    def relative(self, scores: Sequence[float]) -> list[float]:
        """The position of each score between this scale's floor (0) and ceiling (1)."""
        return [relative_position(score, self.floor, self.ceiling) for score in scores]

    def score(self, images: Images) -> Score:
        """The mean score of images, with this scale's floor and ceiling."""
        value = fmean(self.metric.score(images, self.references, ()))
        return Score(value, self.floor, self.ceiling)


def _apart(metric: Metric, lookalikes: Sequence[float], real: Sequence[float]) -> bool:
    """Whether real images score better than look-alikes, with intervals that do not overlap."""
    sign = 1 if metric.better == "more" else -1
    low, high = (bootstrap(sign * np.array(scores)) for scores in (lookalikes, real))
    return low.high < high.low


def real_scores(metric: Metric, references: Images, held_out_images: Images = ()) -> list[float]:
    """The scores of real images: held-out ones, or else of each reference among the others."""
    if held_out_images:
        return metric.score(held_out_images, references, ())
    return leave_one_out_scores(metric, references)


def leave_one_out_scores(metric: Metric, images: Images) -> list[float]:
    """The score of each image with the others as references; of a single one, of its mirror."""
    if len(images) == 1:
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


def stack_images(images: Images, side: int = _SIDE) -> Tensor:
    """Images of any sizes as one tensor (N, 3, side, side) in [-1, 1]."""
    if not images:
        raise RequestError("there are no images to score", "give at least one")
    return torch.cat([to_pixels(image, side, side) for image in images])
