"""pinxit's side, through its public ways: a recipe, a lesson and its steps; a request."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.job import GUIDANCE, TOKEN, Job
from pinxit.generate import Request, generate
from pinxit.model import Model, open_base
from pinxit.pictures import read_pictures
from pinxit.recipe import Recipe
from pinxit.train import Lesson, train

_KNOBS = {"lora": {"rank": 4}, "dreambooth": {"prior_pictures": 8}}


def opened(job: Job) -> Model:
    """The base, in the numbers that were asked for, or else those pinxit chooses."""
    return open_base(job.base, job.device, job.precision)  # pyright: ignore[reportArgumentType]


def learned(job: Job) -> Iterator[None]:
    """Ready, then a step each time."""
    model = opened(job)
    pictures = read_pictures(job.pictures)
    recipe = Recipe.model_validate(
        {
            "method": {"name": job.method, **_KNOBS.get(job.method, {})},
            "pictures": job.pictures,
            "token": TOKEN,
            "class_noun": job.noun,
            "base": job.base,
            "steps": job.steps,
            "batch_size": job.batch,
            "size": job.size,
            "preview_every": 0,
        }
    ).settled(model, len(pictures))
    with_any = pictures[0].path
    while True:
        try:
            lesson = Lesson.of(model, recipe, pictures)
            break
        except FileNotFoundError as missing:  # a class picture; for its time any picture will do
            place = Path(missing.filename)
            place.parent.mkdir(parents=True, exist_ok=True)
            _ = shutil.copy(with_any, place)
    yield
    for _ in train(lesson):
        yield


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
