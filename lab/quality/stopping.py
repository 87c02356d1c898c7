"""Measures early stopping: long runs of held-out subjects, scored at a grid of steps.

A shorter run is the beginning of a longer one, so one long run covers all numbers of steps of the
grid, and the step of early stopping follows from its validation losses. All results are kept in
the work folder, so an interrupted measurement continues. The last line on stdout is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from lab.quality.harness import Lab, Row, argument_parser, cached, print_progress
from lab.quality.scores import ATTRIBUTES, score_images
from lab.quality.subjects import sample_subjects, scales_of, write_references
from lab.quality.truths import places
from pinxit.concepts.concept import Concept
from pinxit.concepts.read import read_concept
from pinxit.evaluation.judge import JudgeScore
from pinxit.generation.image_cache import ImageCache
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import held_out_subjects
from pinxit.runs.events import RunFailure
from pinxit.runs.judging import generate_prompts, subject_judge
from pinxit.runs.many import train_many
from pinxit.runs.run import Run
from pinxit.training import concept_trainer
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.early_stopping import converged
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession, train

GRID = (50, 100, 200, 300, 500, 800, 1200, 2000, 3000)
# Any value switches validation on; `_never_converged` lets the runs train all steps.
_EARLY_STOP = 1.0
_TIMED_STEPS = 5
# Batch size and steps of the long runs.
_SIZES = {"textual-inversion": (2, 1200), "lora": (1, 800)}


@dataclass(frozen=True)
class LongRun:
    """A long run of one subject by one method."""

    subject: int
    method: str
    args: argparse.Namespace

    @property
    def batch_size(self) -> int:
        """The batch size, smaller than usual since many subjects share a batch."""
        return self.args.batch_size or _SIZES[self.method][0]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.args.steps or _SIZES[self.method][1]

    @property
    def budgets(self) -> list[int]:
        """The steps of the grid within the run, and its last step."""
        return [*(step for step in GRID if step < self.steps), self.steps]

    @property
    def folder(self) -> Path:
        """The folder with its training images, run and scores."""
        return self.args.work / f"{self.method}-{self.batch_size}" / f"{self.subject:02}"

    @property
    def noun(self) -> str:
        """The subject's class."""
        return held_out_subjects()[self.subject].class_noun

    def run(self, base: str) -> Run:
        """The run, new or existing."""
        args, folder = self.args, self.folder / "run"
        images = write_references(self.subject, self.folder / "pictures")
        if Run.exists(folder):
            return Run.open(folder, self.steps)
        every = {"validate_every": args.every, "save_every": args.every, "checkpoint_every": 50}
        subject = {
            "token": f"<toy{self.subject}>",
            "class_noun": self.noun,
            "base": base,
        }
        size = {"steps": self.steps, "batch_size": self.batch_size, "method": self.method}
        silent = {"images": images, "preview_every": 0, "early_stop": _EARLY_STOP}
        return Run.create(folder, Recipe.model_validate({**every, **subject, **size, **silent}))

    def concept(self, step: int) -> Concept:
        """The concept saved at a step."""
        return read_concept(self.folder / "run" / "concepts" / f"{step:07}.safetensors")

    def stop(self, share: float) -> int:
        """The step at which early stopping would have ended the run."""
        validation_losses = Run.open(self.folder / "run").state.validation_losses
        losses: list[float] = []
        for step, loss in validation_losses.items():
            losses.append(loss)
            if step <= self.steps and converged(losses, share):
                return step
        return self.steps

    def cached(self, name: str, compute: Callable[[], Row]) -> Row:
        """A row of results from the work folder, or else measured now."""
        return cached(self.folder / f"{name}.json", compute)


def train_all(model: Model, long_runs: Sequence[LongRun]) -> None:
    """Train all runs to the end in one batch."""
    runs = [long_run.run(model.name) for long_run in long_runs]
    if all(run.finished for run in runs):
        return
    with closing(train_many(model, runs)) as events:
        for one in events:
            if not isinstance(one, tuple):
                continue
            run, event = one
            if isinstance(event, RunFailure):
                raise event.error
            if isinstance(event, StepResult) and event.number % 50 == 0 and run is runs[0]:
                print(f"step {event.number}", file=sys.stderr, flush=True)


def score(model: Model, eyes: Eyes, long_run: LongRun, step: int) -> Row:
    """The scores of a step's concept, from the work folder or measured now."""

    def measure() -> Row:
        args, prompts = long_run.args, places(long_run.noun)
        lab = Lab(model, print_progress, args.count, args.sampling_steps)
        generated = lab.generate(prompts, long_run.concept(step), f"step {step}")
        scores = score_images(generated, scales_of(long_run.subject, eyes), eyes)
        likeness, hidden = (scores.likeness[name].relative for name in ("likeness", "hidden"))
        accuracy = fmean(scores.accuracy[attribute] for attribute in ATTRIBUTES)
        best = JudgeScore(likeness, accuracy).overall
        row = {"step": step, "likeness": likeness, "hidden": hidden, "prompt": accuracy}
        return {**row, "best": best}

    return long_run.cached(f"score-{step:05}", measure)


