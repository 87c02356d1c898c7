"""Is learning unharmed? Scores on pocket after equal steps, by pinxit and by the plain fp32 loop.

One subject whose truth the world knows is learned by each method with several seeds on each side,
with the same rate, decay, clipping and batch; what was learned is painted by the same model in
fp32 and scored as in lab/quality/subjects.py. The last line on stdout is JSON: each side's scores,
and the difference with its 95% interval (Student's t over the seeds).
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

from lab.speed import plain
from lab.speed.job import TOKEN
from pinxit import registry
from pinxit.adapters.adapter import Part
from pinxit.concepts.concept import Concept, Provenance
from pinxit.generation.generate import paint
from pinxit.images.folder import read_pictures
from pinxit.models.model import Model, open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, held_out_subjects
from pinxit.reports.demo.scores import judge, subject_scales
from pinxit.reports.demo.trial import Painting, Prompt
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, train

SCALES = ("likeness", "hidden")

# Steps and pictures of the subject in each: about as much as learning needs, on one core.
_PLANS: dict[str, dict[str, Any]] = {
    "textual-inversion": {"steps": 120, "batch_size": 4},
    "lora": {"steps": 120, "batch_size": 2},
    "dreambooth": {"steps": 30, "batch_size": 2},
}
_KNOBS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4, "prior_pictures": 0},
    "dreambooth": {"prior_pictures": 16},
}
# Student's t for 95%, by the degrees of freedom: two less than all runs of both sides.
_STUDENT = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228}

Scores = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What all trials share: the subject's pictures and noun, and the models."""

    subject: int
    pictures: Path

    @property
    def noun(self) -> str:
        """What the subject is."""
        return held_out_subjects()[self.subject].class_noun

    def recipe(self, method: str, seed: int, share: float) -> Recipe:
        """How it is learned; `share` of the steps, for a trial of this file itself."""
        plan = _PLANS[method]
        return Recipe.model_validate(
            {
                "method": {"name": method, **_KNOBS.get(method, {})},
                "pictures": self.pictures,
                "token": TOKEN,
                "class_noun": self.noun,
                "seed": seed,
                "steps": max(2, round(plan["steps"] * share)),
                "batch_size": plan["batch_size"],
            }
        )


def by_pinxit(model: Model, recipe: Recipe) -> tuple[Part, ...]:
    """What pinxit learns."""
    pictures = read_pictures(recipe.pictures)
    for _ in recipe.method.prepare(model, recipe.subject):
        pass
    lesson = Lesson.of(model, recipe, pictures)
    for _ in train(lesson):
        pass
    return tuple(adapter.part() for adapter in lesson.adapters)


def by_plain_loop(model: Model, recipe: Recipe) -> tuple[Part, ...]:
    """What the plain loop learns from the same pictures and prompts, in the same words."""
    assert recipe.steps and recipe.rate and recipe.batch_size and recipe.size
    pictures = read_pictures(recipe.pictures)
    for _ in recipe.method.prepare(model, recipe.subject):
        pass
    learnables = recipe.method.adapters(model, recipe.subject, recipe.rate)
    first = learnables[0].adapter.part()
    word = first.settings["text"] if first.kind == "alias" else TOKEN
    shown = [
        plain.Shown(
            tuple(picture.path for picture in pool.pictures),
            tuple(tuple(text.replace(TOKEN, word) for text in some) for some in pool.prompts),
        )
        for pool in recipe.method.pools(model, recipe.subject, pictures)
    ]
    decay, batch = max(learnable.decay for learnable in learnables), recipe.batch_size
    knobs = plain.Knobs(recipe.rate, decay, recipe.clip, batch, recipe.size, recipe.seed)
    place = str(gallery.folder().parent / "pocket" / "weights")
    loop = plain.LOOPS[recipe.method.name](place, shown, knobs, "cpu", "fp32")
    loop.begun(recipe.class_noun)
    for number, _ in enumerate(loop.steps(), 1):
        if number == recipe.steps:
            break
    return _parts(recipe, first, loop.learned())


def _parts(recipe: Recipe, first: Part, learned: Mapping[str, Tensor]) -> tuple[Part, ...]:
    """What the plain loop learned, as a concept keeps it."""
    if recipe.method.name == "textual-inversion":
        return (Part("new-word", first.settings, {"text": learned[TOKEN][None]}),)
    kind = "tuned-weights" if recipe.method.name == "dreambooth" else "lora"
    settings = {"network": "denoiser"} if kind == "tuned-weights" else _LORA
    return first, Part(kind, settings, learned)


