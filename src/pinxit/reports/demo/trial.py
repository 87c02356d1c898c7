"""Trains concepts and generates images for the demo and for experiments, always the same way."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.concepts.concept import Concept
from pinxit.concepts.read import ConceptReference
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.generation.control import SamplingProgress
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import sample_images
from pinxit.models.model import Model
from pinxit.progress import Progress, ProgressCallback
from pinxit.runs.run import Run
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult

if TYPE_CHECKING:
    from PIL.Image import Image

_SEED_STRIDE = 100  # distance between the first seeds of two prompts


@dataclass(frozen=True)
class TrainedConcept:
    """A finished run, the loss of each step, and the training time in seconds."""

    run: Run
    losses: tuple[float, ...]
    seconds: float

    @property
    def concept(self) -> Concept:
        """The concept of the last step."""
        return self.run.concept


def filled_prompt(prompt: Prompt, trained: TrainedConcept | None) -> str:
    """The prompt with the concept's token, or with plain words for the base model."""
    return prompt.plain if trained is None else prompt.with_token(trained.run.recipe.token)


@dataclass(frozen=True)
class DemoImage:
    """An image, its prompt and seed, and the time it took in seconds."""

    prompt: Prompt
    seed: int
    seconds: float
    image: "Image" = field(repr=False)


@dataclass(frozen=True)
class DemoRunner:
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

    def train(self, recipe: Recipe, folder: Path, task: str) -> TrainedConcept:
        """Train in `folder`, whose name gets a hash of the recipe; an existing run continues."""
        count = len(recipe.read_images())
        settled = TrainingPlan.of(recipe, self.model, count).recipe
        folder = folder.with_name(f"{folder.name}-{self.tag(settled.to_toml())}")
        run = Run.open(folder) if Run.exists(folder) else Run.create(folder, settled)
        preparation, start = 0.0, time.perf_counter()
        with closing(run.train(self.model)) as events:
            for event in events:
                if isinstance(event, Progress):
                    self.progress(replace(event, task=f"{task}: {event.task}"))
                    preparation = time.perf_counter() - start
                elif isinstance(event, StepResult):
                    note = f"loss {event.loss:.3f}"
                    self.progress(Progress(task, event.number, event.total, note))
        steps = run.state.steps
        losses = tuple(step.loss for step in steps)
        return TrainedConcept(run, losses, preparation + sum(step.seconds for step in steps))

    def generate(
        self, prompts: Sequence[Prompt], trained: TrainedConcept | None, task: str
    ) -> list[DemoImage]:
        """Generate `num_images` of each prompt; seeds do not depend on the concept."""
        concepts = () if trained is None else (trained.concept,)
        references = () if trained is None else (ConceptReference(trained.run.folder.resolve()),)
        images: list[DemoImage] = []
        for number, prompt in enumerate(prompts):
            request = GenerationRequest(
                prompt=filled_prompt(prompt, trained),
                concepts=references,
                base=self.model.name,
                num_images=self.num_images,
                seed=_SEED_STRIDE * number,
                steps=self.steps,
            )
            start = time.perf_counter()
            for event in sample_images(self.model, request, concepts):
                if isinstance(event, SamplingProgress):
                    done = number * event.total + event.done
                    self.progress(Progress(task, done, len(prompts) * event.total))
                elif isinstance(event, GeneratedImage):
                    seconds = (time.perf_counter() - start) / self.num_images
                    images.append(DemoImage(prompt, event.request.seed, seconds, event.image))
        return images
