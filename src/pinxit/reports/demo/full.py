"""What the full demo has beside: pictures carried into the style, and words on one plot."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pinxit.reports.comparison_page import front
from pinxit.reports.demo.chapters import Chapter, Column
from pinxit.reports.demo.transfers import transfers
from pinxit.reports.demo.trial import Easel
from pinxit.reports.entrant import Contender
from pinxit.reports.figures import Effort, Table
from pinxit.reports.html import Shown, grid

# Things and places of which the style's pictures show none together.
_PROMPTS = (
    "a picture of a dog on the beach",
    "a picture of a house in the forest",
    "a picture of a robot in the city",
    "a picture of a mug in a room",
)
_TRANSFER = (
    "Each row is one picture painted from text, and then the same seed again with a word for the "
    "style in the prompt, held in place by what the first picture's layers attended to."
)
_FRONT = (
    "Every learned word as a point: up is more like its pictures, right is more as prompts say; "
    "the curves join points that are equally good at both. Painted by the prompts and judged as "
    "<code>pinxit evaluate</code> does."
)


def sections(easel: Easel, chapters: Sequence[Chapter], folder: Path) -> str:
    """Both as HTML; pictures painted for the plot are kept in the folder."""
    learned = {
        chapter.name: [column for column in chapter.columns if column.lesson]
        for chapter in chapters
    }
    styles = learned["style"]
    lessons = [column.lesson for column in styles if column.lesson]
    held = transfers(easel, _PROMPTS, lessons, "transferring pictures into the style")
    heads = [("from text", ""), *((escape(column.name), column.said) for column in styles)]
    wide = len(heads)
    rows = (
        (prompt, [[Shown(image, prompt)] for image in held.images[wide * n : wide * n + wide]])
        for n, prompt in enumerate(held.prompts)
    )
    table = Table(easel.model, Effort(count=1, steps=easel.steps), folder, easel.told)
    groups = [table.group([_contender(column) for column in some]) for some in learned.values()]
    return (
        f"<section><h2>Carried into the style</h2><p>{_TRANSFER}</p>"
        f"{grid(heads, rows)}</section>"
        f"<section><h2>Likeness and obedience</h2><p>{_FRONT}</p>{front(groups)}</section>"
    )


def _contender(column: Column) -> Contender:
    assert column.lesson
    return Contender.of(column.lesson.run.folder, {}).called(f"{column.said}, {column.name}")
