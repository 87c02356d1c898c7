"""Images of one prompt in many styles, which keep the composition of the first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pinxit.concepts.concept import Concept
from pinxit.concepts.read import ConceptReference
from pinxit.generation.control import Control, SamplingProgress, parse_control
from pinxit.generation.request import GeneratedImage, GenerationRequest
from pinxit.generation.sample import sample_images
from pinxit.images.tensors import contact_sheet
from pinxit.progress import Progress
from pinxit.reports.demo.trial import DemoRunner, TrainedConcept

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class StyleTransfers:
    """Images in rows: for each prompt the base model's, then one in each trained style."""

    titles: tuple[str, ...]
    prompts: tuple[str, ...]
    images: tuple["Image", ...] = field(repr=False)

    def sheet(self) -> "Image":
        """All images on one sheet."""
        return contact_sheet(self.images, len(self.titles))

    @property
    def rows(self) -> "Iterator[tuple[str, tuple[Image, ...]]]":
        """Each prompt with its images."""
        width = len(self.titles)
        for row, prompt in enumerate(self.prompts):
            yield prompt, self.images[row * width : (row + 1) * width]


def transfer_styles(
    runner: DemoRunner,
    prompts: Sequence[str],
    styles: Sequence[TrainedConcept],
    task: str = "transferring",
) -> StyleTransfers:
    """Generate each prompt, then again with each style's token, the same seed and control."""
    control = parse_control({"name": "same-seed"})
    assert isinstance(control, Control)
    images: list[Image] = []
    total = len(prompts) * (1 + len(styles)) * runner.steps
    for seed, prompt in enumerate(prompts):
        base_request = GenerationRequest(
            prompt=prompt, base=runner.model.name, seed=seed, steps=runner.steps
        )
        requests: list[tuple[GenerationRequest, tuple[Concept, ...]]] = [(base_request, ())]
        for style in styles:
            changes = {
                "prompt": f"{prompt} in the style of {style.run.recipe.token}",
                "controls": (control,),
                "concepts": (ConceptReference(style.run.folder.resolve()),),
            }
            requests.append((base_request.model_copy(update=changes), (style.concept,)))
        for request, concepts in requests:
            for event in sample_images(runner.model, request, concepts):
                if isinstance(event, SamplingProgress):
                    done = len(images) * runner.steps + event.done
                    runner.progress(Progress(task, done, total))
                elif isinstance(event, GeneratedImage):
                    images.append(event.image)
    tokens = (style.run.recipe.token for style in styles)
    return StyleTransfers(("from text", *tokens), tuple(prompts), tuple(images))
