"""All methods on one scale: fidelity, prompt following, drift, diversity, leaks, bytes and time.

Every piece is one subject or style, trained by one method for one length. Its results are a JSON
file in docs/figures/scale, in a folder for the base model; its run and images lie in the work
folder. A piece with results is not measured again. The last line on stdout is JSON: means over all
subjects and all styles that have been measured, with 95% intervals. Stored means over more subjects
than have results here are kept: they are from the time before results were stored one by one.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from lab.figures import FOLDER
from lab.quality import styles, subjects, truths
from lab.quality.harness import (
    Lab,
    LabImage,
    Row,
    TrainedConcept,
    argument_parser,
    cached,
    print_progress,
)
from lab.quality.style_judge import StyleJudge
from lab.quality.truths import Similarity
from pinxit.concepts.concept import Concept
from pinxit.evaluation.confidence import bootstrap
from pinxit.evaluation.metric import stack_images
from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.prompt_attributes import prompt_attributes
from pinxit.pocket.world import held_out_subjects
from pinxit.runs.class_images import read_class_images
from pinxit.runs.run import Run
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe

Options = Mapping[str, Any]
Means = dict[str, Row]
Measured = tuple[Similarity, Row, list[LabImage]]
# In the order in which they are measured. Those with a way to preserve the class are for subjects.
METHODS: dict[str, Options] = {
    "lora": {"name": "lora"},
    "lora, none": {"name": "lora", "preserve": "none"},
    "lora, weights": {"name": "lora", "preserve": "weights"},
    "lora, class-images": {"name": "lora", "preserve": "class-images"},
    "dreambooth": {"name": "dreambooth"},
    "dreambooth, none": {"name": "dreambooth", "preserve": "none"},
    "dreambooth, weights": {"name": "dreambooth", "preserve": "weights"},
    "dreambooth, base-answer": {"name": "dreambooth", "preserve": "base-answer"},
    "textual-inversion": {"name": "textual-inversion"},
    "custom-diffusion, none": {"name": "custom-diffusion", "preserve": "none"},
    "custom-diffusion": {"name": "custom-diffusion"},
    "dora": {"name": "lora", "adapter": "dora"},
    "lokr": {"name": "lora", "adapter": "lokr"},
    "lora, rank 1": {"name": "lora", "rank": 1},
    "lora, rank 4": {"name": "lora", "rank": 4},
    "lora, rank 16": {"name": "lora", "rank": 16},
}
SCALE = FOLDER / "scale.json"
RESULTS = FOLDER / "scale"
LENGTHS = (1.0, 0.5, 2.0)  # relative to the default steps
_BLOCK = 4  # subjects or styles that all methods are measured on before the next ones
FIRST = "first subjects"  # those of the first block, on which all methods have all lengths
SUBJECTS = 10
STYLES = styles.STYLES
FIGURES = ("fidelity", "prompt following", "drift", "diversity", "leaks", "megabytes", "seconds")
STYLE_FIGURES = (*FIGURES, "among ten")


class Case(Protocol):
    """A subject or a style of pocket."""

    @property
    def name(self) -> str:
        """The name of its files."""
        ...

    @property
    def noun(self) -> str:
        """The class whose drift is measured."""
        ...

    def recipe(self, folder: Path, method: Options, base: str) -> Recipe:
        """The recipe; writes the training images first."""
        ...

    def measure(self, lab: Lab, concept: Concept, eyes: Eyes) -> Measured:
        """What its drift is measured by, the results, and the images that show them."""
        ...


@dataclass(frozen=True)
class SubjectCase:
    """A held-out subject by its number."""

    subject: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"subject-{self.subject:02}"

    @property
    def noun(self) -> str:
        """Its class."""
        return held_out_subjects()[self.subject].class_noun

    def recipe(self, folder: Path, method: Options, base: str) -> Recipe:
        """The recipe; writes the training images first."""
        return subjects.recipe(self.subject, folder, method=dict(method), base=base)

    def measure(self, lab: Lab, concept: Concept, eyes: Eyes) -> Measured:
        """Likeness in half of the places; colours, places and styles of prompts in the others.

        A leak is a place of the training images instead of that of the prompt.
        """
        placed = lab.generate(truths.places(self.noun)[::2], concept, f"{self.name}: places")
        edited = lab.generate(truths.edits(self.noun)[1::2], concept, f"{self.name}: edits")
        scales = subjects.scales_of(self.subject, eyes)
        images = [image.image for image in placed]
        row: Row = {
            "fidelity": scales["likeness"].score(images).relative,
            "hidden": scales["hidden"].score(images).relative,
            "prompt following": truths.prompt_accuracy(edited, eyes)["obeyed"],
        }
        both = [*placed, *edited]
        shown = eyes.look(stack_images([image.image for image in both])).named("background")
        references = stack_images(subjects.subject_images(self.subject)[0])
        trained = set(eyes.look(references).named("background"))
        prompted = [prompt_attributes(image.prompt.target_text)["background"] for image in both]
        leaks = (a != b and a in trained for a, b in zip(shown, prompted, strict=True))
        row["leaks"] = fmean(leaks)
        return lambda images: scales["likeness"].score(images).relative, row, both


@dataclass(frozen=True)
class StyleCase:
    """A held-out style by its name."""

    style: str

    @property
    def noun(self) -> str:
        """The class whose drift is measured."""
        return "cat"

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"style-{self.style.replace(' ', '-')}"

    def recipe(self, folder: Path, method: Options, base: str) -> Recipe:
        """The recipe; writes the training images and their captions first."""
        return styles.recipe(self.style, folder, method=dict(method), base=base)

    def measure(self, lab: Lab, concept: Concept, eyes: Eyes) -> Measured:
        """Colours and textures of sixteen objects in the style; objects and places of prompts.

        A leak is an object of the training images instead of that of the prompt. Drift is how far
        images of the class move towards the style.
        """
        experiment = styles.Experiment(self.style, "", argparse.Namespace(work=Path()))
        generated = lab.generate(experiment.prompts(), concept, f"{self.name}: generating")
        images = [image.image for image in generated]
        scales = styles.scales_of(self.style)
        shares = {name: scale.score(images).relative for name, scale in scales.items()}
        right = truths.prompt_accuracy(generated, eyes, ("class", "background"))
        judge = StyleJudge.fitted(lab.model, Path(os.environ["PINXIT_CACHE"]))
        row: Row = {"fidelity": judge.recognized(images, self.style), **shares}
        row["among ten"] = judge.recognized(images, self.style, among=10)
        row |= {"prompt following": right["obeyed"], "leaks": styles.leak_rate(generated, eyes)}
        return partial(judge.position, style=self.style), row, generated


@dataclass(frozen=True)
class Piece:
    """A subject or a style by one method, trained for `length` times the default steps."""

    case: Case
    method: str
    length: float

    def result(
        self, lab: Lab, eyes: Eyes, work: Path, results: Path, *, new: bool = True
    ) -> Row | None:
        """The results from their file, or else measured now if `new`, else None."""
        recipe = self.case.recipe(work / self.case.name, METHODS[self.method], lab.model.name)
        file = results / lab.model.hash[:8] / self.case.name / f"{self.title}.json"
        if not new and not file.is_file():
            return None
        return cached(file, lambda: self._measure(lab, eyes, recipe, work))

    @property
    def title(self) -> str:
        """The method and the length, for file names."""
        return f"{self.method.replace(', ', '-').replace(' ', '-')}-{self.length:g}"

    @property
    def is_apart(self) -> bool:
        """Whether the method is for this kind of case, and not its default under another name."""
        if isinstance(self.case, SubjectCase):
            return self.method != "lora, rank 16"
        return self.method != "lora, rank 4" and "preserve" not in METHODS[self.method]

    def _measure(self, lab: Lab, eyes: Eyes, recipe: Recipe, work: Path) -> Row:
        task = f"{self.case.name}, {self.method}"
        prepared = _class_images_seconds(lab, recipe, work)
        trained = lab.train(recipe, work / self.case.name / self.title, task, self.length)
        similarity, row, images = self.case.measure(lab, trained.concept, eyes)
        change = truths.class_change(lab, trained.concept, similarity, self.case.noun, eyes)
        sheet = contact_sheet([image.image.resize((128, 128)) for image in images], 7)
        sheet.save(trained.folder.with_suffix(".png"))
        state = Run.open(trained.folder).state
        steps = len(state.steps)
        return {
            **row,
            "drift": change["drift"] - change["drift of the base"],
            "diversity": change["diversity"] / change["diversity of the base"],
            "megabytes": _megabytes(state.result_file),
            "seconds": prepared + _training_seconds(trained, steps),
            "class images": prepared,
            "steps": steps,
        }


def _training_seconds(trained: TrainedConcept, steps: int) -> float:
    """Processor seconds, or seconds by the clock if too few steps were trained by this process."""
    if trained.new_steps < steps / 2:
        return trained.seconds
    return steps * trained.processor_seconds / trained.new_steps


def _megabytes(path: Path) -> float:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _class_images_seconds(lab: Lab, recipe: Recipe, work: Path) -> float:
    """The processor time that the class images of a recipe need, which are in the cache then."""
    required = TrainingPlan.of(recipe, lab.model, len(recipe.read_images())).class_images
    if not required.count:
        return 0.0

    def measure() -> Row:
        start = time.process_time()
        read_class_images(lab.model, required)
        return {"seconds": time.process_time() - start}

    return float(cached(work / f"class-{lab.tag(repr(required))}.json", measure)["seconds"])


def pieces() -> list[Piece]:
    """All pieces; blocks of subjects and of styles take turns, so that tables fill up in rows."""
    all_subjects, all_styles = _cases()
    blocks: list[Sequence[Case]] = []
    for start in range(0, SUBJECTS, _BLOCK):
        blocks += [all_subjects[start : start + _BLOCK], all_styles[start : start + _BLOCK]]
    ordered = (
        Piece(case, method, length)
        for length in LENGTHS
        for block in blocks
        for method in METHODS
        for case in block
    )
    return [piece for piece in ordered if piece.is_apart]


def _cases() -> tuple[list[SubjectCase], list[StyleCase]]:
    """All subjects and all styles, in the order in which they are measured."""
    numbers = subjects.sample_subjects(SUBJECTS)
    return [SubjectCase(number) for number in numbers], [StyleCase(style) for style in STYLES]


def summary(rows: Mapping[Piece, Row]) -> dict[str, Means]:
    """Means by kind of case, method and length, with 95% intervals over the cases.

    A mean is over the first cases, up to the first without results, so that means over equally many
    are over the same ones.
    """
    groups: dict[tuple[str, float], dict[Case, Row]] = {}
    for piece, row in rows.items():
        groups.setdefault((piece.method, piece.length), {})[piece.case] = row
    all_subjects, all_styles = _cases()
    kinds = {"subjects": all_subjects, FIRST: all_subjects[:_BLOCK], "styles": all_styles}
    figures: dict[str, Means] = {kind: {} for kind in kinds}
    for kind, cases in kinds.items():
        for (method, length), measured in groups.items():
            first = [measured[case] for case in takewhile(measured.__contains__, cases)]
            if first:
                names = STYLE_FIGURES if kind == "styles" else FIGURES
                values = {name: np.array([row[name] for row in first]) for name in names}
                figures[kind][f"{method}, {length:g}"] = {
                    "method": method,
                    "length": length,
                    "cases": len(first),
                    **{name: vars(bootstrap(value)) for name, value in values.items()},
                }
    return {kind: means for kind, means in figures.items() if means}


def with_earlier_means(figures: dict[str, Means]) -> dict[str, Means]:
    """The means, and the stored ones that are over more subjects or styles, in one order."""
    stored: dict[str, Means] = json.loads(SCALE.read_text(encoding="utf-8"))["figures"]
    for kind, earlier in stored.items():
        measured = figures.setdefault(kind, {})
        for name, row in earlier.items():
            if name not in measured or row["cases"] > measured[name]["cases"]:
                measured[name] = row
    for name, row in figures["subjects"].items():
        if row["cases"] == _BLOCK:
            figures.setdefault(FIRST, {}).setdefault(name, row)
    return {
        kind: dict(sorted(rows.items(), key=lambda row: (row[1]["length"], row[0])))
        for kind, rows in figures.items()
    }


def main() -> None:
    """Measure pieces until none is left or the time is over; progress goes to stderr."""
    parser = argument_parser(__doc__, "build/scale")
    parser.add_argument("--pieces", type=int, help="number of new pieces; default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--lengths", nargs="+", type=float, choices=LENGTHS, default=LENGTHS)
    parser.add_argument(
        "--cases", nargs="+", metavar="NAME", help="such as subject-03, style-sepia"
    )
    parser.add_argument("--minutes", type=float, help="start no new piece after this time")
    args = parser.parse_args()
    os.environ["PINXIT_CACHE"] = str((args.work / "cache").resolve())
    lab, eyes = Lab(open_base("pocket"), print_progress, num_images=1), Eyes.load()
    end = time.monotonic() + 60 * (args.minutes or 1e9)
    left = args.pieces if args.pieces is not None else 10**9
    rows: dict[Piece, Row] = {}
    for piece in pieces():
        row = piece.result(lab, eyes, args.work, RESULTS, new=False)
        asked = piece.method in args.methods and piece.length in args.lengths
        asked = asked and piece.case.name in (args.cases or [piece.case.name])
        if row is None and asked and left > 0 and time.monotonic() < end:
            row, left = piece.result(lab, eyes, args.work, RESULTS), left - 1
        if row is not None:
            rows[piece] = row
    print(json.dumps(with_earlier_means(summary(rows))))


if __name__ == "__main__":
    main()
