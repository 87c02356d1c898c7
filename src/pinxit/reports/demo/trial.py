"""One word taught and painted with, always the same way: what demo and figures are made of."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pinxit.concepts.concept import Concept, Pick
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.generation.generate import Frame, Painted, Request, generate
from pinxit.models.model import Model
from pinxit.runs.run import Run
from pinxit.training.method import Preparing
from pinxit.training.recipe import Recipe
from pinxit.training.train import Step

if TYPE_CHECKING:
    from PIL.Image import Image

_SEEDS_APART = 100  # between the first seeds of two prompts


class Progress(Protocol):
    """Told how far a task is; the first word about a task begins it."""

    def __call__(self, task: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the task are over; `note` says more about it."""
        ...


@dataclass(frozen=True)
class Lesson:
    """A word that was taught: its run, the loss of every step, and how long it took in seconds."""

    run: Run
    losses: tuple[float, ...]
    seconds: float

    @property
    def concept(self) -> Concept:
        """What was learned."""
        return self.run.concept


def said(prompt: Prompt, lesson: Lesson | None) -> str:
    """What the model is told, with the word if there was a lesson."""
    return prompt.plain if lesson is None else prompt.saying(lesson.run.recipe.token)


@dataclass(frozen=True)
class Painting:
    """A picture, what it was to show, and how long it took in seconds."""

    prompt: Prompt
    seed: int
    seconds: float
    image: "Image" = field(repr=False)


@dataclass(frozen=True)
class Easel:
    """Where words are taught and pictures painted: on which model, how, and who is told."""

    model: Model
    told: Progress
    count: int = 2
    steps: int = 25

    def tag(self, what: str) -> str:
        """A short name for something made on this base: another base or recipe has another."""
        return sha256(f"{self.model.hash}\n{what}".encode()).hexdigest()[:8]

    def teach(self, recipe: Recipe, folder: Path, task: str) -> Lesson:
        """Learn in a folder named after `folder`, or go on with the same run if it was stopped."""
        count = len(recipe.read_pictures())
        settled = recipe.settled(self.model, count)
        folder = folder.with_name(f"{folder.name}-{self.tag(settled.to_toml())}")
        begun = (folder / "recipe.toml").is_file()
        run = Run.open(folder) if begun else Run.create(folder, settled)
        preparing, began = 0.0, time.perf_counter()
        with closing(run.learn(self.model)) as events:
            for event in events:
                if isinstance(event, Preparing):
                    self.told(f"{task}: {event.what}", event.done, event.total)
                    preparing = time.perf_counter() - began
                elif isinstance(event, Step):
                    self.told(task, event.number, event.total, f"loss {event.loss:.3f}")
        steps = run.journal()
        losses = tuple(_number(step["losses"]) for step in steps)
        return Lesson(run, losses, preparing + sum(_number(step["seconds"]) for step in steps))

    def paint(self, prompts: Sequence[Prompt], lesson: Lesson | None, task: str) -> list[Painting]:
        """Paint each prompt `count` times; seeds are the same with and without a lesson."""
        concepts = () if lesson is None else (lesson.concept,)
        paths = () if lesson is None else (Pick(lesson.run.folder.resolve()),)
        paintings: list[Painting] = []
        for number, prompt in enumerate(prompts):
            request = Request(
                prompt=said(prompt, lesson),
                concepts=paths,
                base=self.model.name,
                count=self.count,
                seed=_SEEDS_APART * number,
                steps=self.steps,
            )
            began = time.perf_counter()
            for event in generate(self.model, request, concepts):
                if isinstance(event, Frame):
                    done = number * event.total + event.done
                    self.told(task, done, len(prompts) * event.total)
                elif isinstance(event, Painted):
                    each = (time.perf_counter() - began) / self.count
                    paintings.append(Painting(prompt, event.request.seed, each, event.image))
        return paintings


def _number(value: object) -> float:
    """A number of the journal, or the mean of several."""
    if isinstance(value, list):
        return sum(map(_number, value)) / len(value)
    assert isinstance(value, float | int)
    return float(value)
