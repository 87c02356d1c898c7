"""Previews: images generated with the concept trained so far, on one sheet, and their scores."""

import textwrap
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import ImageDraw, ImageFont
from PIL.Image import Image, Resampling
from PIL.Image import new as new_image

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
_LABEL_WIDTH, _LABEL_LINES = 192, 3
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
    sheet = list(images)
    if recipe.preview_prompts:
        prompts = [prompt.with_token(recipe.token) for prompt in judge.prompts] if judge else []
        prompts = prompts or [_default_prompt(recipe)] * len(sheet)
        own = [prompt.replace("{}", recipe.token) for prompt in recipe.preview_prompts]
        sheet += [_generate(model, recipe, prompt, 1)[0] for prompt in own]
        labels = [f"step {step}: {prompt}" for prompt in (*prompts, *own)]
        sheet = [_labelled(*tile) for tile in zip(sheet, labels, strict=True)]
    png = BytesIO()
    contact_sheet(sheet).save(png, "PNG")
    path = folder / f"{step:07}.png"
    write_bytes(path, [png.getvalue()])
    return Preview(step, path, sum(_is_flat(image) for image in images)), findings


def _default_images(model: Model, recipe: Recipe) -> list[Image]:
    """Images of one prompt with the placeholder token."""
    return _generate(model, recipe, _default_prompt(recipe), _COUNT)


def _default_prompt(recipe: Recipe) -> str:
    start = "a painting in the style of" if recipe.kind == "style" else "a photo of a"
    return f"{start} {recipe.token}"


def _generate(model: Model, recipe: Recipe, prompt: str, count: int) -> list[Image]:
    request = GenerationRequest(
        prompt=prompt, num_images=count, clip_skip=recipe.clip_skip, width=recipe.resolution
    )
    return [generated.image for generated in generate_images(model, request)]


def _labelled(image: Image, text: str) -> Image:
    """The image, at least 192 pixels wide, with a text below it."""
    scale = -(-_LABEL_WIDTH // image.width)
    image = image.resize((image.width * scale, image.height * scale), Resampling.NEAREST)
    font = ImageFont.load_default(11)
    lines = textwrap.wrap(text, image.width // 6)[:_LABEL_LINES]
    tile = new_image("RGB", (image.width, image.height + 14 * _LABEL_LINES + 4), "white")
    tile.paste(image)
    ImageDraw.Draw(tile).text((3, image.height + 2), "\n".join(lines), "black", font)
    return tile


def _is_flat(image: Image) -> bool:
    """Whether an image has only one colour."""
    channels = cast("Iterable[tuple[int, int]]", image.getextrema())
    return max(high - low for low, high in channels) < _FLAT
