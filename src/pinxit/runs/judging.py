"""The images that a judge scores: a prompt run's, with a concept or without one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from pinxit.evaluation.judge import (
    NO_ANCHORS,
    Anchors,
    Judge,
    JudgedSubject,
    MetricSet,
    PromptRun,
    suitable_prompts,
)
from pinxit.evaluation.prompt_sets import evenly_spaced
from pinxit.generation.image_cache import ImageCache
from pinxit.generation.request import GenerationRequest
from pinxit.images.folder import TrainingImage
from pinxit.models.model import Model
from pinxit.progress import Progress, ProgressCallback

NUM_PROMPTS = 8  # for scores during training


def subject_judge(
    model: Model,
    subject: JudgedSubject,
    images: Sequence[TrainingImage],
    *,
    folder: Path | None = None,
    metrics: MetricSet | None = None,
    prompt_run: PromptRun | None = None,
    anchors: Anchors = NO_ANCHORS,
) -> Judge:
    """The judge for a subject; the model must have no concept applied yet.

    The base model's images of the prompts are cached in `folder`. RequestError if the networks of
    the metrics are not on this machine.
    """
    metrics = metrics or MetricSet.for_base(model, subject.kind)
    if prompt_run is None:
        prompts = evenly_spaced(suitable_prompts(model, subject), NUM_PROMPTS)
        prompt_run = PromptRun(subject, prompts)
    base_images = generate_prompts(prompt_run, model, None, ImageCache(folder))
    return Judge.of(metrics, prompt_run, base_images, images, anchors)


def prompt_requests(
    prompt_run: PromptRun, model: Model, token: str | None
) -> list[GenerationRequest]:
    """A request for each prompt, with a placeholder token, or without one if it is None."""
    chosen: dict[str, Any] = {} if prompt_run.steps is None else {"steps": prompt_run.steps}
    return [
        GenerationRequest(
            prompt=prompt.plain if token is None else prompt.with_token(token),
            seed=prompt.seed * prompt_run.images_per_prompt,
            num_images=prompt_run.images_per_prompt,
            **chosen,
            base=model.name,
            clip_skip=prompt_run.subject.clip_skip,
            width=prompt_run.subject.resolution,
        )
        for prompt in prompt_run.prompts
    ]


def generate_prompts(
    prompt_run: PromptRun,
    model: Model,
    token: str | None,
    cache: ImageCache,
    task: str = "",
    progress: ProgressCallback | None = None,
) -> tuple[Image, ...]:
    """The images of all prompts, with a placeholder token, or without one if it is None."""
    images: list[Image] = []
    for done, request in enumerate(prompt_requests(prompt_run, model, token), 1):
        images += cache.images(model, request)
        if progress:
            progress(Progress(task, done, len(prompt_run.prompts)))
    return tuple(images)
