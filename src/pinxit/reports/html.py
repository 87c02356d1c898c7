"""A page that can be sent: one HTML file with its pictures, curves and tables in it."""

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

COLOURS = 6  # that rows and columns can have; the first is the base's
_SMOOTH = 0.95


@dataclass(frozen=True)
class Shown:
    """A picture on a page, and what is said of it to those who cannot see it."""

    image: "Image"
    about: str


def fill(title: str, heading: str, lede: str, body: str) -> str:
    """The whole page; `title` says what it is, all but `heading` may hold HTML."""
    where = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
    template = Template((files("pinxit") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"pinxit: {title}",
        kicker=f"pinxit, {title}",
        heading=escape(heading),
        lede=lede,
        where=f"{where}torch {version('torch')}, pinxit {version('pinxit')}",
        body=body,
    )


def strip(images: "Iterable[Image]") -> str:
    """The pictures that something was learned from."""
    shown = "".join(picture(image, "a picture it was learned from") for image in images)
    return f'<div class="strip">{shown}</div>'


def grid(
    heads: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[Sequence[Shown]]]]
) -> str:
    """A row for each prompt, a column for each way of painting it: its name and what was said."""
    count = f'style="--n: {len(heads)}"'
    top = "".join(
        f'<div><b class="{colour(at)}">{name}</b> <span>{escape(said)}</span></div>'
        for at, (name, said) in enumerate(heads)
    )
    told = "".join(
        f'<div class="row" {count}><p>{escape(said)}</p>{_cells(row)}</div>' for said, row in rows
    )
    return f'<div><div class="heads" {count}>{top}</div>{told}</div>'


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as they are, which may be HTML; the first of a row is its name."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    told = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{told}</table></div>'


def curve(name: str, losses: Sequence[float], at: int) -> str:
    """The loss of each step, and smoothed; nothing for what was not learned."""
    if not losses:
        return ""
    smooth = list(_smoothed(losses))
    top = max(smooth) * 1.3
    lines = "".join(
        f'<polyline class="{kind}" points="{_points(values, top)}"/>'
        for kind, values in (("raw", losses), ("smooth", smooth))
    )
    return f"""<div class="card {colour(at)}"><h4>{name}</h4>
<span class="faint">{losses[0]:.3f} at first, {smooth[-1]:.3f} smoothed at the end</span>
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="loss">{lines}</svg>
<div class="axis"><span>step 1</span><span>{len(losses)}</span></div></div>"""


def picture(image: "Image", about: str) -> str:
    """A picture inside the page."""
    held = BytesIO()
    image.save(held, "PNG", optimize=True)
    data = b64encode(held.getvalue()).decode("ascii")
    return f'<img alt="{escape(about)}" title="{escape(about)}" src="data:image/png;base64,{data}">'


def duration(seconds: float) -> str:
    """A time in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest}\u00a0s" if minutes else f"{rest}\u00a0s"


def colour(at: int) -> str:
    """The class of a column's colour: the base's is the first and is no other's."""
    return f"k{1 + (at - 1) % (COLOURS - 1) if at else 0}"


def _cells(columns: Sequence[Sequence[Shown]]) -> str:
    shown = ("".join(picture(one.image, one.about) for one in cell) for cell in columns)
    return "".join(f'<div class="pair">{cell}</div>' for cell in shown)


def _smoothed(losses: Sequence[float]) -> Iterable[float]:
    """A running mean that weighs the last steps most, the first ones without a bias."""
    kept, weight = 0.0, 0.0
    for loss in losses:
        kept = _SMOOTH * kept + (1 - _SMOOTH) * loss
        weight = _SMOOTH * weight + (1 - _SMOOTH)
        yield kept / weight


def _points(values: Sequence[float], top: float) -> str:
    last = max(len(values) - 1, 1)
    return " ".join(
        f"{100 * at / last:.2f},{100 - 100 * min(value / top, 1):.2f}"
        for at, value in enumerate(values)
    )
