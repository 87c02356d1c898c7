"""The README's picture, from a finished demo: five pictures of a subject, then a row for each way.

The rows are the base without the word, textual inversion, DreamBooth; a column is one prompt.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.images.tensors import sheet
from pinxit.models.model import open_base
from pinxit.pocket.eyes import Eyes
from pinxit.reports.demo.chapters import Effort, subject_chapter
from pinxit.reports.demo.trial import Easel

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 128


def silent(task: str, done: int, total: int, note: str = "") -> None:
    """Say nothing."""


def main() -> None:
    """Paint the demo's subject again from what it learned, and lay the pictures out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("build/demo"), help="the demo's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    given = parser.parse_args()
    effort = Effort()
    easel = Easel(open_base(effort.base), silent)
    chapter = subject_chapter(easel, effort, given.demo / "runs", Eyes.load())
    shown: list[Image] = [*chapter.references]
    blank = chapter.references[0].copy()
    blank.paste((255, 255, 255), (0, 0, *blank.size))
    shown += [blank] * (len(chapter.prompts) - len(shown))
    for column in chapter.columns:
        shown += [painting.image for painting in column.paintings][:: easel.count]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet([image.resize((SIDE, SIDE)) for image in shown], len(chapter.prompts)).save(given.out)


if __name__ == "__main__":
    main()
