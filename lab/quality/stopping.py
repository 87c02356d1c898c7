"""Whether stopping comes in time: long runs of held-out subjects, scored at a grid of steps.

A run of so many steps is the beginning of a longer one, so one long run has every budget of the
grid, and where stopping would have ended it follows from what it noted of its fixed samples. All
that is done is kept in the work folder, so a stopped measurement goes on. The last line on stdout
is all of it as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from lab.quality.subjects import Row, Trial, chosen, real, written
from pinxit.concepts.concept import Concept
from pinxit.evaluation.judge import Judge, Verdict
from pinxit.files.atomic_write import replace_text
from pinxit.generation.generate import Painted, Request, generate
from pinxit.models.model import Model, open_base
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import held_out_subjects
from pinxit.reports.demo.scores import ASKED, subject_scales
from pinxit.reports.demo.scores import judge as judged
from pinxit.reports.demo.trial import Painting
from pinxit.runs.folder import Failed
from pinxit.runs.many import learn_many
from pinxit.runs.run import Run
from pinxit.training import concept_trainer
from pinxit.training.early_stopping import settled
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, Step, train

GRID = (50, 100, 200, 300, 500, 800, 1200, 2000, 3000)
# Any share lets a run look at its fixed samples; nothing settles here, so they go all the way.
_LOOKING = 1.0
_TIMED = 5
# Pictures a step, and steps of the long runs.
_SIZES = {"textual-inversion": (2, 1200), "lora": (1, 800)}


@dataclass(frozen=True)
class Long:
    """A long run of one subject by one method."""

    subject: int
    method: str
    given: argparse.Namespace

    @property
    def batch_size(self) -> int:
        """Pictures a step, fewer than usual: many subjects are learned together."""
        return self.given.batch_size or _SIZES[self.method][0]

    @property
    def steps(self) -> int:
        """How long it is."""
        return self.given.steps or _SIZES[self.method][1]

    @property
    def budgets(self) -> list[int]:
        """The grid as far as it goes, and its end."""
        return [*(step for step in GRID if step < self.steps), self.steps]

    @property
    def folder(self) -> Path:
        """Where its pictures, its run and its scores are."""
        return self.given.work / f"{self.method}-{self.batch_size}" / f"{self.subject:02}"

    @cached_property
    def trial(self) -> Trial:
        """The subject as it is measured elsewhere too."""
        return Trial(self.subject, self.method, self.given)

    def run(self, base: str) -> Run:
        """Its run, as it stands."""
        given, folder = self.given, self.folder / "run"
        pictures = written(self.subject, self.folder / "pictures")
        if Run.begun(folder):
            return Run.open(folder, self.steps)
        every = {"look_every": given.every, "keep_every": given.every, "checkpoint_every": 50}
        said = {"token": f"<toy{self.subject}>", "class_noun": self.trial.noun, "base": base}
        size = {"steps": self.steps, "batch_size": self.batch_size, "method": self.method}
        silent = {"pictures": pictures, "preview_every": 0, "stop": _LOOKING}
        return Run.create(folder, Recipe.model_validate({**every, **said, **size, **silent}))

    def concept(self, step: int) -> Concept:
        """What was learned by a step."""
        return Concept.load(self.folder / "run" / "concepts" / f"{step:07}.safetensors")

    def stop(self, share: float) -> int:
        """After which step stopping would have ended it."""
        looks = Run.open(self.folder / "run").notes.looks()
        losses: list[float] = []
        for step, loss in looks.items():
            losses.append(loss)
            if step <= self.steps and settled(losses, share):
                return step
        return self.steps

    def kept(self, name: str, found: Callable[[], Row]) -> Row:
        """A row of figures: as it was kept, or found now."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            row = found()
            replace_text(file, json.dumps(row))
            print(f"subject {self.subject}, {name}: {row}", file=sys.stderr, flush=True)
        return json.loads(file.read_text(encoding="utf-8"))


def learn(model: Model, longs: Sequence[Long]) -> None:
    """Learn all of them to the end, together."""
    runs = [long.run(model.name) for long in longs]
    if all(run.finished for run in runs):
        return
    with closing(learn_many(model, runs)) as told:
        for one in told:
            if not isinstance(one, tuple):
                continue
            run, event = one
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Step) and event.number % 50 == 0 and run is runs[0]:
                print(f"step {event.number}", file=sys.stderr, flush=True)


def score(model: Model, eyes: Eyes, long: Long, step: int) -> Row:
    """What was learned by a step is worth: kept, or painted and judged now."""
    return long.kept(f"score-{step:05}", lambda: _score(model, eyes, long, step))


def verdict(model: Model, long: Long, step: int) -> Row:
    """What the run's own judge says of a step, who knows nothing but the pictures learned from."""

    def found() -> Row:
        run = long.run(model.name)
        judge = Judge.of(
            model, run.recipe, run.recipe.read_pictures(), folder=long.folder / "plain"
        )
        return {"step": step, "best": judge.look(model, [long.concept(step)]).best}

    return long.kept(f"verdict-{step:05}", found)


