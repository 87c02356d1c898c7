"""The sheet of one text in many styles: each row one picture, held in place by its seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pinxit.concept import Concept, Pick
from pinxit.control import Control, control_of
from pinxit.demo.trial import Easel, Lesson
from pinxit.generate import Frame, Painted, Request, generate
from pinxit.pixels import sheet

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Transfers:
    """Pictures by row and column: what the base paints of a text, then each learned style."""

    titles: tuple[str, ...]
    prompts: tuple[str, ...]
    rows: tuple[tuple["Image", ...], ...] = field(repr=False)

    def sheet(self) -> "Image":
        """All of them on one."""
        return sheet([image for row in self.rows for image in row], len(self.titles))


def transfers(
    easel: Easel, prompts: Sequence[str], lessons: Sequence[Lesson], task: str = "transferring"
) -> Transfers:
    """Paint each prompt, then the same with each word for a style, from the same seed and held."""
    held = control_of({"name": "same-seed"})
    assert isinstance(held, Control)
    rows: list[tuple[Image, ...]] = []
    total = len(prompts) * (1 + len(lessons)) * easel.steps
    done = 0
    for seed, prompt in enumerate(prompts):
        row: list[Image] = []
        for lesson in (None, *lessons):
            request = Request(prompt=prompt, base=easel.model.name, seed=seed, steps=easel.steps)
            concepts: Sequence[Concept] = ()
            if lesson is not None:
                said = {"prompt": f"{prompt} in the style of {lesson.run.recipe.token}"}
                paths = (Pick(lesson.run.folder.resolve()),)
                request = request.model_copy(
                    update={**said, "controls": (held,), "concepts": paths}
                )
                concepts = (lesson.concept,)
            for event in generate(easel.model, request, concepts):
                if isinstance(event, Frame):
                    done += 1
                    easel.told(task, done, total)
                elif isinstance(event, Painted):
                    row.append(event.image)
        rows.append(tuple(row))
    tokens = (lesson.run.recipe.token for lesson in lessons)
    return Transfers(("from text", *tokens), tuple(prompts), tuple(rows))
