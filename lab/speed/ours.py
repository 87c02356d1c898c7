"""pinxit's side, through its public ways: a recipe, a lesson and its steps; a request."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.speed.job import GUIDANCE, TOKEN, Job
from pinxit.generation.generate import Request, generate
from pinxit.images.folder import Picture, read_pictures
from pinxit.models.model import Model, open_base
from pinxit.training.concept_trainer import Learner
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, train

_KNOBS = {
    # Beside the layers that the plain loop has its LoRA beside.
    "lora": {"rank": 4, "layers": "attention", "prior_pictures": 0},
    "dreambooth": {"prior_pictures": 8},
}


def opened(job: Job) -> Model:
    """The base, in the numbers that were asked for, or else those pinxit chooses."""
    return open_base(job.base, job.device, job.precision)  # pyright: ignore[reportArgumentType]


def learned(job: Job) -> Iterator[None]:
    """Ready, then a step each time."""
    model = opened(job)
    pictures = read_pictures(job.pictures)
    recipes = [_recipe(job, number).settled(model, len(pictures)) for number in range(job.concepts)]
    lesson = _lesson(model, recipes, pictures)
    yield
    for _ in train(lesson):
        yield


def _recipe(job: Job, number: int) -> Recipe:
    """The same for every concept but for its word and its randomness."""
    return Recipe.model_validate(
        {
            "method": {"name": job.method, **_KNOBS.get(job.method, {})},
            "pictures": job.pictures,
            "token": TOKEN if not number else f"<mytoy-{number}>",
            "class_noun": job.noun,
            "base": job.base,
            "seed": number,
            "steps": job.steps,
            "batch_size": job.batch,
            "size": job.size,
            "preview_every": 0,
        }
    )


def _lesson(model: Model, recipes: Sequence[Recipe], pictures: tuple[Picture, ...]) -> Lesson:
    """A lesson of one or more concepts; for class pictures, which are seldom there, any will do."""
    while True:
        try:
            if len(recipes) == 1:
                return Lesson.of(model, recipes[0], pictures)
            return Lesson(model, [Learner(model, recipe, pictures) for recipe in recipes])
        except FileNotFoundError as missing:
            place = Path(missing.filename)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pictures[0].path, place)


def painted(job: Job) -> Iterator[None]:
    """Ready, a first picture of two steps, then a whole one each time."""
    model = opened(job)
    yield
    for number in range(job.steps):
        request = Request(
            prompt=f"a photo of a {job.noun}",
            base=job.base,
            seed=number,
            steps=job.painting if number else 2,
            guidance=GUIDANCE,
            width=job.size,
        )
        for _ in generate(model, request):
            pass
        yield
