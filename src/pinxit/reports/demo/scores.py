"""Scores with their floor and ceiling: paintings against real pictures of the same thing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from pinxit import registry
from pinxit.evaluation.metric import Scale, Score
from pinxit.reports.demo.trial import Painting

if TYPE_CHECKING:
    from PIL.Image import Image

    from pinxit.pocket.eyes import Eyes

ASKED = ("class", "background", "style")


@dataclass(frozen=True)
class Scores:
    """What some paintings are worth: likeness by metric, and the shares with each thing right."""

    pictures: int
    likeness: Mapping[str, Score]
    right: Mapping[str, float]

    def plain(self) -> dict[str, object]:
        """All of it as plain numbers."""
        likeness = {name: {**asdict(s), "share": s.share} for name, s in self.likeness.items()}
        return {"pictures": self.pictures, "likeness": likeness, "right": dict(self.right)}


def judge(paintings: Sequence[Painting], scales: Mapping[str, Scale], eyes: "Eyes") -> Scores:
    """Score paintings on each scale, and by whether they show what was meant."""
    images = [painting.image for painting in paintings]
    prompts = [painting.prompt.meant for painting in paintings]
    right: dict[str, float] = {}
    for name, questions in (*((asked, (asked,)) for asked in ASKED), ("all", ASKED)):
        metric = registry.load("metrics", "attributes")(eyes=eyes, questions=questions)
        right[name] = fmean(mark == 1 for mark in metric.score(images, (), prompts))
    likeness = {name: scale.score(images) for name, scale in scales.items()}
    return Scores(len(images), likeness, right)


def subject_scales(
    references: Sequence["Image"],
    lookalikes: Sequence["Image"],
    others: Sequence["Image"],
    hidden: Sequence[float],
    eyes: "Eyes",
) -> dict[str, Scale]:
    """Both likenesses of a subject whose hidden parameters the world knows."""
    metrics = {
        "likeness": registry.load("metrics", "likeness")(eyes=eyes),
        "hidden": registry.load("metrics", "hidden")(eyes=eyes, truth=tuple(hidden)),
    }
    return {name: Scale.of(m, references, lookalikes, others) for name, m in metrics.items()}


def style_scales(
    references: Sequence["Image"], photos: Sequence["Image"], others: Sequence["Image"]
) -> dict[str, Scale]:
    """The colours and the manner of a style, between the same things' photos and the truth."""
    metrics = {name: registry.load("metrics", name)() for name in ("colour", "gram")}
    return {name: Scale.of(m, references, photos, others) for name, m in metrics.items()}
