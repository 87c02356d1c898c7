"""Compares the quality of training by pinxit and by the plain fp32 loop, after the same steps.

One subject of pocket's world is trained by each method with several seeds on each side, with the
same learning rate, weight decay, clipping and batch size. Images are generated with the same model
in fp32 and scored as in lab/quality/subjects.py. The last line on stdout is JSON: the scores of
each side, and the difference with its 95% confidence interval (Student's t over the seeds).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from torch import Tensor

from lab.quality.harness import LabImage, Prompt
from lab.quality.scores import score_images, subject_scales
from lab.speed import plain
from lab.speed.job import TOKEN
from pinxit import registry
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import AliasPart, EmbeddingPart, FullWeightsPart, Part
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.generation.sample import generate_images
from pinxit.images.folder import read_images
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, held_out_subjects
from pinxit.runs.class_images import read_class_images
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train

SCALES = ("likeness", "hidden")

# Steps and batch size: about as much as training needs.
_SETTINGS: dict[str, dict[str, Any]] = {
    "textual-inversion": {"steps": 120, "batch_size": 4},
    "lora": {"steps": 120, "batch_size": 2},
    "dreambooth": {"steps": 30, "batch_size": 2},
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "class_images": 0},
    "dreambooth": {"class_images": 16},
}
# Student's t for 95% by degrees of freedom: the runs of both sides, minus two.
_STUDENT = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228}

Scores = dict[str, float]


@dataclass(frozen=True)
class QualityLab:
    """The subject of the comparison and the folder of its training images."""

    subject: int
    images: Path

    @property
    def noun(self) -> str:
        """The class noun."""
        return held_out_subjects()[self.subject].class_noun

    def recipe(self, method: str, seed: int, share: float) -> Recipe:
        """The recipe; `share` of the steps, for a short test."""
        plan = _SETTINGS[method]
        return Recipe.model_validate(
            {
                "method": {"name": method, **_OPTIONS.get(method, {})},
                "images": self.images,
                "token": TOKEN,
                "class_noun": self.noun,
                "seed": seed,
                "steps": max(2, round(plan["steps"] * share)),
                "batch_size": plan["batch_size"],
            }
        )


def train_with_pinxit(model: Model, plan: TrainingPlan) -> tuple[Part, ...]:
    """Train with pinxit; returns the parts of the concept."""
    images = read_images(plan.recipe.images)
    class_images = read_class_images(model, plan.class_images)
    session = TrainingSession(model, [ConceptTrainer(model, plan, images, class_images)])
    for _ in train(session):
        pass
    return tuple(adapter.part() for adapter in session.adapters)


def train_with_plain_loop(model: Model, plan: TrainingPlan) -> tuple[Part, ...]:
    """Train with the plain loop, with the same images and prompts; returns the concept's parts."""
    recipe = plan.recipe
    images = read_images(recipe.images)
    class_images = read_class_images(model, plan.class_images)
    learnables = plan.method.create_adapters(model, recipe.subject, plan.learning_rate)
    first = learnables[0].adapter.part()
    word = first.text if isinstance(first, AliasPart) else TOKEN
    shown = [
        plain.ImageSet(
            tuple(image.path for image in pool.images),
            tuple(tuple(text.replace(TOKEN, word) for text in choice) for choice in pool.prompts),
        )
        for pool in plan.method.image_pools(recipe.subject, images, class_images)
    ]
    decay, batch = max(learnable.weight_decay for learnable in learnables), plan.batch_size
    settings = plain.Settings(
        plan.learning_rate, decay, recipe.max_grad_norm, batch, plan.resolution, recipe.seed
    )
    place = str(gallery.folder().parent / "pocket" / "weights")
    loop = plain.LOOPS[recipe.method.name](place, shown, settings, "cpu", "fp32")
    loop.prepare(recipe.class_noun)
    for number, _ in enumerate(loop.steps(), 1):
        if number == plan.steps:
            break
    return _parts(recipe, first, loop.trained_tensors())


def _parts(recipe: Recipe, first: Part, learned: Mapping[str, Tensor]) -> tuple[Part, ...]:
    """The plain loop's weights as parts of a concept."""
    if recipe.method.name == "textual-inversion":
        return (EmbeddingPart.from_stored(first.settings, {"text": learned[TOKEN][None]}),)
    if recipe.method.name == "dreambooth":
        return first, FullWeightsPart("denoiser", learned)
    return first, LoraPart.from_stored({"target": "denoiser", "kind": "lora"}, learned)


