"""Trains concepts, generates images and caches results for all experiments in the same way."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL.Image import Image

from pinxit.concepts.concept import Concept
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.files.atomic_write import write_text
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.model import Model
from pinxit.progress import Progress, ProgressCallback
from pinxit.reports.demo import train_with_progress
from pinxit.runs.run import Run
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe

Row = dict[str, Any]  # the results of one experiment, as in the JSON output
_SEED_STRIDE = 100  # distance between the first seeds of two prompts


@dataclass(frozen=True)
class TrainedConcept:
    """The concept of the last step, its run's folder, and the training time in seconds.

    `processor_seconds` are those of `new_steps`, the steps of this process.
    """

    concept: Concept
    folder: Path
    seconds: float
    processor_seconds: float
    new_steps: int


@dataclass(frozen=True)
class LabImage:
    """An image and its prompt."""

    prompt: Prompt
    image: Image = field(repr=False)


@dataclass(frozen=True)
class Lab:
    """Trains concepts and generates images on one base model.

    `num_images` is the number of images per prompt, `steps` the denoising steps of each.
    """

    model: Model
    progress: ProgressCallback
    num_images: int = 2
    steps: int = 25

    def tag(self, text: str) -> str:
        """A short hash of the base model and a text, for file names of cached results."""
        return sha256(f"{self.model.hash}\n{text}".encode()).hexdigest()[:8]

    def train(self, recipe: Recipe, folder: Path, task: str, length: float = 1) -> TrainedConcept:
        """Train in `folder`, whose name gets a hash of the recipe; an existing run continues.

        `length` is the number of steps, relative to that of the recipe.
        """
        count = len(recipe.read_images())
        complete = TrainingPlan.of(recipe, self.model, count).recipe
        folder = folder.with_name(f"{folder.name}-{self.tag(complete.to_toml())}")
        steps = round((complete.steps or 0) * length)
        steps_before = 0
        if Run.exists(folder):
            run = Run.open(folder, steps)
            steps_before = len(run.state.steps)
        else:
            run = Run.create(folder, complete.model_copy(update={"steps": steps}))
        start, processor_start = time.perf_counter(), time.process_time()
        preparation = 0.0

        def report(progress: Progress) -> None:
            nonlocal preparation
            if progress.task != task:  # class images and latents, before the first step
                preparation = time.perf_counter() - start
            self.progress(progress)

        train_with_progress(run, self.model, task, report)
        processor_seconds = time.process_time() - processor_start
        steps_done = run.state.steps
        seconds = preparation + sum(step.seconds for step in steps_done)
        new_steps = len(steps_done) - steps_before
        return TrainedConcept(run.concept, folder, seconds, processor_seconds, new_steps)

    def generate(
        self, prompts: Sequence[Prompt], concept: Concept | None, task: str
    ) -> list[LabImage]:
        """Generate `num_images` of each prompt; without a concept its plain words.

        Seeds do not depend on the concept.
        """
        images: list[LabImage] = []
        for number, prompt in enumerate(prompts):
            request = GenerationRequest(
                prompt=prompt.with_token(concept.token) if concept else prompt.plain,
                base=self.model.name,
                num_images=self.num_images,
                seed=_SEED_STRIDE * number,
                steps=self.steps,
            )
            generated = generate_images(self.model, request, [concept] if concept else [])
            images += [LabImage(prompt, one.image) for one in generated]
            self.progress(Progress(task, number + 1, len(prompts)))
        return images


def cached(file: Path, measure: Callable[[], Mapping[str, Any]]) -> Row:
    """The results of an experiment from a file, or else measured now and stored."""
    if not file.is_file():
        row = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(row, indent=1))
        print(f"{file.stem}: {json.dumps(row)}"[:160], file=sys.stderr, flush=True)
    return json.loads(file.read_text(encoding="utf-8"))


def print_progress(progress: Progress) -> None:
    """Print a finished task to stderr."""
    if progress.done == progress.total:
        line = f"{progress.task}: {progress.total} {progress.note}"
        print(line, file=sys.stderr, flush=True)


def argument_parser(description: str | None, work: str) -> argparse.ArgumentParser:
    """A parser with the work folder, in which all results are kept."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, default=Path(work), help="work folder")
    return parser
