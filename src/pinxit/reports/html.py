"""HTML pages in one file, with images, loss curves and tables inside."""

import os
import platform
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_COLORS = 6  # of rows and columns; the first is the base model's
_SMOOTH = 0.95


@dataclass(frozen=True)
class PageImage:
    """An image on a page, with its alternative text."""

    image: "Image"
    alt: str


def render_page(title: str, heading: str, lede: str, body: str) -> str:
    """A whole page. `heading` is plain text, the other arguments may contain HTML."""
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
    template = Template((files("pinxit.reports") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"pinxit: {title}",
        kicker=f"pinxit, {title}",
        heading=escape(heading),
        lede=lede,
        where=f"{machine}torch {version('torch')}, pinxit {version('pinxit')}",
        body=body,
    )


def image_strip(images: "Iterable[Image]") -> str:
    """A row of training images."""
    tags = "".join(image_tag(image, "training image") for image in images)
    return f'<div class="strip">{tags}</div>'


def image_grid(
    heads: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[Sequence[PageImage]]]]
) -> str:
    """A table of images: a row for each prompt, a column for each concept or model.

    `heads` has title and subtitle of each column, `rows` has a title and the images of each cell.
    """
    count = f'style="--n: {len(heads)}"'
    top = "".join(
        f'<div><b class="{color_class(at)}">{name}</b> <span>{escape(subtitle)}</span></div>'
        for at, (name, subtitle) in enumerate(heads)
    )
    body = "".join(
        f'<div class="row" {count}><p>{escape(title)}</p>{_grid_cells(row)}</div>'
        for title, row in rows
    )
    return f'<div><div class="heads" {count}>{top}</div>{body}</div>'


def html_table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may contain HTML, the first cell of a row is its name."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def loss_curve(name: str, losses: Sequence[float], at: int) -> str:
    """A plot of the loss of each step, raw and smoothed; empty without losses."""
    if not losses:
        return ""
    smooth = list(_smoothed(losses))
    top = max(smooth) * 1.3
    lines = "".join(
        f'<polyline class="{kind}" points="{_points(values, top)}"/>'
        for kind, values in (("raw", losses), ("smooth", smooth))
    )
    return f"""<div class="card {color_class(at)}"><h4>{name}</h4>
<span class="faint">{losses[0]:.3f} at step 1, {smooth[-1]:.3f} smoothed at the end</span>
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="loss">{lines}</svg>
<div class="axis"><span>step 1</span><span>{len(losses)}</span></div></div>"""


def image_tag(image: "Image", alt: str) -> str:
    """An `<img>` with the image's data in it."""
    png = BytesIO()
    image.save(png, "PNG", optimize=True)
    data = b64encode(png.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" title="{escape(alt)}" src="data:image/png;base64,{data}">'


def format_duration(seconds: float) -> str:
    """A duration in minutes and seconds."""
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {remainder}\u00a0s" if minutes else f"{remainder}\u00a0s"


def color_class(column: int) -> str:
    """The CSS class of a column's colour; only column 0, the base model, has the first colour."""
    return f"k{1 + (column - 1) % (NUM_COLORS - 1) if column else 0}"


def _grid_cells(columns: Sequence[Sequence[PageImage]]) -> str:
    cells = ("".join(image_tag(image.image, image.alt) for image in cell) for cell in columns)
    return "".join(f'<div class="pair">{cell}</div>' for cell in cells)


def _smoothed(losses: Sequence[float]) -> Iterable[float]:
    """The exponential moving average, with bias correction for the first steps."""
    average, weight = 0.0, 0.0
    for loss in losses:
        average = _SMOOTH * average + (1 - _SMOOTH) * loss
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        yield average / weight


def _points(values: Sequence[float], top: float) -> str:
    last = max(len(values) - 1, 1)
    return " ".join(
        f"{100 * at / last:.2f},{100 - 100 * min(value / top, 1):.2f}"
        for at, value in enumerate(values)
    )
