"""The README's image, from a finished demo: five training images, then one row per method.

The rows are the base model without the token, textual inversion, and DreamBooth; each column is
one prompt.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.pocket.eyes import Eyes
from pinxit.progress import Progress
from pinxit.reports.demo.chapters import DemoSettings, subject_section
from pinxit.reports.demo.trial import DemoRunner

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128


def silent(_: Progress) -> None:
    """Report no progress."""


def main() -> None:
    """Generate the demo's subject from its trained concepts, and save all images on one sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("build/demo"), help="the demo's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    args = parser.parse_args()
    settings = DemoSettings()
    runner = DemoRunner(open_base(settings.base), silent)
    section = subject_section(runner, settings, args.demo / "runs", Eyes.load())
    shown: list[Image] = [*section.references]
    blank = section.references[0].copy()
    blank.paste((255, 255, 255), (0, 0, *blank.size))
    shown += [blank] * (len(section.prompts) - len(shown))
    for column in section.columns:
        shown += [image.image for image in column.images][:: runner.num_images]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([image.resize((SIDE, SIDE)) for image in shown], len(section.prompts)).save(
        args.out
    )


if __name__ == "__main__":
    main()
