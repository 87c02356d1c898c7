"""Plots the results of all methods as SVG files.

`python -m lab.quality.scale_plot` reads docs/figures/scale.json and writes files in docs/images:
scale.svg, likeness over drift of the subjects with default steps and 95% intervals,
scale-styles.svg, the style over the prompt, and both with half of, all and twice the steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.doc_tables import ROOT, read_figures

_WIDTH, _HEIGHT, _MARGIN = 760, 460, 60
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d3f")
Row = Mapping[str, Any]
Axes = Mapping[str, str]


def svg(rows: Mapping[str, Row], axes: Axes) -> str:
    """A point for each row with default steps; `axes` are two figures and their titles."""
    points = [row for row in rows.values() if row["length"] == 1]
    plot = _Plot(axes, points, ("value", "low", "high"))
    for row in points:
        (x, y), (left, low), (right, high) = (plot.place(row, end) for end in plot.ends)
        plot.parts.append(
            f'<path d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {low:.1f}V{high:.1f}" '
            f'stroke="{plot.colour(row)}" opacity=".5"/>'
        )
        plot.draw_point(row, 5)
        plot.draw_title(row)
    return plot.text


def paths(rows: Mapping[str, Row], axes: Axes) -> str:
    """A line for each method through the results of all lengths; longer ones are larger points."""
    methods = dict.fromkeys(row["method"] for row in rows.values())
    lines = [[row for row in rows.values() if row["method"] == method] for method in methods]
    most = max(map(len, lines))
    lines = [line for line in lines if len(line) == most]
    plot = _Plot(axes, [row for line in lines for row in line], ("value",))
    for line in lines:
        line.sort(key=lambda row: row["length"])
        places = " ".join("{:.1f},{:.1f}".format(*plot.place(row, "value")) for row in line)
        plot.parts.append(
            f'<polyline points="{places}" fill="none" stroke="{plot.colour(line[0])}" '
            'opacity=".5"/>'
        )
        for radius, row in enumerate(line, 3):
            plot.draw_point(row, radius)
        plot.draw_title(line[-1])
    return plot.text


@dataclass
class _Plot:
    """A plot whose axes fit the figures of the rows, and its parts so far."""

    axes: Axes
    rows: Sequence[Row]
    ends: Sequence[str]
    parts: list[str] = field(default_factory=list[str])
    titles: list[tuple[float, float, str]] = field(default_factory=list[tuple[float, float, str]])

    def limits(self, axis: str) -> tuple[float, float]:
        """The smallest and the largest figure of an axis."""
        values = [row[axis][end] for row in self.rows for end in self.ends]
        return min(values), max(values)

    def place(self, row: Row, end: str) -> tuple[float, float]:
        """The pixel of a row: its value, or an end of its interval."""
        x, y = (_scaled(row[axis][end], *self.limits(axis)) for axis in self.axes)
        return _MARGIN + x * _PLOT, _HEIGHT - _MARGIN - y * _TALL

    def colour(self, row: Row) -> str:
        """The colour of the method."""
        methods = list(dict.fromkeys(row["method"] for row in self.rows))
        return _COLOURS[methods.index(row["method"]) % len(_COLOURS)]

    def draw_point(self, row: Row, radius: int) -> None:
        """A point for the value of a row."""
        x, y = self.place(row, "value")
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{self.colour(row)}"/>'
        )

    def draw_title(self, row: Row) -> None:
        """The method, right of its point, where there is no other title."""
        x, y = self.place(row, "value")
        height = _free_height(self.titles, x + 7, y - 6, row["method"])
        self.titles.append((x + 7, height, row["method"]))
        self.parts.append(
            f'<text x="{x + 7:.1f}" y="{height:.1f}" fill="{self.colour(row)}">'
            f"{row['method']}</text>"
        )

    @property
    def text(self) -> str:
        """The SVG file."""
        title_x, title_y = self.axes.values()
        ranges = [end for axis in self.axes for end in self.limits(axis)]
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}">{title_x}</text>',
            f'<text x="12" y="24">{title_y}</text>',
        )
        return "\n".join([*head, *_ticks(*ranges), *self.parts, "</svg>", ""])


def _free_height(titles: list[tuple[float, float, str]], x: float, y: float, title: str) -> float:
    """The height for a title, or above it the first one that no other title has."""
    while any(
        abs(y - height) < _LINE and x < at + _LETTER * len(other) and at < x + _LETTER * len(title)
        for at, height, other in titles
    ):
        y -= _LINE
    return y


AXES = {
    "subjects": {"drift": "drift of the class", "fidelity": "likeness"},
    "styles": {
        "prompt following": "prompt following",
        "among ten": "style among the nearest ten of 258",
    },
}
_LINE, _LETTER = 14, 6.5  # pixels of a line and of a letter
_PLOT, _TALL = _WIDTH - 4 * _MARGIN, _HEIGHT - 2 * _MARGIN  # titles are right of the points


def _scaled(value: float, low: float, high: float) -> float:
    return (value - low) / max(high - low, 1e-9)


def _ticks(left: float, right: float, low: float, high: float) -> Iterator[str]:
    """The ends of both axes, with their values."""
    bottom = _HEIGHT - _MARGIN
    for place, value in ((0, left), (1, right)):
        yield f'<text x="{_MARGIN + place * _PLOT}" y="{bottom + 20}">{value:z.0%}</text>'
    for place, value in ((0, low), (1, high)):
        yield f'<text x="12" y="{bottom - place * _TALL}">{value:z.0%}</text>'
    frame = f"M{_MARGIN - 8} {_MARGIN}V{bottom + 8}H{_MARGIN + _PLOT}"
    yield f'<path d="{frame}" fill="none" stroke="#888"/>'


def main() -> None:
    """Write the plots of subjects and of styles."""
    figures = read_figures("scale")
    plots = {
        "scale": svg(figures["subjects"], AXES["subjects"]),
        "scale-lengths": paths(figures["first subjects"], AXES["subjects"]),
        "scale-styles": svg(figures["styles"], AXES["styles"]),
        "scale-styles-lengths": paths(figures["styles"], AXES["styles"]),
    }
    for name, text in plots.items():
        file = ROOT / "docs" / "images" / f"{name}.svg"
        file.write_text(text, encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
