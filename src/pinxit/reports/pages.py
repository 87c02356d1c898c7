"""HTML pages in one file, from the templates in `templates`; images and plots are inside."""

import os
import platform
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from io import BytesIO
from typing import Any

from jinja2 import Environment
from PIL.Image import Image

from pinxit.evaluation.confidence import Interval
from pinxit.reports.environment import page_environment

# Titles of the metrics, in the order of the tables; raw values come after them.
METRIC_TITLES = {
    "likeness": "likeness",
    "prompt": "prompt fidelity",
    "best": "combined",
    "variety": "variety",
    "copies": "copies",
    "background": "background leaks",
    "drift": "class drift",
}
_NUM_COLORS = 6  # of rows and columns; the first is the base model's
_SMOOTHING = 0.95
_SIDE, _LEFT, _LOW, _HIGH = 100, 12, -0.1, 1.1


def render_page(template: str, **values: object) -> str:
    """A whole page from one of the templates."""
    machine = (
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {version('torch')}, pinxit {version('pinxit')}"
    )
    return report_environment().get_template(template).render(machine=machine, **values)


def report_environment() -> Environment:
    """The templates and their filters."""
    environment = page_environment("pinxit.reports")
    filters: tuple[Any, ...] = (
        *(color_class, data_uri, format_duration, metric_title),
        *(interval_ends, interval_value, is_share),
    )
    environment.filters.update({function.__name__: function for function in filters})
    environment.filters["coordinate"] = "{:.1f}".format
    return environment


@dataclass(frozen=True)
class GridColumn:
    """A column of images on a page, in the order of the prompts."""

    title: str
    subtitle: str
    images: Sequence[Image] = field(repr=False)


@dataclass(frozen=True)
class LossPlot:
    """The loss of each step, raw and smoothed, as polylines in a square of 100 units."""

    title: str
    column: int
    losses: Sequence[float]

    @cached_property
    def smoothed(self) -> list[float]:
        """The losses without most of their noise."""
        return smooth(self.losses)

    @property
    def lines(self) -> dict[str, str]:
        """The points of each polyline, by CSS class."""
        top = max(self.smoothed) * 1.3
        return {"raw": _points(self.losses, top), "smooth": _points(self.smoothed, top)}


@dataclass(frozen=True)
class PlotPoint:
    """A concept's point in a trade-off plot, with its confidence intervals."""

    title: str
    column: int
    likeness: Interval
    prompt: Interval


@dataclass(frozen=True)
class TradeoffPlot:
    """Likeness over prompt fidelity, a point for each concept and each base model."""

    points: Sequence[PlotPoint]
    width = _SIDE + _LEFT + 13
    height = round(_SIDE * 0.6 + 14)

    @property
    def curves(self) -> list[str]:
        """Paths that join points with the same combined score, which is a geometric mean."""
        return [self._curve(score) for score in (0.25, 0.5, 0.75)]

    def x(self, prompt: float) -> float:
        """The position of a value of prompt fidelity."""
        return _LEFT + _SIDE * min(max(prompt, 0), _HIGH)

    def y(self, likeness: float) -> float:
        """The position of a likeness."""
        return _SIDE * 0.6 * (_HIGH - min(max(likeness, _LOW), _HIGH)) / (_HIGH - _LOW)

    def _curve(self, score: float) -> str:
        prompts = [score**2 + (1 - score**2) * step / 24 for step in range(25)]
        return "M" + "L".join(f"{self.x(p):.1f} {self.y(score**2 / p):.1f}" for p in prompts)


def smooth(losses: Iterable[float]) -> list[float]:
    """The exponential moving average, with bias correction for the first steps."""
    averages: list[float] = []
    average, weight = 0.0, 0.0
    for loss in losses:
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        averages.append(average / weight)
    return averages


def color_class(column: int) -> str:
    """The CSS class of a column's colour; only column 0, the base model, has the first colour."""
    return f"k{1 + (column - 1) % (_NUM_COLORS - 1) if column else 0}"


def data_uri(image: Image) -> str:
    """An image as the source of an `<img>`."""
    png = BytesIO()
    image.save(png, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(png.getvalue()).decode('ascii')}"


def format_duration(seconds: float) -> str:
    """A duration in minutes and seconds."""
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {remainder}\u00a0s" if minutes else f"{remainder}\u00a0s"


def metric_title(metric: str) -> str:
    """The title of a metric in a table."""
    return METRIC_TITLES.get(metric, metric)


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric in METRIC_TITLES and metric != "variety"


def interval_value(interval: Interval, share: bool) -> str:
    """The value of an interval; a share in percent, from 0 to 100."""
    if not share:
        return format(interval.value, "z.2f")
    return format(min(max(interval.value, 0.0), 1.0), ".0%")


def interval_text(interval: Interval | None) -> str:
    """A share with both ends of its interval, as plain text."""
    return f"{interval_value(interval, True)} ({interval_ends(interval, True)})" if interval else ""


def interval_ends(interval: Interval, share: bool) -> str:
    """Both ends of an interval."""
    low, high = (
        interval_value(Interval(end, end, end), share) for end in (interval.low, interval.high)
    )
    return f"{low.rstrip('%')} to {high.rstrip('%')}"


def _points(values: Sequence[float], top: float) -> str:
    last = max(len(values) - 1, 1)
    return " ".join(
        f"{100 * step / last:.2f},{100 - 100 * min(value / top, 1):.2f}"
        for step, value in enumerate(values)
    )
