"""The demo's report: one page with everything in it, for a screen of any size."""

import os
import platform
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from string import Template
from typing import TYPE_CHECKING

from pinxit.demo.chapters import Chapter, Column
from pinxit.demo.scores import ASKED
from pinxit.demo.trial import said
from pinxit.metric import Score

if TYPE_CHECKING:
    from PIL.Image import Image

_ABOUT = {
    "subject": (
        "A subject",
        "This {meaning} was in none of the pictures that the base was trained on, and its colours "
        "have no name there. The word <code>{token}</code> was taught twice: by a method that "
        "learns nothing but the word, and by one that tunes the whole network. The places in the "
        "first three rows, and the styles in the last three, are in none of its five pictures.",
    ),
    "style": (
        "A style",
        "A way of drawing that the base never saw. <code>{token}</code> was taught by pictures of "
        "five things, whose captions say what they show: as a word alone, and as small weights "
        "beside the network's. Below are other things, as the base paints them when no style is "
        "named, and in the style of the word.",
    ),
}
# What each scale is called, with the names of its ends.
_SCALES = {
    "likeness": ("Likeness", "by pocket's instance embedding", "a look-alike", "the subject"),
    "hidden": (
        "Colours, proportions, emblem",
        "by what pocket's eyes read",
        "look-alike",
        "subject",
    ),
    "gram": ("The style's manner", "by distance of Gram matrices", "a photo", "the style"),
    "colour": ("The style's colours", "by distance of colour histograms", "a photo", "the style"),
}
_LEDE = (
    "A subject and a style, both held out of the base's training. The pictures below were painted "
    "from seeds that were not chosen, by <code>pinxit demo</code>, in {minutes}."
)
_METHOD = (
    "Scores come from pocket's eyes, small networks trained on the world that pocket paints, and "
    "from its renderer, which knows the truth. On a scale, 0% is what real pictures of a "
    "look-alike of the same class (or photos, for a style) reach, and 100% what more real pictures "
    "of the same thing reach. “As asked” is the share of pictures in which the class, the place, "
    "the style, and all three of them, are seen as the prompt has them."
)
_TITLES = {"base": "the base", "dreambooth": "DreamBooth", "lora": "LoRA"}
_EDGE = 12.5  # of the track's width, in percent: where floor and ceiling are
_SMOOTH = 0.95


def page(chapters: Sequence[Chapter], seconds: float) -> str:
    """The whole report as HTML, pictures included."""
    template = Template((files("pinxit.demo") / "report.html").read_text(encoding="utf-8"))
    where = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
    return template.substitute(
        lede=_LEDE.format(minutes=_time(seconds)),
        where=f"{where}torch {version('torch')}, pinxit {version('pinxit')}",
        chapters="\n".join(map(_chapter, chapters)),
        times="\n".join(
            _times(chapter, column) for chapter in chapters for column in chapter.columns
        ),
        method=_METHOD,
    )


def _chapter(chapter: Chapter) -> str:
    title, about = _ABOUT[chapter.name]
    told = about.format(meaning=escape(chapter.meaning), token=escape(chapter.token))
    strip = "".join(
        _picture(image, "a picture it was learned from") for image in chapter.references
    )
    scales = "".join(_scale(name, chapter.columns) for name in chapter.columns[0].scores.likeness)
    losses = "".join(_losses(at, column) for at, column in enumerate(chapter.columns))
    return f"""<section>
<h2>{title}: <code>{escape(chapter.token)}</code></h2>
<p>{told}</p>
<h3>What it was learned from</h3>
<div class="strip">{strip}</div>
<h3>What is painted</h3>
{_grid(chapter)}
<h3>How like it is</h3>
<div class="plots">{scales}</div>
<h3>How much is as asked</h3>
{_right(chapter.columns)}
<h3>Loss while learning</h3>
<div class="plots">{losses}</div>
</section>"""


