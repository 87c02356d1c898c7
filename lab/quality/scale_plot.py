"""Plots the results of all methods, with 95% intervals, as SVG files.

`python -m lab.quality.scale_plot` reads docs/figures/scale.json and writes docs/images/scale.svg,
likeness over drift of the subjects, and docs/images/scale-styles.svg, the style over the prompt.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lab.doc_tables import ROOT, read_figures

_WIDTH, _HEIGHT, _MARGIN = 760, 460, 60
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
Row = Mapping[str, Any]


def svg(rows: Mapping[str, Row], axes: Mapping[str, str]) -> str:
    """A point for each row, the default length filled; `axes` are two figures and their titles."""
    xs, ys = ([row[axis][end] for row in rows.values() for end in ("low", "high")] for axis in axes)
    title_x, title_y = axes.values()
    methods = list(dict.fromkeys(row["method"] for row in rows.values()))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}">{title_x}</text>',
        f'<text x="12" y="24">{title_y}</text>',
        *_ticks(min(xs), max(xs), min(ys), max(ys)),
    ]
    titles: list[tuple[float, float, str]] = []
    for row in rows.values():
        x, y = (
            [_scaled(row[axis][end], min(all_), max(all_)) for end in ("value", "low", "high")]
            for axis, all_ in zip(axes, (xs, ys), strict=True)
        )
        across, up = [_MARGIN + v * _PLOT for v in x], [_HEIGHT - _MARGIN - v * _TALL for v in y]
        number = methods.index(row["method"])
        colour = _COLOURS[number % len(_COLOURS)]
        fill = colour if row["length"] == 1 else "white"
        title = row["method"] + (f", {row['length']:g}" if row["length"] != 1 else "")
        at, height = across[0] + 7, _free_height(titles, across[0] + 7, up[0] - 6, title)
        titles.append((at, height, title))
        parts.append(
            f'<g stroke="{colour}"><path d="M{across[1]:.1f} {up[0]:.1f}H{across[2]:.1f}'
            f'M{across[0]:.1f} {up[1]:.1f}V{up[2]:.1f}" opacity=".5"/>'
            f'<circle cx="{across[0]:.1f}" cy="{up[0]:.1f}" r="5" fill="{fill}"/></g>'
            f'<text x="{at:.1f}" y="{height:.1f}" fill="{colour}">{title}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


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
    for kind, name in (("subjects", "scale.svg"), ("styles", "scale-styles.svg")):
        file = ROOT / "docs" / "images" / name
        file.write_text(svg(read_figures("scale")[kind], AXES[kind]), encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
