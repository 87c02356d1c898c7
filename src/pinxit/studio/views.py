"""What the page of a training shows, computed from the run's log."""

import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinxit.evaluation.prompt_sets import Prompt, evenly_spaced, prompt_set, suitable_set
from pinxit.runs.file_names import BASE_IMAGES, RECIPE
from pinxit.studio.jobs import Job
from pinxit.studio.stored import RUN_RECIPE, problem_of

if TYPE_CHECKING:  # the types of the log load slowly: the first page must not wait for them
    from pinxit.runs.events import PreviewScores
    from pinxit.runs.reader import RunState

_SPEED_STEPS = 20  # the last steps, from which the speed is measured
_MAX_POINTS = 300
_SCORED, _UNSCORED = 8, 4  # images on a sheet of previews
_MARGIN = 4  # of a sheet, in pixels
_PNG_HEADER = 24  # bytes, which end with width and height
_PEAK = re.compile(r"predicted peak: ([\d.]+ [GM]B)")
_TIME_NOTICE = "a step takes "  # how the notice of `step_notices` begins
_OPTION = re.compile(r"--([a-z][a-z-]*)")
_COMMAND = re.compile(r"pinxit [^.;,]*--")  # a command for a terminal, with its options


@dataclass(frozen=True)
class Cell:
    """One image on a sheet: `box` is its left, top, width and height in pixels."""

    box: tuple[float, float, float, float]
    sheet_size: tuple[int, int]
    step: int
    prompt: str

    @property
    def text(self) -> str:
        """The text that screen readers read aloud: its step and its prompt."""
        return f"step {self.step}: {self.prompt}"


@dataclass(frozen=True)
class PreviewRow:
    """The previews after a step, and how they were scored."""

    step: int
    sheet: Path
    cells: Sequence[Cell]
    scores: "PreviewScores | None"
    is_best: bool

    @property
    def figures(self) -> str:
        """The scores as text; empty if there are none."""
        text = self.scores.text if self.scores else ""
        return text.partition(": ")[2].partition(", the best")[0]