def _score(model: Model, eyes: Eyes, long: Long, step: int) -> Row:
    concept = long.concept(step)
    paintings: list[Painting] = []
    for number, asked in enumerate(long.trial.prompts()):
        request = Request(
            prompt=asked.template.format(concept.token),
            base=model.name,
            count=long.given.count,
            seed=100 * number,
            steps=long.given.painting_steps,
        )
        done = [e for e in generate(model, request, (concept,)) if isinstance(e, Painted)]
        paintings += [Painting(asked, one.request.seed, 0.0, one.image) for one in done]
    references, lookalikes, others = real(long.subject)
    hidden = held_out_subjects()[long.subject].hidden().tolist()
    scales = subject_scales(references, lookalikes, others, hidden, eyes)
    scores = judged(paintings, scales, eyes)
    row: Row = {
        "step": step,
        "likeness": scores.likeness["likeness"].share,
        "hidden": scores.likeness["hidden"].share,
        "prompt": fmean(scores.right[asked] for asked in ASKED),
    }
    row["best"] = Verdict(row["likeness"], row["prompt"]).best
    return row


def measured(model: Model, eyes: Eyes, longs: Sequence[Long]) -> Iterator[dict[int, Row]]:
    """For each subject what every budget, and stopping, is worth."""
    learn(model, longs)
    for long in longs:
        steps = long.budgets
        stop = long.stop(long.given.share)
        row = {step: score(model, eyes, long, step) for step in sorted({*steps, stop})}
        for step in steps if long.given.judged else ():
            row[step]["verdict"] = verdict(model, long, step)["best"]
        yield row


def summary(longs: Sequence[Long], rows: Sequence[dict[int, Row]], share: float) -> Row:
    """Figures over subjects: the grid, where stopping comes and what it loses, what is kept."""
    grid = {step: fmean(row[step]["best"] for row in rows) for step in longs[0].budgets}
    peak = max(grid, key=lambda step: grid[step])
    stops = [long.stop(share) for long in longs]
    stopped = fmean(row[stop]["best"] for row, stop in zip(rows, stops, strict=True))
    chosen_by_judge = [max(grid, key=lambda step: row[step].get("verdict", 0)) for row in rows]
    judged_all = all("verdict" in row[step] for row in rows for step in grid)
    kept = [row[step]["best"] for row, step in zip(rows, chosen_by_judge, strict=True)]
    return {
        "subjects": [long.subject for long in longs],
        "grid": grid,
        "by subject": [{step: row[step] for step in sorted(row)} for row in rows],
        "peak": peak,
        "stops": stops,
        "stopped": sum(stop < long.steps for stop, long in zip(stops, longs, strict=True)),
        "of the peak": fmean(stops) / peak,
        "best at the stop": stopped,
        "lost": 1 - stopped / grid[peak],
        "lost by the last": 1 - grid[max(grid)] / grid[peak],
        "steps kept": chosen_by_judge if judged_all else None,
        "best kept": fmean(kept) if judged_all else None,
    }


def cost(model: Model, long: Long) -> float:
    """The share of a run's time that looking takes, at the method's own batch size."""
    recipe = long.run(model.name).recipe
    own = {"steps": None, "batch_size": None, "look_every": None}
    pictures = recipe.read_pictures()
    settled_ = recipe.model_copy(update=own).settled(model, len(pictures))
    lesson = Lesson.of(model, settled_.model_copy(update={"look_every": 1}), pictures)
    steps: list[float] = []
    looks: list[float] = []
    with closing(train(lesson)) as going:
        next(going)
        for _ in range(_TIMED):
            began = time.perf_counter()
            seconds = next(going).seconds
            looks.append(time.perf_counter() - began - seconds)
            steps.append(seconds)
    every = settled_.look_every or 1
    return median(looks) / (median(looks) + every * median(steps))


def _never(losses: Sequence[float], share: float) -> bool:  # noqa: ARG001
    return False


def main() -> None:
    """Learn, score and sum up, telling of it on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10, help="how many")
    parser.add_argument("--methods", nargs="+", default=[*_SIZES])
    parser.add_argument("--batch-size", type=int, help="pictures a step")
    parser.add_argument("--steps", type=int, help="of the long runs")
    parser.add_argument("--every", type=int, default=10, help="steps between looks")
    parser.add_argument("--together", type=int, default=5, help="subjects in one batch")
    parser.add_argument("--count", type=int, default=1, help="pictures of each of 8 prompts")
    parser.add_argument("--painting-steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("build/stopping"), help="work folder")
    parser.add_argument("--judged", action="store_true", help="ask the runs' own judge too")
    parser.add_argument("--share", type=float, default=0.05, help="as recipes have it in `stop`")
    given = parser.parse_args()
    model, eyes = open_base("pocket"), Eyes.load()
    concept_trainer.settled = _never
    figures: Row = {}
    for method in given.methods:
        longs = [Long(subject, method, given) for subject in chosen(given.subjects)]
        rows = [
            row
            for at in range(0, len(longs), given.together)
            for row in measured(model, eyes, longs[at : at + given.together])
        ]
        figures[method] = summary(longs, rows, given.share)
        figures[method]["cost"] = cost(model, longs[0])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
