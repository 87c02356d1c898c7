"""The README's image, from a finished demo: the subject on the left, the style on the right.

The first row has the training images; the others are the base model without the token, textual
inversion and LoRA. Each column is one prompt, and no image was selected.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.progress import Progress
from pinxit.reports.demo import DemoSettings, evaluate_demo
from pinxit.reports.figures import SubjectResults

SIDE = 128
_LABELS = ("training\nimages", "before\ntraining", "textual\ninversion", "LoRA")
_LABEL_WIDTH = 110
_HEAD = 40
_GAP = 30
_FONT_SIZE = 22
_GREY = "#777777"  # can be read on a white and on a black page


def silent(_: Progress) -> None:
    """Report no progress."""


def rows(group: SubjectResults, num_images: int) -> Iterator[Sequence[Image.Image]]:
    """The training images, then the first image of each prompt by each model."""
    columns = len(group.judge.prompt_run.prompts)
    blank = Image.new("RGB", (SIDE, SIDE), "white")
    references = group.judge.training_images
    yield [*references, *[blank] * (columns - len(references))]
    for images in (group.judge.base_images, *(result.images for result in group.results)):
        yield images[::num_images]


def main() -> None:
    """Draw a demo, whose missing runs and images are made now, on one sheet with labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("build/demo"), help="the demo's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    args = parser.parse_args()
    settings = DemoSettings()
    groups = evaluate_demo(open_base(settings.base), args.demo, silent, settings)
    sheets: list[Image.Image] = []
    for group in groups.values():
        images = [list(row) for row in rows(group, settings.num_images)]
        shown = [image.resize((SIDE, SIDE)) for row in images for image in row]
        sheets.append(contact_sheet(shown, len(images[0])))
    width = _LABEL_WIDTH + _GAP + sum(sheet.width for sheet in sheets)
    canvas = Image.new("RGB", (width, _HEAD + sheets[0].height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    for number, label in enumerate(_LABELS):
        middle = _HEAD + sheets[0].height * (number + 0.5) / len(_LABELS)
        draw.text((_LABEL_WIDTH / 2, middle), label, _GREY, font, "mm", align="center")
    left = _LABEL_WIDTH
    for name, sheet in zip(("a subject", "a style"), sheets, strict=True):
        draw.text((left + sheet.width / 2, _HEAD / 2), name, _GREY, font, "mm")
        canvas.paste(sheet, (left, _HEAD))
        left += sheet.width + _GAP
    args.out.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(256, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
