"""The report of an evaluation: who is like the pictures and obeys prompts, and what they paint."""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from pinxit.evaluation.confidence import Interval, bootstrap
from pinxit.evaluation.findings import sentences
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.reports.figures import Entry, Figures, Group
from pinxit.reports.html import Shown, colour, curve, fill, grid, strip, table

# What figures are called, in the order of the tables; a metric's own come after.
_SHARES = {
    "likeness": "likeness",
    "prompt": "prompts met",
    "best": "both",
    "variety": "variety",
    "copies": "copies",
    "background": "learned background",
    "drift": "class drift",
}
_METHOD = (
    "<b>Likeness</b> is a share of the way from the floor (0%: what the base paints without the "
    "word, or pictures of others of the class where there are some) to the ceiling (100%: the "
    "real pictures, each against the others). <b>Prompts met</b> is {prompts}. <b>Both</b> is the "
    "geometric mean. <b>Variety</b> is how far apart pictures of one prompt are, by {apart}. "
    "<b>Copies</b> are pictures that nearly are one of those learned from; <b>learned "
    "background</b>, {leak}. <b>Class drift</b> is "
    "how far the class noun alone has gone towards the subject. Raw figures are the metrics' own. "
    "Small figures are 95% intervals over prompts."
)
_LEDE = (
    "{runs} on the same prompts and the same seeds, none of them chosen. Up is more like the "
    "pictures, right is more as prompts say; the curves join points that are equally good at both."
)
_SIDE, _LEFT, _LOW, _HIGH = 100, 12, -0.1, 1.1
_MOST_SHOWN = 5  # columns of pictures


def page(groups: Sequence[Group]) -> str:
    """The whole report as HTML."""
    names = [entry.contender.title for group in groups for entry in group.entries]
    runs = f"{len(names)} learned word{'s' if len(names) > 1 else ''}"
    told = _summary(groups) if len(groups) > 1 else ""
    sections = "\n".join(_section(group) for group in groups)
    return fill(
        "an evaluation",
        "How like the pictures, and how much as prompts say",
        _LEDE.format(runs=runs),
        f"{front(groups)}{told}{sections}<section><h2>How figures are made</h2>"
        f"<p>{_explained(groups[0])}</p></section>",
    )


def front(groups: Sequence[Group]) -> str:
    """Every run as a point: fidelity over editability, with the base beside them."""
    marks: list[str] = []
    for at, group in enumerate(groups):
        base = group.anchors["the base without the word"]
        marks.append(_point("the base" if at == 0 else "", base, 0))
        marks += (
            _point(entry.contender.title, entry.figures, 1 + number)
            for number, entry in enumerate(group.entries)
        )
    curves = "".join(f'<path d="{_equal(best)}"/>' for best in (0.25, 0.5, 0.75))
    ends = "".join(
        f'<line x1="{_across(0):.1f}" x2="{_across(1):.1f}" y1="{_up(y):.1f}" y2="{_up(y):.1f}"/>'
        f'<text class="dim" text-anchor="end" x="{_LEFT - 1}" y="{_up(y) + 1:.1f}">{said}</text>'
        for y, said in ((0, "floor"), (1, "ceiling"))
    )
    ends += f'<text class="dim" x="0" y="{_up(0.5) + 1:.1f}">likeness</text>'
    axis = f'<text class="dim" x="{_across(1) + 7:.1f}" y="{_up(_LOW) + 5:.1f}">prompts met</text>'
    axis += "".join(
        f'<text class="dim" text-anchor="middle" x="{_across(x):.1f}" y="{_up(_LOW) + 5:.1f}">'
        f"{x:.0%}</text>"
        for x in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg class="front" viewBox="0 0 {_SIDE + _LEFT + 26} {_SIDE * 0.6 + 8:.0f}" role="img" '
        f'aria-label="likeness over prompts met">{curves}{ends}{axis}{"".join(marks)}</svg>'
    )


def _point(title: str, found: Figures, at: int) -> str:
    """A run's mean, with its intervals as whiskers."""
    likeness, prompt = found["likeness"], found["prompt"]
    x, y = _across(prompt.value), _up(likeness.value)
    return (
        f'<g class="{colour(at)}"><path class="whisker" d="M{_across(prompt.low):.1f} {y:.1f}'
        f'H{_across(prompt.high):.1f}M{x:.1f} {_up(likeness.low):.1f}V{_up(likeness.high):.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.2"/>'
        f'<text x="{x + 2:.1f}" y="{y - 1.6:.1f}">{escape(title)}</text></g>'
    )


def _across(prompt: float) -> float:
    return _LEFT + _SIDE * min(max(prompt, 0), _HIGH)


def _up(likeness: float) -> float:
    return _SIDE * 0.6 * (_HIGH - min(max(likeness, _LOW), _HIGH)) / (_HIGH - _LOW)


def _equal(best: float) -> str:
    """Where likeness and prompt have one geometric mean."""
    steps = [best**2 + (1 - best**2) * at / 24 for at in range(25)]
    return "M" + "L".join(f"{_across(x):.1f} {_up(best**2 / x):.1f}" for x in steps)


