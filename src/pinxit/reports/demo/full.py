"""Sections of the full demo only: style transfer, and all concepts in one plot."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from pinxit.reports.comparison_page import tradeoff_plot
from pinxit.reports.demo.chapters import Column, Section
from pinxit.reports.demo.transfers import transfer_styles
from pinxit.reports.demo.trial import DemoRunner
from pinxit.reports.entrant import Entrant
from pinxit.reports.figures import EvaluationSettings, Evaluator
from pinxit.reports.html import PageImage, image_grid

# Objects and places that are not together in a training image of the style.
_PROMPTS = (
    "a picture of a dog on the beach",
    "a picture of a house in the forest",
    "a picture of a robot in the city",
    "a picture of a mug in a room",
)
_TRANSFER = (
    "Each row begins with an image generated from text. The others have the same seed and a token "
    "for the style in the prompt; attention maps of the first image keep the composition."
)
_TRADEOFF = (
    "Every concept as a point: higher is more similar to its training images, further right "
    "follows prompts better; each curve joins points with the same combined score. Prompts and "
    "metrics are those of <code>pinxit evaluate</code>."
)


def extra_sections(runner: DemoRunner, sections: Sequence[Section], folder: Path) -> str:
    """Both sections as HTML; images generated for the plot are kept in `folder`."""
    trained = {
        section.name: [column for column in section.columns if column.trained]
        for section in sections
    }
    columns = trained["style"]
    styles = [column.trained for column in columns if column.trained]
    transfers = transfer_styles(runner, _PROMPTS, styles, "transferring images to the style")
    heads = [("from text", ""), *((escape(column.name), column.caption) for column in columns)]
    rows = ((prompt, [[PageImage(i, prompt)] for i in images]) for prompt, images in transfers.rows)
    evaluator = Evaluator(
        runner.model, EvaluationSettings(num_images=1, steps=runner.steps), folder, runner.progress
    )
    groups = [
        evaluator.evaluate_subject([_entrant(column) for column in columns])
        for columns in trained.values()
    ]
    return (
        f"<section><h2>Style transfer</h2><p>{_TRANSFER}</p>"
        f"{image_grid(heads, rows)}</section>"
        f"<section><h2>Likeness and prompt fidelity</h2><p>{_TRADEOFF}</p>"
        f"{tradeoff_plot(groups)}</section>"
    )


def _entrant(column: Column) -> Entrant:
    assert column.trained
    return Entrant.from_path(column.trained.run.folder, {}).with_title(
        f"{column.caption}, {column.name}"
    )
