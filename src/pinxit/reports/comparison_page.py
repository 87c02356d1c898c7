"""The page of an evaluation: plots, tables and images of all entrants."""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from pinxit.evaluation.confidence import Interval, bootstrap
from pinxit.evaluation.findings import advice
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.reports.figures import BASE, EntrantResult, MetricIntervals, SubjectResults
from pinxit.reports.html import (
    PageImage,
    color_class,
    html_table,
    image_grid,
    image_strip,
    loss_curve,
    render_page,
)

# Titles of the metrics, in the order of the tables; raw values come after them.
_METRIC_TITLES = {
    "likeness": "likeness",
    "prompt": "prompt fidelity",
    "best": "combined",
    "variety": "variety",
    "copies": "copies",
    "background": "background leaks",
    "drift": "class drift",
}
_EXPLANATION = (
    "<b>Likeness</b> is the similarity to the real images, on a scale from the floor (0%: images "
    "of others of the class, or else the base model's images without the token) to the ceiling "
    "(100%: the real images, each compared with the others). <b>Prompt fidelity</b> is {prompts}. "
    "<b>Combined</b> is the geometric mean of both. <b>Variety</b> is the mean distance between "
    "images of one prompt, by {distance}. <b>Copies</b> are images that are nearly equal to a "
    "training image; <b>background leaks</b> are {leak}. <b>Class drift</b> is how far images of "
    "the class noun alone have moved towards the subject. Raw values are those of the metrics "
    "themselves. Small numbers are 95% confidence intervals over prompts."
)
_INTRODUCTION = (
    "{concepts} with the same prompts and the same seeds; no images were selected. Higher is more "
    "similar to the training images, further right follows prompts better; each curve joins points "
    "with the same combined score."
)
_SIDE, _LEFT, _LOW, _HIGH = 100, 12, -0.1, 1.1
_MAX_COLUMNS = 5  # columns of images


def comparison_page(groups: Sequence[SubjectResults]) -> str:
    """The whole page as HTML."""
    count = sum(len(group.results) for group in groups)
    concepts = f"{count} concept{'s' if count > 1 else ''}"
    summary = _summary(groups) if len(groups) > 1 else ""
    sections = "\n".join(_section(group) for group in groups)
    return render_page(
        "evaluation",
        "Similarity to the subject and prompt fidelity",
        _INTRODUCTION.format(concepts=concepts),
        f"{tradeoff_plot(groups)}{summary}{sections}<section><h2>How the metrics are computed</h2>"
        f"<p>{_explanation(groups[0])}</p></section>",
    )


def tradeoff_plot(groups: Sequence[SubjectResults]) -> str:
    """A plot with a point for each entrant and the base model: likeness over prompt fidelity."""
    points: list[str] = []
    for at, group in enumerate(groups):
        base = group.anchors[BASE]
        points.append(_point("base model" if at == 0 else "", base, 0))
        points += (
            _point(result.entrant.title, result.metrics, 1 + number)
            for number, result in enumerate(group.results)
        )
    curves = "".join(f'<path d="{_equal_score_curve(best)}"/>' for best in (0.25, 0.5, 0.75))
    return (
        f'<svg class="front" viewBox="0 0 {_SIDE + _LEFT + 26} {_SIDE * 0.6 + 8:.0f}" role="img" '
        f'aria-label="likeness over prompt fidelity">{curves}{_axes()}{"".join(points)}</svg>'
    )


def _axes() -> str:
    """Both axes of the plot with their labels."""
    left, right, bottom = _x_position(0), _x_position(1), _y_position(_LOW) + 5
    axes = ""
    for likeness, label in ((0, "floor"), (1, "ceiling")):
        y = _y_position(likeness)
        axes += f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        axes += _label(label, _LEFT - 1, y + 1, "end")
    axes += _label("likeness", 0, _y_position(0.5) + 1, "start")
    axes += _label("prompt fidelity", right + 7, bottom, "start")
    ticks = (0, 0.25, 0.5, 0.75, 1)
    return axes + "".join(_label(f"{x:.0%}", _x_position(x), bottom, "middle") for x in ticks)


def _label(text: str, x: float, y: float, anchor: str) -> str:
    return f'<text class="dim" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{text}</text>'


def _point(title: str, metrics: MetricIntervals, column: int) -> str:
    """A point of the plot, with its confidence intervals as whiskers."""
    likeness, prompt = metrics["likeness"], metrics["prompt"]
    x, y = _x_position(prompt.value), _y_position(likeness.value)
    left, right = _x_position(prompt.low), _x_position(prompt.high)
    low, high = _y_position(likeness.low), _y_position(likeness.high)
    return (
        f'<g class="{color_class(column)}"><path class="whisker" '
        f'd="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.2"/>'
        f'<text x="{x + 2:.1f}" y="{y - 1.6:.1f}">{escape(title)}</text></g>'
    )


def _x_position(prompt: float) -> float:
    return _LEFT + _SIDE * min(max(prompt, 0), _HIGH)


def _y_position(likeness: float) -> float:
    return _SIDE * 0.6 * (_HIGH - min(max(likeness, _LOW), _HIGH)) / (_HIGH - _LOW)


def _equal_score_curve(score: float) -> str:
    """The path of all points whose combined score, a geometric mean, is `score`."""
    prompts = [score**2 + (1 - score**2) * step / 24 for step in range(25)]
    return "M" + "L".join(
        f"{_x_position(prompt):.1f} {_y_position(score**2 / prompt):.1f}" for prompt in prompts
    )


