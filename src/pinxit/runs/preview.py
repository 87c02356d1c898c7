"""Previews: a sheet of pictures painted with what is learned so far, and what they are worth."""

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pinxit.evaluation.findings import Findings
from pinxit.evaluation.judge import Judge
from pinxit.files.atomic_write import must_be_regular, replace_bytes
from pinxit.generation.generate import Request, paint
from pinxit.generation.image_cache import Portfolio
from pinxit.images.tensors import sheet
from pinxit.models.model import Model
from pinxit.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

_COUNT = 4
# A picture whose channels each stay within so many of 256 values shows nothing.
_FLAT = 4


@dataclass(frozen=True)
class Preview:
    """A sheet of pictures painted after a step; so many of them are of one colour.

    With a judge there is what it finds in them.
    """

    number: int
    path: Path
    flat: int = 0
    findings: Findings | None = None


def preview(
    model: Model, recipe: Recipe, number: int, folder: Path, judge: Judge | None = None
) -> Preview:
    """Paint what is learned so far into a folder; the adapters are in the model already.

    A judge's prompts are painted if there is one, and else one prompt four times. RunError if the
    folder is a link.
    """
    must_be_regular(folder)
    if judge is None:
        images, found = _four(model, recipe), None
    else:
        images = judge.sitting.pictures(model, recipe.token, Portfolio())
        found = Findings.of(judge, images, judge.prompts)
    paper = BytesIO()
    sheet(images).save(paper, "PNG")
    path = folder / f"{number:07}.png"
    replace_bytes(path, [paper.getvalue()])
    return Preview(number, path, sum(_is_flat(image) for image in images), found)


def _four(model: Model, recipe: Recipe) -> "list[Image]":
    subject = recipe.subject
    begin = "a painting in the style of" if subject.kind == "style" else "a photo of a"
    prompt, clip_skip = f"{begin} {subject.token}", recipe.clip_skip
    request = Request(prompt=prompt, count=_COUNT, clip_skip=clip_skip, width=recipe.size)
    return [painted.image for painted in paint(model, request)]


def _is_flat(image: "Image") -> bool:
    """Whether a picture is of one colour."""
    channels = cast("Iterable[tuple[int, int]]", image.getextrema())
    return max(high - low for low, high in channels) < _FLAT
