"""The README's image, from a finished demo: five training images, then one row per method.

The rows are the base model without the token, textual inversion, and DreamBooth; each column is
one prompt.
"""

import argparse
from pathlib import Path

from PIL import Image

from pinxit.images.tensors import contact_sheet
from pinxit.models.open_base import open_base
from pinxit.progress import Progress
from pinxit.reports.demo import DemoSettings, evaluate_demo

SIDE = 128


def silent(_: Progress) -> None:
    """Report no progress."""


def main() -> None:
    """Show the subject of a demo, whose missing runs and images are made now, on one sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("build/demo"), help="the demo's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    args = parser.parse_args()
    settings = DemoSettings()
    group = evaluate_demo(open_base(settings.base), args.demo, silent, settings)["subject"]
    references, num_prompts = group.judge.training_images, len(group.judge.prompt_run.prompts)
    blank = Image.new("RGB", references[0].size, "white")
    shown = [*references, *[blank] * (num_prompts - len(references))]
    for images in (group.judge.base_images, *(result.images for result in group.results)):
        shown += images[:: settings.num_images]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet([image.resize((SIDE, SIDE)) for image in shown], num_prompts)
    sheet.save(args.out)


if __name__ == "__main__":
    main()
