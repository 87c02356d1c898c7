"""The page of an evaluation: plots, tables and images of all entrants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pinxit.evaluation.confidence import Interval, bootstrap
from pinxit.evaluation.findings import EmbeddingNorm
from pinxit.reports.figures import BASE, SubjectResults
from pinxit.reports.pages import (
    METRIC_TITLES,
    GridColumn,
    LossPlot,
    PlotPoint,
    TradeoffPlot,
    render_page,
)

MAX_COLUMNS = 5  # columns of images next to the base model's


def comparison_page(
    groups: Sequence[SubjectResults], template: str = "comparison.html", **values: object
) -> str:
    """The whole page as HTML; `values` are for a template that extends that of comparisons."""
    same_kind = len({group.subject.kind for group in groups}) == 1
    return render_page(
        template,
        sections=[Section(group) for group in groups],
        num_concepts=sum(len(group.results) for group in groups),
        plot=_tradeoff_plot(groups),
        summary=Summary(groups) if len(groups) > 1 and same_kind else None,
        max_columns=MAX_COLUMNS,
        **values,
    )


@dataclass(frozen=True)
class MetricsRow:
    """A row of metrics: of an anchor, or of an entrant in the colour of its column."""

    title: str
    column: int | None
    metrics: Mapping[str, Interval]
    norm: EmbeddingNorm | None = None


@dataclass(frozen=True)
class Section:
    """The part of a page about one subject."""

    group: SubjectResults

    @property
    def tokens(self) -> list[str]:
        """The tokens of all entrants."""
        return [*dict.fromkeys(result.entrant.concept.token for result in self.group.results)]

    @cached_property
    def rows(self) -> list[MetricsRow]:
        """The rows of the table of metrics."""
        anchors = self.group.anchors.items()
        means = [MetricsRow(f"mean of {t}", None, row) for t, row in self.group.seed_means]
        rows = [MetricsRow(name, 0 if name == BASE else None, row) for name, row in anchors]
        for column, result in enumerate(self.group.results, 1):
            norm = result.findings.embedding_norm
            rows.append(MetricsRow(result.entrant.title, column, result.metrics, norm))
        return rows + means

    @property
    def metric_names(self) -> list[str]:
        """The metrics of the table: those with a title, then the raw ones."""
        return _ordered_names([row.metrics for row in self.rows])

    @property
    def has_norms(self) -> bool:
        """Whether an entrant has an embedding."""
        return any(row.norm for row in self.rows)

    @property
    def prompts(self) -> list[str]:
        """The prompts, with an ellipsis for the token."""
        return [prompt.template.format("…") for prompt in self.group.judge.prompt_run.prompts]

    @property
    def loss_plots(self) -> list[LossPlot]:
        """The loss of each entrant that has one."""
        entrants = enumerate((result.entrant for result in self.group.results), 1)
        return [LossPlot(e.title, column, e.losses) for column, e in entrants if e.losses]

    def columns(self, most: int) -> list[GridColumn]:
        """The generated images of the base model, and of at most so many entrants."""
        subject = self.group.subject
        without = "no style in the prompt" if subject.kind == "style" else f"a {subject.class_noun}"
        columns = [GridColumn("base model", without, self.group.judge.base_images)]
        return columns + [
            GridColumn(result.entrant.title, result.entrant.concept.token, result.images)
            for result in self.group.results[:most]
        ]


@dataclass(frozen=True)
class SummaryRow:
    """The means of one method over all subjects."""

    method: str
    num_subjects: int
    metrics: Mapping[str, Interval]


class Summary:
    """The mean over subjects for each method, and the metrics that it has."""

    def __init__(self, groups: Sequence[SubjectResults]) -> None:
        by_method: dict[str, list[Mapping[str, Interval]]] = {}
        for group in groups:
            by_method.setdefault(BASE, []).append(group.anchors[BASE])
            for result in group.results:
                by_method.setdefault(result.entrant.method, []).append(result.metrics)
        subjects = [metrics for method in by_method.values() for metrics in method]
        self.names = [name for name in _ordered_names(subjects) if name in METRIC_TITLES]
        self.rows = [
            SummaryRow(method, len(results), self._means(results))
            for method, results in by_method.items()
        ]

    def _means(self, results: Sequence[Mapping[str, Interval]]) -> dict[str, Interval]:
        values = {name: [row[name].value for row in results if name in row] for name in self.names}
        return {name: bootstrap(np.array(numbers)) for name, numbers in values.items() if numbers}


def _ordered_names(rows: Sequence[Mapping[str, Interval]]) -> list[str]:
    """The names of all metrics: those with a title, then the raw ones."""
    names = dict.fromkeys(name for metrics in rows for name in metrics)
    return [n for n in METRIC_TITLES if n in names] + [n for n in names if n not in METRIC_TITLES]


def _tradeoff_plot(groups: Sequence[SubjectResults]) -> TradeoffPlot:
    """The plot of all subjects whose likeness is measured."""
    points: list[PlotPoint] = []
    for number, group in enumerate(groups):
        if group.judge.no_likeness:
            continue
        results = [(result.entrant.title, result.metrics) for result in group.results]
        rows = [("" if number else "base model", group.anchors[BASE]), *results]
        points += [
            PlotPoint(title, column, metrics["likeness"], metrics["prompt"])
            for column, (title, metrics) in enumerate(rows)
        ]
    return TradeoffPlot(points)