_LORA = {"target": "denoiser", "kind": "lora"}


def scored(bench: Bench, model: Model, eyes: Eyes, concept: Concept) -> Scores:
    """Both likenesses of what a concept paints, as shares of the way from floor to ceiling."""
    texts = [prompt(bench.noun, None, place, "photo") for place in BACKGROUNDS]
    painted = [
        Painting(Prompt(text, text, text), 0, 0.0, picture.image)
        for text in texts
        for picture in paint(model, text.replace(bench.noun, TOKEN, 1), [concept])
    ]
    subject = held_out_subjects()[bench.subject]
    shown = gallery.portraits(subject, gallery.PLACES, (11, bench.subject))
    like, others = (
        [e.image() for e in gallery.other_pictures(bench.subject, distractor=which)]
        for which in (True, False)
    )
    truth = subject.hidden().tolist()
    scales = subject_scales([exhibit.image() for exhibit in shown], like, others, truth, eyes)
    found = judge(painted, scales, eyes)
    return {scale: found.likeness[scale].share for scale in SCALES}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, object]:
    """Ours less theirs with its 95% interval; within noise if that holds 0."""
    value = fmean(ours) - fmean(theirs)
    spread = sqrt(variance(ours) / len(ours) + variance(theirs) / len(theirs))
    half = _STUDENT[len(ours) + len(theirs) - 2] * spread
    low, high = value - half, value + half
    return {"value": value, "low": low, "high": high, "within noise": low <= 0 <= high}


def measured(
    bench: Bench, precisions: Sequence[str], methods: Sequence[str], seeds: int, share: float
) -> dict[str, object]:
    """Every method's scores by both sides, and the differences, by pinxit's precisions."""
    painter, eyes = open_base("pocket", precision="fp32"), Eyes.load()
    pupils: dict[str, Model] = {
        precision: open_base("pocket", precision=precision)  # pyright: ignore[reportArgumentType]
        for precision in precisions
    }
    count = len(read_pictures(bench.pictures))
    found: dict[str, object] = {}
    for method in methods:
        rows: dict[str, list[Scores]] = {}
        for seed in range(seeds):
            recipe = bench.recipe(method, seed, share)
            learned = {"plain": by_plain_loop(painter, recipe.settled(painter, count))}
            for precision, pupil in pupils.items():
                if (method, precision) != ("dreambooth", "int8"):  # it tunes no such weights
                    learned[precision] = by_pinxit(pupil, recipe.settled(pupil, count))
            for side, parts in learned.items():
                origin = Provenance(TOKEN, bench.noun, method, "pocket", painter.hash, 0, {}, "")
                rows.setdefault(side, []).append(
                    scored(bench, painter, eyes, Concept(parts, origin))
                )
                print(f"{method}, {side}, seed {seed}: {rows[side][-1]}", file=sys.stderr)
        scores = {s: {k: [row[k] for row in rows[s]] for k in SCALES} for s in rows}
        found[method] = {
            "steps": bench.recipe(method, 0, share).steps,
            "scores": {s: {k: _told(scores[s][k]) for k in SCALES} for s in rows},
            "difference": {
                precision: {k: difference(scores[precision][k], scores["plain"][k]) for k in SCALES}
                for precision in pupils
                if precision in scores
            },
        }
    return {"seeds": seeds, "methods": found}


def _told(scores: Sequence[float]) -> dict[str, object]:
    return {"mean": fmean(scores), "spread": stdev(scores), "scores": list(scores)}


def main() -> None:
    """Measure, telling of it on stderr."""
    known = [method for method in _PLANS if method in registry.names("methods")]
    parser = argparse.ArgumentParser(prog="python -m lab.speed.learning", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=known, default=known, help="which")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 7), help="how many")
    parser.add_argument("--precisions", nargs="+", default=["bf16"], help="of pinxit")
    parser.add_argument("--subject", type=int, default=gallery.SUBJECT, help="held-out subject")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, for a trial")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["PINXIT_CACHE"] = place  # too few class pictures to be of use to anyone
        pictures = Path(place) / "pictures"
        pictures.mkdir()
        subject = held_out_subjects()[given.subject]
        shown = gallery.portraits(subject, gallery.PLACES, (11, given.subject))
        for number, exhibit in enumerate(shown):
            exhibit.image().save(pictures / f"{number}.png")
        bench = Bench(given.subject, pictures)
        found = measured(bench, given.precisions, given.methods, given.seeds, given.share)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
