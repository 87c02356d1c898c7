"""The sheet of one text in many styles: each row one picture, held in place by its seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pinxit.concepts.concept import Concept, Pick
from pinxit.generation.control import Control, control_of
from pinxit.generation.generate import Frame, Painted, Request, generate
from pinxit.images.tensors import sheet
from pinxit.reports.demo.trial import Easel, Lesson

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Transfers:
    """Pictures row by row: what the base paints of a prompt, then of it in each learned style."""

    titles: tuple[str, ...]
    prompts: tuple[str, ...]
    images: tuple["Image", ...] = field(repr=False)

    def sheet(self) -> "Image":
        """All of them on one."""
        return sheet(self.images, len(self.titles))


def transfers(
    easel: Easel, prompts: Sequence[str], lessons: Sequence[Lesson], task: str = "transferring"
) -> Transfers:
    """Paint each prompt, then the same with each word for a style, from the same seed and held."""
    held = control_of({"name": "same-seed"})
    assert isinstance(held, Control)
    images: list[Image] = []
    total = len(prompts) * (1 + len(lessons)) * easel.steps
    for seed, prompt in enumerate(prompts):
        plain = Request(prompt=prompt, base=easel.model.name, seed=seed, steps=easel.steps)
        asked: list[tuple[Request, tuple[Concept, ...]]] = [(plain, ())]
        for lesson in lessons:
            styled = {
                "prompt": f"{prompt} in the style of {lesson.run.recipe.token}",
                "controls": (held,),
                "concepts": (Pick(lesson.run.folder.resolve()),),
            }
            asked.append((plain.model_copy(update=styled), (lesson.concept,)))
        for request, concepts in asked:
            for event in generate(easel.model, request, concepts):
                if isinstance(event, Frame):
                    easel.told(task, len(images) * easel.steps + event.done, total)
                elif isinstance(event, Painted):
                    images.append(event.image)
    tokens = (lesson.run.recipe.token for lesson in lessons)
    return Transfers(("from text", *tokens), tuple(prompts), tuple(images))