def judge_score(model: Model, long_run: LongRun, step: int) -> Row:
    """The score by the run's own judge, which knows only the training images."""

    def measure() -> Row:
        run = long_run.run(model.name)
        judge = subject_judge(
            model, run.recipe, run.recipe.read_images(), folder=long_run.folder / "plain"
        )
        cache = ImageCache(concepts=[long_run.concept(step)])
        images = generate_prompts(judge.prompt_run, model, run.recipe.token, cache)
        return {"step": step, "best": judge.score(images, judge.prompts).overall}

    return long_run.cached(f"verdict-{step:05}", measure)


def score_subjects(
    model: Model, eyes: Eyes, long_runs: Sequence[LongRun]
) -> Iterator[dict[int, Row]]:
    """For each subject the scores at all steps of the grid and at the step of early stopping."""
    train_all(model, long_runs)
    for long_run in long_runs:
        steps = long_run.budgets
        stop = long_run.stop(long_run.args.share)
        row = {step: score(model, eyes, long_run, step) for step in sorted({*steps, stop})}
        for step in steps if long_run.args.judged else ():
            row[step]["verdict"] = judge_score(model, long_run, step)["best"]
        yield row


def summary(long_runs: Sequence[LongRun], rows: Sequence[dict[int, Row]], share: float) -> Row:
    """Means over subjects: the grid, the step and loss of early stopping, the best by the judge."""
    grid = {step: fmean(row[step]["best"] for row in rows) for step in long_runs[0].budgets}
    peak = max(grid, key=lambda step: grid[step])
    stops = [long_run.stop(share) for long_run in long_runs]
    stopped = fmean(row[stop]["best"] for row, stop in zip(rows, stops, strict=True))
    chosen_by_judge = [max(grid, key=lambda step: row[step].get("verdict", 0)) for row in rows]
    judged_all = all("verdict" in row[step] for row in rows for step in grid)
    best_scores = [row[step]["best"] for row, step in zip(rows, chosen_by_judge, strict=True)]
    return {
        "subjects": [long_run.subject for long_run in long_runs],
        "grid": grid,
        "by subject": [{step: row[step] for step in sorted(row)} for row in rows],
        "peak": peak,
        "stops": stops,
        "stopped": sum(
            stop < long_run.steps for stop, long_run in zip(stops, long_runs, strict=True)
        ),
        "of the peak": fmean(stops) / peak,
        "best at the stop": stopped,
        "lost": 1 - stopped / grid[peak],
        "lost by the last": 1 - grid[max(grid)] / grid[peak],
        "steps kept": chosen_by_judge if judged_all else None,
        "best kept": fmean(best_scores) if judged_all else None,
    }


def cost(model: Model, long_run: LongRun) -> float:
    """The share of a run's time that validation takes, at the method's default batch size."""
    recipe = long_run.run(model.name).recipe
    own = {"steps": None, "batch_size": None, "validate_every": None}
    images = recipe.read_images()
    plan = TrainingPlan.of(recipe.model_copy(update=own), model, len(images))
    session = TrainingSession(
        model, [ConceptTrainer(model, replace(plan, validate_every=1), images)]
    )
    steps: list[float] = []
    validations: list[float] = []
    with closing(train(session)) as training:
        next(training)
        for _ in range(_TIMED_STEPS):
            start = time.perf_counter()
            seconds = next(training).seconds
            validations.append(time.perf_counter() - start - seconds)
            steps.append(seconds)
    return median(validations) / (median(validations) + plan.validate_every * median(steps))


def _never_converged(losses: Sequence[float], share: float) -> bool:  # noqa: ARG001
    return False


def main() -> None:
    """Train, score and summarize; progress goes to stderr."""
    parser = argument_parser(__doc__, "build/stopping")
    parser.add_argument("--subjects", type=int, default=10, help="number of subjects")
    parser.add_argument("--methods", nargs="+", default=[*_SIZES])
    parser.add_argument("--batch-size", type=int, help="images per step and subject")
    parser.add_argument("--steps", type=int, help="steps of the long runs")
    parser.add_argument("--every", type=int, default=10, help="steps between validations")
    parser.add_argument("--together", type=int, default=5, help="subjects per batch")
    parser.add_argument("--count", type=int, default=1, help="images for each of 8 prompts")
    parser.add_argument("--sampling-steps", type=int, default=12, help="denoising steps")
    parser.add_argument("--judged", action="store_true", help="also score with the runs' own judge")
    parser.add_argument("--share", type=float, default=0.05, help="value of `early_stop`")
    args = parser.parse_args()
    model, eyes = open_base("pocket"), Eyes.load()
    concept_trainer.converged = _never_converged
    figures: Row = {}
    for method in args.methods:
        long_runs = [LongRun(subject, method, args) for subject in sample_subjects(args.subjects)]
        rows = [
            row
            for at in range(0, len(long_runs), args.together)
            for row in score_subjects(model, eyes, long_runs[at : at + args.together])
        ]
        figures[method] = summary(long_runs, rows, args.share)
        figures[method]["cost"] = cost(model, long_runs[0])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