def _section(group: SubjectResults) -> str:
    recipe = group.judge.prompt_run.subject
    tokens = dict.fromkeys(escape(result.entrant.concept.token) for result in group.results)
    findings = "".join(
        f'<h3 class="{color_class(at)}">{_title(result)}</h3><ul>'
        + "".join(f"<li>{escape(sentence)}</li>" for sentence in advice(result.findings))
        + "</ul>"
        for at, result in enumerate(group.results, 1)
    )
    losses = "".join(
        loss_curve(escape(result.entrant.title), result.entrant.losses, at)
        for at, result in enumerate(group.results, 1)
    )
    return f"""<section>
<h2><code>{", ".join(tokens)}</code>: {escape(recipe.class_noun)}, on {escape(recipe.base)}</h2>
<h3>Training images</h3>
{image_strip(group.judge.training_images)}
{findings}
<h3>Metrics</h3>
{_metrics_table(group)}
<details{" open" if len(group.results) <= _MAX_COLUMNS else ""}><summary>Generated images</summary>
{_grid(group)}
</details>
<h3>Training loss</h3>
<div class="plots">{losses}</div>
</section>"""


def _title(result: EntrantResult) -> str:
    entrant = result.entrant
    method = escape(entrant.method.replace("-", " "))
    return f"{escape(entrant.title)}, {entrant.steps} steps of {method}"


def _metrics_table(group: SubjectResults) -> str:
    """A row for each anchor and each entrant."""
    rows = [*group.anchors.items(), *((r.entrant.title, r.metrics) for r in group.results)]
    names = [name for name in _METRIC_TITLES if any(name in metrics for _, metrics in rows)]
    names += dict.fromkeys(
        name for _, metrics in rows for name in metrics if name not in _METRIC_TITLES
    )
    norms = [result.findings.embedding_norm for result in group.results]
    head = ["", *(_METRIC_TITLES.get(name, name) for name in names)]
    head += ["embedding norm", "cosine to class noun"] if any(norms) else []
    cells: list[list[str]] = []
    for at, (title, metrics) in enumerate(rows):
        column = at - len(group.anchors) + 1
        css = f' class="{color_class(column)}"' if column >= 0 else ""
        row = [f"<span{css}>{escape(title)}</span>"]
        row += [_cell(name, metrics.get(name)) for name in names]
        if any(norms):
            norm = norms[column - 1] if column > 0 else None
            row += [f"{norm.relative_norm:.2f}", f"{norm.cosine:.2f}"] if norm else ["–", "–"]
        cells.append(row)
    return html_table(head, cells)


def _cell(name: str, metric: Interval | None) -> str:
    if metric is None:
        return "–"
    form = ".0%" if name in _METRIC_TITLES and name != "variety" else ".2f"
    value, low, high = (format(end, f"z{form}") for end in (metric.value, metric.low, metric.high))
    return value if low == high else f"{value} <i>{low.rstrip('%')} to {high.rstrip('%')}</i>"


def _grid(group: SubjectResults) -> str:
    results = group.results[:_MAX_COLUMNS]
    noun = group.judge.prompt_run.subject.class_noun
    heads = [("base model", "no style in the prompt" if _is_style(group) else f"a {noun}")]
    heads += [(escape(r.entrant.title), r.entrant.concept.token) for r in results]
    columns = [group.judge.base_images, *(result.images for result in results)]
    count = group.judge.prompt_run.images_per_prompt

    def row(at: int, prompt: Prompt) -> Iterator[list[PageImage]]:
        for (title, _), images in zip(heads, columns, strict=True):
            prompt_images = images[at * count : (at + 1) * count]
            yield [PageImage(image, f"{prompt.template}, {title}") for image in prompt_images]

    prompts = group.judge.prompt_run.prompts
    return image_grid(
        heads, ((p.template.format("…"), [*row(at, p)]) for at, p in enumerate(prompts))
    )


def _is_style(group: SubjectResults) -> bool:
    return group.judge.prompt_run.subject.kind == "style"


def _summary(groups: Sequence[SubjectResults]) -> str:
    """A table with the mean over subjects for each method."""
    by_method: dict[str, list[MetricIntervals]] = {}
    for group in groups:
        base = group.anchors[BASE]
        by_method.setdefault(BASE, []).append(base)
        for result in group.results:
            by_method.setdefault(result.entrant.method, []).append(result.metrics)
    names = [
        name
        for name in _METRIC_TITLES
        if any(name in metrics for subjects in by_method.values() for metrics in subjects)
    ]
    rows = [
        [
            escape(method),
            str(len(subjects)),
            *(_cell(name, _mean_interval(subjects, name)) for name in names),
        ]
        for method, subjects in by_method.items()
    ]
    head = ["method", "subjects", *(_METRIC_TITLES[name] for name in names)]
    return f"<section><h2>Mean over subjects</h2>{html_table(head, rows)}</section>"


def _mean_interval(subjects: Sequence[MetricIntervals], name: str) -> Interval | None:
    values = [metrics[name].value for metrics in subjects if name in metrics]
    return bootstrap(np.array(values)) if values else None


def _explanation(group: SubjectResults) -> str:
    if group.judge.metrics.eyes:
        return _EXPLANATION.format(
            prompts="the share of the prompt's class, place and style that pocket's eyes recognize",
            leak="images with the background of a training image instead of the prompt's",
            distance="the correlation of thumbnails",
        )
    return _EXPLANATION.format(
        prompts="CLIP's cosine, from that of wrong prompts (0%) to the base model's (100%)",
        leak="measured by the similarity to the training images' background, if there are masks",
        distance="DINO's cosine",
    )
