"""Previews: images generated with the concept trained so far, on one sheet, and their scores."""

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import ImageDraw, ImageFont
from PIL.Image import Image, Resampling
from PIL.Image import new as new_image

from pinxit.evaluation.findings import Findings
from pinxit.evaluation.judge import Judge
from pinxit.files.atomic_write import check_regular, in_the_way, write_bytes
from pinxit.generation.finite import NotFiniteError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import batch_requests, generate_images
from pinxit.images.marks import has_sheet_mark, sheet_mark
from pinxit.images.tensors import contact_sheet
from pinxit.models.model import Model
from pinxit.models.ranks import ALONE, Ranks
from pinxit.runs.events import Preview
from pinxit.runs.judging import prompt_requests
from pinxit.training.recipe import Recipe

_COUNT = 4
_MARK = "preview"
_LABEL_WIDTH, _LABEL_LINES = 192, 3
# An image is flat if the values of each channel (0 to 255) lie within this range.
_FLAT = 4


def save_preview(
    model: Model,
    recipe: Recipe,
    step: int,
    folder: Path,
    judge: Judge | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Preview, Findings | None]:
    """Generate previews with the concept trained so far and save them as one PNG in `folder`.

    The adapters must be applied to the model. With a judge its prompts are used, and its findings
    are returned too; otherwise one prompt with four seeds. Other processes call `preview_images`.
    RunError if the folder is a link, or another image has the preview's name.
    """
    check_regular(folder)
    path = folder / f"{step:07}.png"
    check_previews([path])
    own = [prompt.replace("{}", recipe.token) for prompt in recipe.preview_prompts]
    requests = [_request(recipe, _default_prompt(recipe), _COUNT)]
    if judge:
        requests = prompt_requests(judge.prompt_run, model, recipe.token)
    requests += [_request(recipe, prompt, 1) for prompt in own]
    sheet = preview_images(model, requests, ranks)
    images = tuple(sheet[: len(sheet) - len(own)])
    findings = Findings.of(judge, images, judge.prompts) if judge else None
    if own:
        prompts = [prompt.with_token(recipe.token) for prompt in judge.prompts] if judge else []
        prompts = prompts or [_default_prompt(recipe)] * len(images)
        labels = [f"step {step}: {prompt}" for prompt in (*prompts, *own)]
        sheet = [_labelled(*tile) for tile in zip(sheet, labels, strict=True)]
    png = BytesIO()
    contact_sheet(sheet).save(png, "PNG", pnginfo=sheet_mark(_MARK))
    write_bytes(path, [png.getvalue()])
    return Preview(step, path, sum(_is_flat(image) for image in images)), findings


def check_previews(paths: Iterable[Path]) -> None:
    """Raise RunError if one of the paths is a file that is no preview with pinxit's mark."""
    for path in paths:
        check_regular(path)
        if path.exists() and not has_sheet_mark(path, _MARK):
            raise in_the_way(path)


def preview_images(
    model: Model, requests: Sequence[GenerationRequest], ranks: Ranks
) -> list[Image]:
    """The images of requests; of several processes, each generates some batches of those of rank 0.

    If they divide the weights, each generates all batches.

    NotFiniteError in every process if it is raised in one.
    """
    requests = ranks.exchange(requests)[0]
    batches = [batch for request in requests for batch in batch_requests(model, request)]
    numbers = range(len(batches))
    images: dict[int, list[Image]] = {}
    failure: NotFiniteError | None = None
    for number in numbers if ranks.shard_weights else ranks.share(numbers):
        with ranks.in_step(None) if ranks.shard_weights else nullcontext():
            try:
                images[number] = [one.image for one in generate_images(model, batches[number])]
            except NotFiniteError as error:
                failure = error
                break
    parts = ranks.exchange(({} if ranks.shard_weights and ranks.rank else images, failure))
    for failure in filter(None, (failure for _, failure in parts)):
        raise failure
    images = {number: batch for part, _ in parts for number, batch in part.items()}
    return [image for number in range(len(batches)) for image in images[number]]


def _default_prompt(recipe: Recipe) -> str:
    start = "a painting in the style of" if recipe.kind == "style" else "a photo of a"
    return f"{start} {recipe.token}"


def _request(recipe: Recipe, prompt: str, count: int) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt, num_images=count, clip_skip=recipe.clip_skip, width=recipe.resolution
    )


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
