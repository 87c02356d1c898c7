"""Held-out subjects taught by each method: how like them it paints, and whether prompts still act.

Every subject that is done is kept in the work folder, so a stopped measurement goes on. The last
line on stdout is all of it as JSON.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pinxit.evaluation.confidence import Rows, bootstrap, mean_share
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.files.atomic_write import replace_text
from pinxit.images.tensors import sheet
from pinxit.models.model import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import prompt
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import BACKGROUNDS, held_out_subjects
from pinxit.reports.demo.scores import ASKED, judge, subject_scales
from pinxit.reports.demo.trial import Easel
from pinxit.training.recipe import Recipe

METHODS = ("textual-inversion", "dreambooth", "lora")
BASE = "base"
TOKEN = "<mytoy>"
REFERENCES = 5
_SEED = 21
_SCALES = ("likeness", "hidden")

Row = dict[str, Any]  # as it is kept in JSON


def chosen(count: int) -> list[int]:
    """The first subjects of a fixed random order of all that are held out."""
    order = np.random.default_rng(_SEED).permutation(len(held_out_subjects()))
    return order[:count].tolist()


@dataclass(frozen=True)
class Trial:
    """One subject by one method (or by the base alone), in a work folder."""

    subject: int
    method: str
    given: argparse.Namespace

    @property
    def noun(self) -> str:
        """The subject's class."""
        return held_out_subjects()[self.subject].class_noun

    @property
    def folder(self) -> Path:
        """Where its pictures, run and scores are."""
        return self.given.work / f"{self.subject:02}-{self.method}"

    def prompts(self) -> list[Prompt]:
        """A photo of it in each of the world's places."""
        plain = [prompt(self.noun, None, place, "photo") for place in BACKGROUNDS]
        return [Prompt(text.replace(self.noun, "{}", 1), text, text) for text in plain]

    def recipe(self, base: str) -> Recipe:
        """How it is taught; the reference pictures are written first."""
        pictures = written(self.subject, self.folder / "pictures")
        choices = {"steps": self.given.steps, "rate": self.given.rate, "base": base}
        word = {"token": TOKEN, "class_noun": self.noun, "method": self.method}
        return Recipe.model_validate({**choices, **word, "pictures": pictures, "preview_every": 0})


def measured(easel: Easel, eyes: Eyes, trial: Trial) -> Row:
    """One trial: what is in the work folder, or else learned and painted now."""
    task = f"subject {trial.subject}, {trial.noun}, {trial.method}"
    lesson = None
    if trial.method != BASE:
        lesson = easel.teach(trial.recipe(easel.model.name), trial.folder / "run", task)
    made = lesson.run.folder.name if lesson else ""
    file = trial.folder / f"scores-{easel.tag(f'{made} {easel.count}')}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    paintings = easel.paint(trial.prompts(), lesson, f"{task}: painting")
    references, lookalikes, others = real(trial.subject)
    hidden = held_out_subjects()[trial.subject].hidden().tolist()
    scales = subject_scales(references, lookalikes, others, hidden, eyes)
    seconds = lesson.seconds if lesson else 0.0
    scores = judge(paintings, scales, eyes).plain()
    trial.folder.mkdir(parents=True, exist_ok=True)
    shown = [*references, *(painting.image.resize((128, 128)) for painting in paintings)]
    sheet(shown, 8).save(file.with_suffix(".png"))
    row: Row = {"subject": trial.subject, "seconds": seconds, **scores}
    replace_text(file, json.dumps(row, indent=1))
    return row


def summary(rows: Mapping[str, Sequence[Row]]) -> dict[str, object]:
    """Figures over all subjects, with 95% intervals over subjects; bars where there are any."""
    bars = tomllib.loads((Path(__file__).parent / "bars.toml").read_text())["subjects"]
    figures: dict[str, object] = {}
    for method, some in rows.items():
        right = {name: _mean(some, name) for name in (*ASKED, "all")}
        shares = {scale: vars(bootstrap(_rows(some, scale), mean_share)) for scale in _SCALES}
        figures[method] = {
            "subjects": [row["subject"] for row in some],
            "share": shares,
            "right": right,
            "background_of_base": right["background"] / max(_mean(rows[BASE], "background"), 1e-9),
            "seconds_of_learning": fmean(float(row["seconds"]) for row in some),
            "bars": bars.get(method),
        }
    return figures


def real(subject: int) -> tuple[list[gallery.Picture], ...]:
    """The references, pictures of a look-alike, and more pictures of the subject."""
    places = np.random.default_rng((_SEED, subject)).permutation(BACKGROUNDS)[:REFERENCES]
    shown = gallery.portraits(held_out_subjects()[subject], places.tolist(), (_SEED, subject))
    look_alikes = gallery.other_pictures(subject, distractor=True)
    others = gallery.other_pictures(subject, distractor=False)
    return tuple([e.image() for e in some] for some in (shown, look_alikes, others))


def written(subject: int, folder: Path) -> Path:
    """The folder with the references in it, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(real(subject)[0]):
        image.save(folder / f"{number}.png")
    return folder


def _rows(rows: Sequence[Row], scale: str) -> Rows:
    """Rows of (value, floor, ceiling)."""
    scores: list[dict[str, float]] = [row["likeness"][scale] for row in rows]
    return np.array([[score[name] for name in ("value", "floor", "ceiling")] for score in scores])


def _mean(rows: Sequence[Row], name: str) -> float:
    return fmean(float(row["right"][name]) for row in rows)


def say(task: str, done: int, total: int, note: str = "") -> None:
    """Tell on stderr of what is done."""
    if done == total:
        print(f"{task}: {total} {note}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, telling of it on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10, help="how many")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="which methods")
    parser.add_argument("--count", type=int, default=2, help="pictures of each of 14 prompts")
    parser.add_argument("--base", default="pocket", help="a base's name, or a folder")
    parser.add_argument("--steps", type=int, help="of learning, instead of the method's advice")
    parser.add_argument("--rate", type=float, help="of learning, instead of the method's advice")
    parser.add_argument("--work", type=Path, default=Path("build/subjects"), help="work folder")
    given = parser.parse_args()
    model, eyes = open_base(given.base), Eyes.load()
    easel = Easel(model, say, given.count)
    rows: dict[str, list[Row]] = {method: [] for method in (BASE, *given.methods)}
    for subject in chosen(given.subjects):
        for method, some in rows.items():
            some.append(measured(easel, eyes, Trial(subject, method, given)))
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
