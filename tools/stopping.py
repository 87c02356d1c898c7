"""Whether stopping comes in time: long runs of held-out subjects, scored at a grid of steps.

A run of so many steps is the beginning of a longer one, so one long run has every budget of the
grid, and where stopping would have ended it follows from what it noted of its fixed samples. All
that is done is kept in the work folder, so a stopped measurement goes on. The last line on stdout
is all of it as JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import fmean

from pinxit.concept import Concept
from pinxit.demo.scores import ASKED, judge, subject_scales
from pinxit.demo.trial import Painting
from pinxit.durable import replace_text
from pinxit.generate import Painted, Request, generate
from pinxit.many import learn_many
from pinxit.model import Model, open_base
from pinxit.pocket.eyes import Eyes
from pinxit.pocket.world import held_out_subjects
from pinxit.recipe import Recipe
from pinxit.run import Run
from pinxit.run_folder import Failed
from pinxit.train import Step
from subjects import Row, Trial, chosen, real

GRID = (50, 100, 200, 300, 500, 800, 1200, 2000, 3000)
# A share so small that nothing ever settles to it: the fixed samples are looked at all the way.
_NEVER = 1e-12


@dataclass(frozen=True)
class Long:
    """A long run of one subject by one method."""

    subject: int
    given: argparse.Namespace

    @property
    def folder(self) -> Path:
        """Where its pictures, its run and its scores are."""
        given = self.given
        return given.work / f"{given.method}-{given.batch_size}" / f"{self.subject:02}"

    @cached_property
    def trial(self) -> Trial:
        """The subject as it is measured elsewhere too."""
        return Trial(self.subject, self.given.method, self.given)

    def run(self, base: str) -> Run:
        """Its run, as it stands."""
        given, folder = self.given, self.folder / "run"
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(real(self.subject)[0]):
            image.save(pictures / f"{number}.png")
        if Run.begun(folder):
            return Run.open(folder, given.steps)
        every = {"look_every": given.every, "keep_every": given.every, "checkpoint_every": 50}
        said = {"token": f"<toy{self.subject}>", "class_noun": self.trial.noun, "base": base}
        size = {"steps": given.steps, "batch_size": given.batch_size, "method": given.method}
        silent = {"pictures": pictures, "preview_every": 0, "stop": _NEVER}
        return Run.create(folder, Recipe.model_validate({**every, **said, **size, **silent}))


def learn(model: Model, longs: Sequence[Long]) -> None:
    """Learn all of them to the end, together."""
    runs = [long.run(model.name) for long in longs]
    if all(run.finished for run in runs):
        return
    with closing(learn_many(model, runs)) as told:
        for one in told:
            event = one[1] if isinstance(one, tuple) else None
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Step) and event.number % 50 == 0 and one[0] is runs[0]:
                print(f"step {event.number}", file=sys.stderr, flush=True)


def score(model: Model, eyes: Eyes, long: Long, step: int) -> Row:
    """What was learned by a step is worth: kept, or painted and judged now."""
    file = long.folder / f"score-{step:05}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    concept = Concept.load(long.folder / "run" / "concepts" / f"{step:07}.safetensors")
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
    scores = judge(paintings, scales, eyes)
    row: Row = {
        "step": step,
        "likeness": scores.likeness["likeness"].share,
        "hidden": scores.likeness["hidden"].share,
        "prompt": fmean(scores.right[asked] for asked in ASKED),
    }
    row["best"] = sqrt(max(0.0, min(1.0, row["likeness"])) * row["prompt"])
    replace_text(file, json.dumps(row))
    print(f"subject {long.subject}: {row}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Learn, score and sum up, telling of it on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=10, help="how many")
    parser.add_argument("--method", default="textual-inversion")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1200, help="of the long runs")
    parser.add_argument("--every", type=int, default=10, help="steps between looks")
    parser.add_argument("--together", type=int, default=5, help="subjects in one batch")
    parser.add_argument("--count", type=int, default=1, help="pictures of each of 8 prompts")
    parser.add_argument("--painting-steps", type=int, default=12)
    parser.add_argument("--work", type=Path, default=Path("build/stopping"), help="work folder")
    given = parser.parse_args()
    model, eyes = open_base("pocket"), Eyes.load()
    longs = [Long(subject, given) for subject in chosen(given.subjects)]
    for at in range(0, len(longs), given.together):
        learn(model, longs[at : at + given.together])
        for long in longs[at : at + given.together]:
            for step in GRID:
                if step <= given.steps:
                    score(model, eyes, long, step)


if __name__ == "__main__":
    main()