def _section(group: Group) -> str:
    recipe = group.judge.sitting.recipe
    tokens = dict.fromkeys(escape(one.contender.concept.token) for one in group.entries)
    said = "".join(
        f'<h3 class="{colour(at)}">{_title(entry)}</h3><ul>'
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(entry.findings))
        + "</ul>"
        for at, entry in enumerate(group.entries, 1)
    )
    losses = "".join(
        curve(escape(entry.contender.title), entry.contender.losses, at)
        for at, entry in enumerate(group.entries, 1)
    )
    return f"""<section>
<h2><code>{", ".join(tokens)}</code>: {escape(recipe.class_noun)}, on {escape(recipe.base)}</h2>
<h3>What it was learned from</h3>
{strip(group.judge.pictures)}
{said}
<h3>Figures</h3>
{_figures(group)}
<details{" open" if len(group.entries) <= _MOST_SHOWN else ""}><summary>What is painted</summary>
{_grid(group)}
</details>
<h3>Loss while learning</h3>
<div class="plots">{losses}</div>
</section>"""


def _title(entry: Entry) -> str:
    one = entry.contender
    return f"{escape(one.title)}, {one.steps} steps of {escape(one.method.replace('-', ' '))}"


def _figures(group: Group) -> str:
    """The anchors, then every run."""
    rows = [*group.anchors.items(), *((one.contender.title, one.figures) for one in group.entries)]
    names = [name for name in _SHARES if any(name in figures for _, figures in rows)]
    names += dict.fromkeys(name for _, figures in rows for name in figures if name not in _SHARES)
    words = [entry.findings.word for entry in group.entries]
    head = ["", *(_SHARES.get(name, name) for name in names)]
    head += ["word's length", "cosine to noun"] if any(words) else []
    told: list[list[str]] = []
    for at, (title, figures) in enumerate(rows):
        place = at - len(group.anchors) + 1
        word = words[place - 1] if place > 0 else None
        last = [f"{word.length:.2f}", f"{word.cosine:.2f}"] if word else ["–", "–"]
        kind = f' class="{colour(place)}"' if place >= 0 else ""
        cells = [_cell(name, figures.get(name)) for name in names]
        told.append([f"<span{kind}>{escape(title)}</span>", *cells, *(last if any(words) else [])])
    return table(head, told)


def _cell(name: str, figure: Interval | None) -> str:
    if figure is None:
        return "–"
    form = ".0%" if name in _SHARES and name != "variety" else ".2f"
    value, low, high = (format(end, f"z{form}") for end in (figure.value, figure.low, figure.high))
    return value if low == high else f"{value} <i>{low.rstrip('%')} to {high.rstrip('%')}</i>"


def _grid(group: Group) -> str:
    shown = group.entries[:_MOST_SHOWN]
    noun = group.judge.sitting.recipe.class_noun
    heads = [("the base", "no style named" if _is_style(group) else f"a {noun}")]
    heads += [(escape(one.contender.title), one.contender.concept.token) for one in shown]
    columns = [group.judge.plain, *(entry.images for entry in shown)]
    count = group.judge.sitting.count

    def row(at: int, prompt: Prompt) -> Iterator[list[Shown]]:
        for (title, _), images in zip(heads, columns, strict=True):
            some = images[at * count : (at + 1) * count]
            yield [Shown(image, f"{prompt.template}, {title}") for image in some]

    prompts = group.judge.sitting.prompts
    return grid(heads, ((p.template.format("…"), [*row(at, p)]) for at, p in enumerate(prompts)))


def _is_style(group: Group) -> bool:
    return group.judge.sitting.recipe.kind == "style"


def _summary(groups: Sequence[Group]) -> str:
    """Means over subjects, by method."""
    by_method: dict[str, list[Figures]] = {}
    for group in groups:
        base = group.anchors["the base without the word"]
        by_method.setdefault("the base without the word", []).append(base)
        for entry in group.entries:
            by_method.setdefault(entry.contender.method, []).append(entry.figures)
    names = [
        name for name in _SHARES if any(name in one for some in by_method.values() for one in some)
    ]
    rows = [
        [escape(method), str(len(some)), *(_cell(name, _over(some, name)) for name in names)]
        for method, some in by_method.items()
    ]
    head = ["over subjects", "how many", *(_SHARES[name] for name in names)]
    return f"<section><h2>Over subjects</h2>{table(head, rows)}</section>"


def _over(some: Sequence[Figures], name: str) -> Interval | None:
    values = [one[name].value for one in some if name in one]
    return bootstrap(np.array(values)) if values else None


def _explained(group: Group) -> str:
    sight = group.judge.sight
    counted = "the share of what a prompt asks for (class, place, manner) that pocket's eyes see"
    anchored = "CLIP's cosine, from that of wrong prompts (0%) to that of the base (100%)"
    thumbnails = "thumbnails' correlation"
    places = "those in a place that was learned and not asked for"
    around = "how far they go to what is around the subject in the real pictures, if masks say so"
    return _METHOD.format(
        prompts=counted if sight.eyes else anchored,
        leak=places if sight.eyes else around,
        apart=thumbnails if sight.eyes else "DINO's cosine",
    )
