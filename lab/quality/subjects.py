"""Held-out subjects trained by each method: likeness and prompt accuracy.

Results are kept in the work folder, so an interrupted measurement continues. The last line on
stdout is JSON.
"""

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from lab.quality.harness import Lab, Row, argument_parser, cached, print_progress
from lab.quality.scores import ATTRIBUTES, score_images, subject_scales
from pinxit.evaluation.confidence import Rows, bootstrap
from pinxit.evaluation.metric import Scale
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, held_out_subjects
from pinxit.training.recipe import Recipe

METHODS = ("textual-inversion", "dreambooth", "lora")
BASE = "base"
TOKEN = "<mytoy>"
REFERENCES = 5
_SEED = 21
_SCALES = ("likeness", "hidden")


def sample_subjects(count: int) -> list[int]:
    """The first subjects of all held-out ones, in a fixed random order."""
    order = np.random.default_rng(_SEED).permutation(len(held_out_subjects()))
    return order[:count].tolist()


@dataclass(frozen=True)
class Experiment:
    """One subject by one method (or by the base model alone), in a work folder."""

    subject: int
    method: str
    args: argparse.Namespace

    @property
    def noun(self) -> str:
        """The subject's class."""
        return held_out_subjects()[self.subject].class_noun

    @property
    def folder(self) -> Path:
        """The folder with its training images, run and scores."""
        return self.args.work / f"{self.subject:02}-{self.method}"

    def prompts(self) -> list[Prompt]:
        """A photo of the subject in each place of pocket's world."""
        plain = [prompt(self.noun, None, place, "photo") for place in BACKGROUNDS]
        return [Prompt(text.replace(self.noun, "{}", 1), text, text) for text in plain]

    def recipe(self, base: str) -> Recipe:
        """The recipe; writes the training images first."""
        choices = {"steps": self.args.steps, "learning_rate": self.args.learning_rate}
        return recipe(self.subject, self.folder, method=self.method, base=base, **choices)


def run_experiment(lab: Lab, eyes: Eyes, experiment: Experiment) -> Row:
    """The results of an experiment, from the work folder or else measured now."""
    task = f"subject {experiment.subject}, {experiment.noun}, {experiment.method}"
    trained = None
    if experiment.method != BASE:
        trained = lab.train(experiment.recipe(lab.model.name), experiment.folder / "run", task)
    made = trained.folder.name if trained else ""
    file = experiment.folder / f"scores-{lab.tag(f'{made} {lab.num_images}')}.json"

    def measure() -> Row:
        concept = trained.concept if trained else None
        generated = lab.generate(experiment.prompts(), concept, f"{task}: generating")
        scores = score_images(generated, scales_of(experiment.subject, eyes), eyes).to_dict()
        experiment.folder.mkdir(parents=True, exist_ok=True)
        references = subject_images(experiment.subject)[0]
        shown = [*references, *(one.image.resize((128, 128)) for one in generated)]
        contact_sheet(shown, 8).save(file.with_suffix(".png"))
        seconds = trained.seconds if trained else 0.0
        return {"subject": experiment.subject, "seconds": seconds, **scores}

    return cached(file, measure)


def scales_of(subject: int, eyes: Eyes) -> dict[str, Scale]:
    """The likeness scales of a subject."""
    references, lookalikes, others = subject_images(subject)
    hidden = held_out_subjects()[subject].hidden().tolist()
    return subject_scales(references, lookalikes, others, hidden, eyes)


def summary(rows: Mapping[str, Sequence[Row]]) -> dict[str, object]:
    """Means over all subjects with 95% confidence intervals, and the required values if any."""
    bars = tomllib.loads((Path(__file__).parent / "bars.toml").read_text())["subjects"]
    figures: dict[str, object] = {}
    for method, of_method in rows.items():
        right = {name: _mean(of_method, name) for name in (*ATTRIBUTES, "all")}
        shares = {
            scale: vars(bootstrap(_rows(of_method, scale), mean_relative)) for scale in _SCALES
        }
        figures[method] = {
            "subjects": [row["subject"] for row in of_method],
            "share": shares,
            "right": right,
            "background_of_base": right["background"] / max(_mean(rows[BASE], "background"), 1e-9),
            "seconds_of_learning": fmean(float(row["seconds"]) for row in of_method),
            "bars": bars.get(method),
        }
    return figures


def recipe(subject: int, folder: Path, **options: object) -> Recipe:
    """A recipe for a subject; writes its training images into the folder first."""
    word = {"token": TOKEN, "class_noun": held_out_subjects()[subject].class_noun}
    images = write_references(subject, folder / "pictures")
    return Recipe.model_validate({**word, "images": images, "preview_every": 0, **options})


def subject_images(subject: int) -> tuple[list[gallery.Picture], ...]:
    """The training images, images of a look-alike, and other images of the subject."""
    places = np.random.default_rng((_SEED, subject)).permutation(BACKGROUNDS)[:REFERENCES]
    shown = gallery.portraits(held_out_subjects()[subject], places.tolist(), (_SEED, subject))
    look_alikes = gallery.other_pictures(subject, distractor=True)
    others = gallery.other_pictures(subject, distractor=False)
    return tuple([e.image() for e in exhibits] for exhibits in (shown, look_alikes, others))


def write_references(subject: int, folder: Path) -> Path:
    """Write a subject's training images into a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(subject_images(subject)[0]):
        image.save(folder / f"{number}.png")
    return folder


def mean_relative(rows: Rows) -> float:
    """The position between floor (0) and ceiling (1), from rows of (value, floor, ceiling).

    It is a ratio of means, so that a row whose floor is near its ceiling does not dominate.
    """
    value, floor, ceiling = rows.mean(0)
    return float((value - floor) / (ceiling - floor))


def _rows(rows: Sequence[Row], scale: str) -> Rows:
    """Rows of (value, floor, ceiling), one for each subject."""
    scores: list[dict[str, float]] = [row["likeness"][scale] for row in rows]
    return np.array([[score[name] for name in ("value", "floor", "ceiling")] for score in scores])


def _mean(rows: Sequence[Row], name: str) -> float:
    return fmean(float(row["right"][name]) for row in rows)


def main() -> None:
    """Run all experiments; progress goes to stderr."""
    parser = argument_parser(__doc__, "build/subjects")
    parser.add_argument("--subjects", type=int, default=10, help="number of subjects")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="training methods")
    parser.add_argument("--count", type=int, default=2, help="images for each of 14 prompts")
    parser.add_argument("--base", default="pocket", help="base model: name or folder")
    parser.add_argument("--steps", type=int, help="training steps; default: the method's")
    parser.add_argument("--learning-rate", type=float, help="default: the method's")
    args = parser.parse_args()
    model, eyes = open_base(args.base), Eyes.load()
    lab = Lab(model, print_progress, args.count)
    rows: dict[str, list[Row]] = {method: [] for method in (BASE, *args.methods)}
    for subject in sample_subjects(args.subjects):
        for method, of_method in rows.items():
            of_method.append(run_experiment(lab, eyes, Experiment(subject, method, args)))
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
