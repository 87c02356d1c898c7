"""pinxit's side of the comparison: training from a recipe, and generation from a request."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lab.speed.job import COMPILED, GUIDANCE, TOKEN, Job
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import sample_images
from pinxit.images.folder import TrainingImage, read_images
from pinxit.models.model import Model
from pinxit.models.open_base import compile_denoiser, open_base
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train

_OPTIONS = {
    # The same layers as in the plain loop.
    "lora": {"rank": 4, "layers": "attention", "class_images": 0},
    "dreambooth": {"class_images": 8},
}


def open_model(job: Job) -> Model:
    """The base model in the job's precision, compiled if the side says so."""
    model = open_base(job.base, job.device, job.precision)  # pyright: ignore[reportArgumentType]
    if job.side in COMPILED:
        compile_denoiser(model, graphs=job.side == "graphs")
    return model


def training_steps(job: Job) -> Iterator[int | None]:
    """Training: yields when ready, then after each step the bytes that a step should need."""
    model = open_model(job)
    images = read_images(job.images)
    plans = [
        TrainingPlan.of(_recipe(job, number), model, len(images)) for number in range(job.concepts)
    ]
    session = _session(model, plans, images)
    yield None
    for _ in train(session):
        yield session.memory_plan.step_bytes if session.memory_plan else None


def _recipe(job: Job, number: int) -> Recipe:
    """The recipe of a concept; only token and seed depend on its number."""
    return Recipe.model_validate(
        {
            "method": {"name": job.method, **_OPTIONS.get(job.method, {})},
            "images": job.images,
            "token": TOKEN if not number else f"<mytoy-{number}>",
            "class_noun": job.noun,
            "base": job.base,
            "seed": number,
            "steps": job.steps,
            "batch_size": job.batch,
            "resolution": job.size,
            "preview_every": 0,
        }
    )


def _session(
    model: Model, plans: Sequence[TrainingPlan], images: tuple[TrainingImage, ...]
) -> TrainingSession:
    """A session of one or more concepts; a training image stands for all class images."""
    required = plans[0].class_images
    class_images = tuple(
        replace(images[0], caption=required.prompt, class_image=True, mask=None)
        for _ in range(required.count)
    )
    return TrainingSession(
        model, [ConceptTrainer(model, plan, images, class_images) for plan in plans]
    )


def generation_steps(job: Job) -> Iterator[None]:
    """Generation: yields when ready, after an image of two steps, then after each whole image."""
    model = open_model(job)
    yield
    for number in range(job.steps):
        request = GenerationRequest(
            prompt=f"a photo of a {job.noun}",
            base=job.base,
            seed=number,
            steps=job.sampling_steps if number else 2,
            guidance_scale=GUIDANCE,
            width=job.size,
        )
        for _ in sample_images(model, request):
            pass
        yield