def _grid(chapter: Chapter) -> str:
    """A row for each prompt, a column for each way of painting it."""
    count = f'style="--n: {len(chapter.columns)}"'
    heads = "".join(
        f'<div><b class="k{at}">{_name(column)}</b> <span>{escape(column.said)}</span></div>'
        for at, column in enumerate(chapter.columns)
    )
    rows: list[str] = []
    for prompt in chapter.prompts:
        said = escape(prompt.template.format(chapter.token))
        cells = "".join(
            f'<div class="pair">{"".join(_painted(column, prompt.template))}</div>'
            for column in chapter.columns
        )
        rows.append(f'<div class="row" {count}><p>{said}</p>{cells}</div>')
    return f'<div><div class="heads" {count}>{heads}</div>{"".join(rows)}</div>'


def _painted(column: Column, template: str) -> Iterable[str]:
    for painting in column.paintings:
        if painting.prompt.template == template:
            about = f"{said(painting.prompt, column.lesson)}, seed {painting.seed}, {column.title}"
            yield _picture(painting.image, about)


def _scale(name: str, columns: Sequence[Column]) -> str:
    """Each column's place between floor and ceiling."""
    title, how, floor, ceiling = _SCALES[name]
    rows = "".join(
        _place(at, column, column.scores.likeness[name]) for at, column in enumerate(columns)
    )
    return f"""<div class="card"><h4>{title}</h4><span class="faint">{how}</span>
<div class="scale">{rows}<div class="ends"><span>{floor}</span><span>{ceiling}</span></div></div>
</div>"""


def _place(at: int, column: Column, score: Score) -> str:
    left = _EDGE + min(max(score.share, -0.15), 1.15) * (100 - 2 * _EDGE)
    return (
        f'<span class="k{at}">{_name(column)}</span>'
        f'<div class="track k{at}"><i style="left: {left:.1f}%"></i></div>'
        f'<span class="num">{score.share:.0%}</span>'
    )


def _right(columns: Sequence[Column]) -> str:
    """The shares of pictures with each thing as asked."""
    heads = "".join(f"<th>{name}</th>" for name in (*ASKED, "all"))
    rows = "".join(
        f'<tr><td class="k{at}">{_name(column)}</td>'
        + "".join(f"<td>{column.scores.right[name]:.0%}</td>" for name in (*ASKED, "all"))
        + f"<td>{column.scores.pictures}</td></tr>"
        for at, column in enumerate(columns)
    )
    return f'<div class="wide"><table><tr><th></th>{heads}<th>of</th></tr>{rows}</table></div>'


def _losses(at: int, column: Column) -> str:
    """The loss of each step, and smoothed; nothing for what was not learned."""
    if column.lesson is None or not column.lesson.losses:
        return ""
    losses = column.lesson.losses
    smooth = list(_smoothed(losses))
    top = max(smooth) * 1.3
    lines = "".join(
        f'<polyline class="{kind}" points="{_points(values, top)}"/>'
        for kind, values in (("raw", losses), ("smooth", smooth))
    )
    return f"""<div class="card k{at}"><h4>{_name(column)}</h4>
<span class="faint">{losses[0]:.3f} at first, {smooth[-1]:.3f} smoothed at the end</span>
<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="loss">{lines}</svg>
<div class="axis"><span>step 1</span><span>{len(losses)}</span></div></div>"""


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


def _times(chapter: Chapter, column: Column) -> str:
    lesson = column.lesson
    learned = f"<td>{len(lesson.losses)}</td><td>{_time(lesson.seconds)}</td>" if lesson else None
    return (
        f"<tr><td>{chapter.name}, {_name(column)}</td>{learned or '<td>–</td><td>–</td>'}"
        f"<td>{column.seconds:.2f} s</td></tr>"
    )


def _name(column: Column) -> str:
    return _TITLES.get(column.title) or escape(column.title.replace("-", " "))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest}\u00a0s" if minutes else f"{rest}\u00a0s"


def _picture(image: "Image", about: str) -> str:
    """A picture inside the page."""
    held = BytesIO()
    image.save(held, "PNG", optimize=True)
    data = b64encode(held.getvalue()).decode("ascii")
    return f'<img alt="{escape(about)}" title="{escape(about)}" src="data:image/png;base64,{data}">'