@dataclass(frozen=True)
class TrainingView:
    """A training for people: progress, finish time, curves, previews, and sentences about it."""

    job: Job
    run: "RunState | None"

    @property
    def step(self) -> int:
        """The last step."""
        return self.run.steps[-1].number if self.run and self.run.steps else 0

    @property
    def total(self) -> int:
        """The number of steps; 0 if it is not known yet."""
        steps = self.run.steps if self.run else []
        return steps[-1].total if steps else self.recipe.get("steps", 0)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The stored recipe of the run; empty if there is none, or it is damaged."""
        return self.run.recipe if self.run and not self._recipe_problem else {}

    @cached_property
    def _recipe_problem(self) -> str:
        recipe = self.run.recipe if self.run else None
        if recipe == {}:
            return f"{RECIPE} cannot be read"
        return problem_of(recipe, RUN_RECIPE, RECIPE) if recipe else ""

    @property
    def step_seconds(self) -> float | None:
        """The time of a step, the median of the last ones; None before there are three."""
        last = sorted(step.seconds for step in (self.run.steps if self.run else [])[-_SPEED_STEPS:])
        return last[len(last) // 2] if len(last) > 2 else None

    @property
    def cost(self) -> str:
        """The time of the steps and the predicted memory; empty if they are not known."""
        if self.step_seconds is None:
            return ""
        plan = self.run and self.run.memory_plan
        return cost_text(self.total, self.step_seconds, plan.text if plan else "")

    @property
    def summary(self) -> str:
        """What the training does now, in one sentence."""
        state = self.job.state  # the run has ended before the job is marked as done
        if state == "running" and not self.step:
            task = (self.run and self.run.progress) or self.job.read_log()[0]
            return f"{task.task} …" if task else "starting …"
        if state != "running":
            return f"{state} at step {self.step} of {self.total}" if self.step else state
        text = f"step {self.step} of {self.total}"
        if self.step_seconds is None:
            return text
        left = self.step_seconds * (self.total - self.step)
        clock = time.strftime("%H:%M", time.localtime(time.time() + left))
        return f"{text}, {duration(left)} left, done at {clock}"

    @cached_property
    def smoothed(self) -> list[float]:
        """The moving average of the loss, for each step."""
        from pinxit.reports.pages import smooth

        return smooth([step.loss for step in self.run.steps] if self.run else [])

    @cached_property
    def losses(self) -> dict[str, str]:
        """Polylines in a square of 100 units, by name: the loss, smoothed, and of validation."""
        run = self.run
        if not run or len(run.steps) < 2:
            return {}
        points = list(zip((step.number for step in run.steps), self.smoothed, strict=True))
        validation = sorted(run.validation_losses.items())
        top = 1.1 * max(loss for _, loss in [*points, *validation]) or 1.0
        total = max(self.total, self.step)
        lines = {"loss": polyline(points, total, top)}
        if len(validation) > 1:
            lines["validation"] = polyline(validation, total, top)
        return lines

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the previews, in the order of the sheets; empty if it is one prompt."""
        run = self.run
        if not run or not run.scores:
            return ()
        recipe = self.recipe
        noun, style = recipe.get("class_noun", ""), recipe.get("kind") == "style"
        name = suitable_set(noun, style=style, pocket=recipe.get("base") == "pocket")
        return evenly_spaced(prompt_set(name, noun), _SCORED)

    @property
    def previews(self) -> list[PreviewRow]:
        """The previews of each step, newest first."""
        if not self.run:
            return []
        scores = {event.step: event for event in self.run.scores}
        texts = [p.with_token(self.job.options["recipe"]["token"]) for p in self.prompts]
        texts = texts or [f"seed {seed}" for seed in range(_UNSCORED)]
        best = self.run.best_step
        return [
            PreviewRow(step, path, cells(path, step, texts), scores.get(step), step == best)
            for step, path in reversed(self.run.previews.items())
            if path.is_file() and path.stat().st_size > _PNG_HEADER
        ]

    @property
    def untrained(self) -> list[Path]:
        """The same prompts without the token, generated by the base model before step 1."""
        if not self.run or not self.prompts:
            return []
        files = (self.run.folder / BASE_IMAGES).glob("*-*[0-9].png")
        return sorted(files, key=lambda path: int(path.stem.rpartition("-")[2]))[:_SCORED]

    @property
    def sentences(self) -> list[str]:
        """Sentences about the training that the user should read."""
        if not self.run:
            return self.job.read_log()[1]
        # The page has its own finish time, which is right after the first steps too.
        texts = [text for text in self.run.notices if not text.startswith(_TIME_NOTICE)]
        problems = list(self.run.scores[-1].problems if self.run.scores else ())
        if self._recipe_problem:
            problems.insert(0, f"The stored recipe is damaged: {self._recipe_problem}.")
        plan = [self.run.memory_plan.text] if self.run.memory_plan else []
        return list(filter(None, dict.fromkeys([*problems, *texts, *self.run.decisions, *plan])))


def cost_text(steps: int, step_seconds: float, memory_plan: str) -> str:
    """What a training takes: the time of its steps, and the memory that its plan predicts."""
    peak = _PEAK.search(memory_plan)
    memory = f", {peak[1]} of memory" if peak else ""
    return f"{steps} steps in {duration(step_seconds * steps)}{memory}"


def in_words(text: str) -> str:
    """An advice without options of the command line: in the forms they have the same names."""
    return text if _COMMAND.search(text) else _OPTION.sub(lambda o: o[1].replace("-", " "), text)


def duration(seconds: float) -> str:
    """A duration in words, rounded."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def polyline(points: Sequence[tuple[int, float]], total: int, top: float) -> str:
    """The points of an SVG polyline in a square of 100 units, at most 300 of them."""
    stride = -(-len(points) // _MAX_POINTS)
    chosen = [*points[:-1:stride], points[-1]]
    return " ".join(f"{100 * x / total:.1f},{100 - 100 * y / top:.1f}" for x, y in chosen)


def cells(sheet: Path, step: int, texts: Sequence[str]) -> list[Cell]:
    """Where the images of a contact sheet are, each with its text; see `contact_sheet`."""
    with sheet.open("rb") as file:
        width, height = struct.unpack(">II", file.read(_PNG_HEADER)[16:])
    columns = round(len(texts) ** 0.5 + 0.499)
    rows = -(-len(texts) // columns)
    across, down = (width - _MARGIN) / columns, (height - _MARGIN) / rows
    boxes = [
        (column * across + _MARGIN, row * down + _MARGIN, across - _MARGIN, down - _MARGIN)
        for row in range(rows)
        for column in range(columns)
    ]
    size = (width, height)
    return [Cell(box, size, step, text) for box, text in zip(boxes, texts, strict=False)]
