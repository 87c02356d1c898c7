"""The demo's report: one page with everything in it, for a screen of any size."""

from collections.abc import Iterator, Sequence
from html import escape

from pinxit.evaluation.metric import Score
from pinxit.reports.demo.chapters import Chapter, Column
from pinxit.reports.demo.scores import ASKED
from pinxit.reports.demo.trial import said
from pinxit.reports.html import Shown, curve, duration, fill, grid, strip, table

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
_EDGE = 12.5  # of the track's width, in percent: where floor and ceiling are


def page(chapters: Sequence[Chapter], seconds: float, more: str = "") -> str:
    """The whole report as HTML, pictures included, with `more` sections before the times."""
    head = ("what", "steps", "learning", "one picture")
    times = table(
        head, (_times(chapter, column) for chapter in chapters for column in chapter.columns)
    )
    body = "\n".join(map(_chapter, chapters))
    return fill(
        "the demonstration",
        "Two words the model did not know, learned from five pictures each",
        _LEDE.format(minutes=duration(seconds)),
        f"{body}{more}<section><h2>Time</h2>{times}<h3>How the scores are made</h3>"
        f"<p>{_METHOD}</p></section>",
    )


def _chapter(chapter: Chapter) -> str:
    title, about = _ABOUT[chapter.name]
    told = about.format(meaning=escape(chapter.meaning), token=escape(chapter.token))
    scales = "".join(_scale(name, chapter.columns) for name in chapter.columns[0].scores.likeness)
    losses = "".join(
        curve(escape(column.name), column.lesson.losses if column.lesson else (), at)
        for at, column in enumerate(chapter.columns)
    )
    return f"""<section>
<h2>{title}: <code>{escape(chapter.token)}</code></h2>
<p>{told}</p>
<h3>What it was learned from</h3>
{strip(chapter.references)}
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
    rows = (
        (
            prompt.saying(chapter.token),
            [[*_painted(column, prompt.template)] for column in chapter.columns],
        )
        for prompt in chapter.prompts
    )
    return grid([(escape(column.name), column.said) for column in chapter.columns], rows)


def _painted(column: Column, template: str) -> Iterator[Shown]:
    for painting in column.paintings:
        if painting.prompt.template == template:
            told = f"{said(painting.prompt, column.lesson)}, seed {painting.seed}, {column.title}"
            yield Shown(painting.image, told)


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
        f'<span class="k{at}">{escape(column.name)}</span>'
        f'<div class="track k{at}"><i style="left: {left:.1f}%"></i></div>'
        f'<span class="num">{score.share:.0%}</span>'
    )


def _right(columns: Sequence[Column]) -> str:
    """The shares of pictures with each thing as asked."""
    rows = (
        (
            f'<span class="k{at}">{escape(column.name)}</span>',
            *(f"{column.scores.right[name]:.0%}" for name in (*ASKED, "all")),
            str(column.scores.pictures),
        )
        for at, column in enumerate(columns)
    )
    return table(("", *ASKED, "all", "of"), rows)


def _times(chapter: Chapter, column: Column) -> Sequence[str]:
    lesson = column.lesson
    learned = (str(len(lesson.losses)), duration(lesson.seconds)) if lesson else ("–", "–")
    return (f"{chapter.name}, {escape(column.name)}", *learned, f"{column.seconds:.2f} s")