def score_concept(lab: QualityLab, model: Model, eyes: Eyes, concept: Concept) -> Scores:
    """Both likeness scores of a concept, from 0 (floor) to 1 (ceiling)."""
    texts = [prompt(lab.noun, None, place, "photo") for place in BACKGROUNDS]
    images = [
        LabImage(Prompt(text, text, text), image.image)
        for text in texts
        for image in generate_images(model, text.replace(lab.noun, TOKEN, 1), [concept])
    ]
    subject = held_out_subjects()[lab.subject]
    shown = gallery.portraits(subject, gallery.PLACES, (11, lab.subject))
    like, others = (
        [e.image() for e in gallery.other_pictures(lab.subject, distractor=which)]
        for which in (True, False)
    )
    truth = subject.hidden().tolist()
    scales = subject_scales([exhibit.image() for exhibit in shown], like, others, truth, eyes)
    scores = score_images(images, scales, eyes)
    return {scale: scores.likeness[scale].relative for scale in SCALES}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, object]:
    """pinxit's mean minus the plain loop's, with a 95% interval; noise if that contains 0."""
    value = fmean(ours) - fmean(theirs)
    spread = sqrt(variance(ours) / len(ours) + variance(theirs) / len(theirs))
    half = _STUDENT[len(ours) + len(theirs) - 2] * spread
    low, high = value - half, value + half
    return {"value": value, "low": low, "high": high, "within noise": low <= 0 <= high}


def run_all(
    lab: QualityLab, precisions: Sequence[str], methods: Sequence[str], seeds: int, share: float
) -> dict[str, object]:
    """The scores of both sides and their differences, by method and precision of pinxit."""
    generator, eyes = open_base("pocket", precision="fp32"), Eyes.load()
    trained_models: dict[str, Model] = {
        precision: open_base("pocket", precision=precision)  # pyright: ignore[reportArgumentType]
        for precision in precisions
    }
    count = len(read_images(lab.images))
    figures: dict[str, object] = {}
    for method in methods:
        rows: dict[str, list[Scores]] = {}
        for seed in range(seeds):
            recipe = lab.recipe(method, seed, share)
            learned = {
                "plain": train_with_plain_loop(generator, TrainingPlan.of(recipe, generator, count))
            }
            for precision, model in trained_models.items():
                if (method, precision) != ("dreambooth", "int8"):  # int8 weights cannot be trained
                    learned[precision] = train_with_pinxit(
                        model, TrainingPlan.of(recipe, model, count)
                    )
            for side, parts in learned.items():
                origin = Provenance(TOKEN, lab.noun, method, "pocket", generator.hash, 0, {}, "")
                rows.setdefault(side, []).append(
                    score_concept(lab, generator, eyes, Concept(parts, origin))
                )
                print(f"{method}, {side}, seed {seed}: {rows[side][-1]}", file=sys.stderr)
        scores = {s: {k: [row[k] for row in rows[s]] for k in SCALES} for s in rows}
        figures[method] = {
            "steps": lab.recipe(method, 0, share).steps,
            "scores": {s: {k: _summary(scores[s][k]) for k in SCALES} for s in rows},
            "difference": {
                precision: {k: difference(scores[precision][k], scores["plain"][k]) for k in SCALES}
                for precision in trained_models
                if precision in scores
            },
        }
    return {"seeds": seeds, "methods": figures}


def _summary(scores: Sequence[float]) -> dict[str, object]:
    return {"mean": fmean(scores), "spread": stdev(scores), "scores": list(scores)}


def main() -> None:
    """Run all trainings; progress goes to stderr."""
    known = [method for method in _SETTINGS if method in registry.names("methods")]
    parser = argparse.ArgumentParser(prog="python -m lab.speed.learning", description=__doc__)
    parser.add_argument(
        "--methods", nargs="+", choices=known, default=known, help="training methods"
    )
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 7), help="number of seeds")
    parser.add_argument("--precisions", nargs="+", default=["bf16"], help="precisions of pinxit")
    parser.add_argument("--subject", type=int, default=gallery.SUBJECT, help="held-out subject")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the steps, for a short test"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["PINXIT_CACHE"] = place  # too few class images for the user's cache
        images = Path(place) / "pictures"
        images.mkdir()
        subject = held_out_subjects()[args.subject]
        shown = gallery.portraits(subject, gallery.PLACES, (11, args.subject))
        for number, exhibit in enumerate(shown):
            exhibit.image().save(images / f"{number}.png")
        lab = QualityLab(args.subject, images)
        figures = run_all(lab, args.precisions, args.methods, args.seeds, args.share)
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
