"""What is said about a run before its first step and after its first ones."""

from collections.abc import Iterator, Sequence
from statistics import median

from pinxit.generation.notices import size_notices
from pinxit.images.folder import TrainingImage
from pinxit.progress import Notice
from pinxit.runs.events import MemoryNotice
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.finetuning import Finetuning
from pinxit.training.memory import MemoryPlan, two_digits
from pinxit.training.method import insert_token
from pinxit.training.step_result import StepResult

_TIMED_STEPS = 3


def training_notices(trainer: ConceptTrainer, images: Sequence[TrainingImage]) -> Iterator[Notice]:
    """An unusual resolution, captions that are not used, and what is cut from long ones."""
    yield from size_notices(trainer.model, trainer.plan.resolution, trainer.plan.resolution)
    method = trainer.plan.method
    if (
        isinstance(method, Finetuning)
        and method.train_text_encoder
        and not trainer.model.text_encoders
    ):
        yield Notice(
            f"{trainer.model.name} has no text encoder that can be trained: --train-text-encoder "
            "has no effect"
        )
    warmup, steps = trainer.plan.recipe.warmup_steps, trainer.plan.steps
    if warmup > steps:
        yield Notice(
            f"the learning rate rises for {warmup} steps (--warmup-steps), but the run ends after "
            f"{steps}: it never reaches its full value"
        )
    captions = [image.caption for image in images if image.caption]
    texts = {insert_token(caption, trainer.plan.recipe.subject) for caption in captions}
    if captions and not texts & {*trainer.samples.prompts}:
        yield Notice(
            f"the captions of {len(captions)} of {len(images)} images are not used for an object; "
            "--captions uses them"
        )
    cuts = trainer.cut_prompts()
    for cut in list(cuts.values())[:1]:
        yield Notice(
            f"{len(cuts)} training prompts are too long for {trainer.model.name} and are cut; "
            f"{trainer.plan.recipe.token} stays, and of the first this is left out: `{cut}`"
        )


def step_notices(
    event: StepResult | MemoryPlan, seconds: list[float], precision: str
) -> Iterator[MemoryNotice | Notice]:
    """How steps are computed, and how long the steps left take once the first are measured."""
    if isinstance(event, MemoryPlan):
        text = event.description(precision)
        yield MemoryNotice(event.micro_batch, event.gradient_checkpointing, text)
        return
    seconds.append(event.seconds)
    left = event.total - event.number
    minutes = round(left * median(seconds) / 60)
    if len(seconds) == _TIMED_STEPS and minutes:
        time = f"{minutes} min" if minutes < 2 * 60 else f"{minutes / 60:.0f} h"
        yield Notice(
            f"a step takes {two_digits(median(seconds))} s (the median of the first "
            f"{_TIMED_STEPS}): about {time} for the {left} left, without previews"
        )
