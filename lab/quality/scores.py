"""Scores of generated images on scales from look-alikes (floor) to real images (ceiling)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from lab.quality.harness import LabImage
from pinxit import registry
from pinxit.evaluation.metric import Images, Scale, Score
from pinxit.pocket.eyes import Eyes

ATTRIBUTES = ("class", "background", "style")


@dataclass(frozen=True)
class Scores:
    """Scores of images: likeness by metric, and the share with each attribute correct."""

    num_images: int
    likeness: Mapping[str, Score]
    accuracy: Mapping[str, float]

    def to_dict(self) -> dict[str, object]:
        """All scores as plain numbers, for JSON."""
        likeness = {name: {**asdict(s), "share": s.relative} for name, s in self.likeness.items()}
        return {"pictures": self.num_images, "likeness": likeness, "right": dict(self.accuracy)}


def score_images(
    generated: Sequence[LabImage],
    scales: Mapping[str, Scale],
    eyes: Eyes,
    asked: tuple[str, ...] = ATTRIBUTES,
) -> Scores:
    """Score images on each scale, and by whether they show the attributes of their prompts."""
    images = [image.image for image in generated]
    prompts = [image.prompt.target_text for image in generated]
    accuracy: dict[str, float] = {}
    for name, attributes in (*((name, (name,)) for name in asked), ("all", asked)):
        metric = registry.load("metrics", "pocket-attributes")(eyes=eyes, questions=attributes)
        accuracy[name] = fmean(score == 1 for score in metric.score(images, (), prompts))
    likeness = {name: scale.score(images) for name, scale in scales.items()}
    return Scores(len(images), likeness, accuracy)


def subject_scales(
    references: Images, lookalikes: Images, others: Images, hidden: Sequence[float], eyes: Eyes
) -> dict[str, Scale]:
    """Two likeness scales of a subject, whose true parameters pocket's world knows."""
    metrics = {
        "likeness": registry.load("metrics", "pocket-likeness")(eyes=eyes),
        "hidden": registry.load("metrics", "pocket-parameters")(eyes=eyes, truth=tuple(hidden)),
    }
    return {name: Scale.of(m, references, lookalikes, others) for name, m in metrics.items()}


def style_scales(references: Images, photos: Images, others: Images) -> dict[str, Scale]:
    """Scales of a style's colours and texture, from photos (0) to true renderings (1)."""
    metrics = {name: registry.load("metrics", name)() for name in ("colour", "gram")}
    return {name: Scale.of(m, references, photos, others) for name, m in metrics.items()}
