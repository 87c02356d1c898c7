"""What is said about a run before its first step."""

from collections.abc import Iterator, Sequence

from pinxit.generation.notices import size_notices
from pinxit.images.folder import TrainingImage
from pinxit.progress import Notice
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.method import insert_token


def training_notices(trainer: ConceptTrainer, images: Sequence[TrainingImage]) -> Iterator[Notice]:
    """An unusual resolution, captions that are not used, and what is cut from long ones."""
    yield from size_notices(trainer.model, trainer.plan.resolution, trainer.plan.resolution)
    warmup, steps = trainer.plan.recipe.warmup_steps, trainer.plan.steps
    if warmup > steps:
        yield Notice(
            f"the learning rate rises for {warmup} steps (--warmup-steps) and the run ends after "
            f"{steps}: it never has its full value"
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
