"""Previews: images generated with the concept trained so far, on one sheet, and their scores."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL.Image import Image

from pinxit.evaluation.findings import Findings
from pinxit.evaluation.judge import Judge
from pinxit.files.atomic_write import check_regular, write_bytes
from pinxit.generation.image_cache import ImageCache
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.images.tensors import contact_sheet
from pinxit.models.model import Model
from pinxit.runs.events import Preview
from pinxit.training.recipe import Recipe

_COUNT = 4
# An image is flat if the values of each channel (0 to 255) lie within this range.
_FLAT = 4


def save_preview(
    model: Model, recipe: Recipe, step: int, folder: Path, judge: Judge | None = None
) -> tuple[Preview, Findings | None]:
    """Generate previews with the concept trained so far and save them as one PNG in `folder`.

    The adapters must be applied to the model. With a judge its prompts are used, and its findings
    are returned too; otherwise one prompt with four seeds. RunError if the folder is a link.
    """
    check_regular(folder)
    if judge is None:
        images, findings = _default_images(model, recipe), None
    else:
        images = judge.prompt_run.generate(model, recipe.token, ImageCache())
        findings = Findings.of(judge, images, judge.prompts)
    png = BytesIO()
    contact_sheet(images).save(png, "PNG")
    path = folder / f"{step:07}.png"
    write_bytes(path, [png.getvalue()])
    return Preview(step, path, sum(_is_flat(image) for image in images)), findings


def _default_images(model: Model, recipe: Recipe) -> list[Image]:
    """Images of one prompt with the placeholder token."""
    subject = recipe.subject
    start = "a painting in the style of" if subject.kind == "style" else "a photo of a"
    prompt, clip_skip = f"{start} {subject.token}", recipe.clip_skip
    request = GenerationRequest(
        prompt=prompt, num_images=_COUNT, clip_skip=clip_skip, width=recipe.resolution
    )
    return [generated.image for generated in generate_images(model, request)]


def _is_flat(image: Image) -> bool:
    """Whether an image has only one colour."""
    channels = cast("Iterable[tuple[int, int]]", image.getextrema())
    return max(high - low for low, high in channels) < _FLAT
