"""The scale of all methods: order of the pieces, what is measured again, means and intervals."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from lab.doc_tables import read_figures
from lab.quality import scale
from lab.quality.harness import Lab
from lab.quality.scale_plot import AXES, paths, svg
from pinxit import registry
from pinxit.cli.train import RECOMMENDED
from pinxit.models.model import Model
from pinxit.pocket.eyes import Eyes
from pinxit.training.plan import TrainingPlan


def _constant(value: object) -> Callable[..., object]:
    def function(*_: object) -> object:
        return value

    return function


def row(value: float) -> dict[str, float]:
    return dict.fromkeys(scale.STYLE_FIGURES, value)


def test_the_first_pieces_have_all_methods_for_four_subjects() -> None:
    pieces = scale.pieces()
    assert len({(piece.case.name, piece.method, piece.length) for piece in pieces}) == len(pieces)
    methods = [method for method in scale.METHODS if method != "lora, rank 16"]  # the default
    first = pieces[: 4 * len(methods)]
    assert [piece.method for piece in first[::4]] == methods
    assert {piece.length for piece in first} == {1}
    assert len({piece.case.name for piece in first}) == 4
    assert isinstance(pieces[len(first)].case, scale.StyleCase)
    names = {piece.case.name for piece in pieces}
    assert sum("subject" in name for name in names) == 10
    assert sum("style" in name for name in names) == 8


def test_summary_has_means_over_subjects_and_the_number_of_them() -> None:
    *cases, other = map(scale.SubjectCase, scale.subjects.sample_subjects(5))
    cases = cases[:3]  # and the last one, which does not count without the one before it
    values = (0.2, 0.5, 0.8)
    rows = {scale.Piece(c, "lora", 1.0): row(v) for c, v in zip(cases, values, strict=True)}
    rows[scale.Piece(other, "lora", 1.0)] = row(0.9)
    rows[scale.Piece(scale.StyleCase("sepia"), "lora", 1.0)] = row(0.4)
    figures: Any = scale.summary(rows)
    lora = figures["subjects"]["lora, 1"]
    assert lora["cases"] == 3
    assert lora["fidelity"]["value"] == pytest.approx(fmean(values))
    # Two of 27 resampled triples have all three values at one end, and so more than 2.5%.
    assert lora["fidelity"]["low"] == pytest.approx(0.2)
    assert lora["fidelity"]["high"] == pytest.approx(0.8)
    style = figures["styles"]["lora, 1"]
    assert (style["cases"], style["drift"]["value"]) == (1, pytest.approx(0.4))


def test_a_piece_is_measured_once_and_again_with_another_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    recipe = SimpleNamespace(read_images=lambda: (1,), to_toml=lambda: "recipe")
    plan = SimpleNamespace(recipe=recipe)
    monkeypatch.setattr(TrainingPlan, "of", _constant(plan))
    monkeypatch.setattr(scale.SubjectCase, "recipe", _constant(recipe))

    def measure(piece: scale.Piece, *_: object) -> dict[str, float]:
        measured.append(piece.title)
        return row(0.3)

    monkeypatch.setattr(scale.Piece, "_measure", measure)
    piece, eyes = scale.Piece(scale.SubjectCase(3), "lora, rank 16", 0.5), cast("Eyes", None)

    def lab(base: str) -> Lab:
        return Lab(cast("Model", SimpleNamespace(hash=base, name="pocket")), lambda _: None)

    assert piece.result(lab("a"), eyes, tmp_path, tmp_path, new=False) is None
    assert piece.result(lab("a"), eyes, tmp_path, tmp_path) == row(0.3)
    assert piece.result(lab("a"), eyes, tmp_path, tmp_path, new=False) == row(0.3)
    assert piece.result(lab("b"), eyes, tmp_path, tmp_path, new=False) is None
    assert measured == ["lora-rank-16-0.5"]
    (file,) = tmp_path.rglob("*.json")
    assert json.loads(file.read_text()) == row(0.3)


def test_stored_means_over_more_subjects_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"length": 1, "cases": 4}
    stored: dict[str, Any] = {"subjects": {"lora, 1": row | {"cases": 10}, "dora, 1": row}}
    stored |= {scale.FIRST: {"lora, 0.5": row | {"length": 0.5}}, "styles": {}}
    monkeypatch.setattr(scale, "SCALE", tmp_path / "scale.json")
    scale.SCALE.write_text(json.dumps({"figures": stored}))
    measured = {"subjects": {"lora, 1": row | {"cases": 9}, "dora, 1": row | {"new": 1}}}
    means = scale.with_earlier_means(measured)
    assert means == {
        "subjects": {"lora, 1": row | {"cases": 10}, "dora, 1": row | {"new": 1}},
        scale.FIRST: {"lora, 0.5": row | {"length": 0.5}, "dora, 1": row | {"new": 1}},
        "styles": {},
    }
    assert list(means["subjects"]) == ["dora, 1", "lora, 1"]


def test_the_plot_shows_likeness_over_drift() -> None:
    cases = [*map(scale.SubjectCase, scale.subjects.sample_subjects(2))]
    rows = {scale.Piece(case, "lora", 1.0): row(0.2 + 0.1 * n) for n, case in enumerate(cases)}
    rows |= {scale.Piece(case, "dora", 1.0): row(0.8 + 0.1 * n) for n, case in enumerate(cases)}
    rows[scale.Piece(cases[0], "lokr", 0.5)] = row(0.3)  # not with default steps
    figures: Any = scale.summary(rows)
    tree = ElementTree.fromstring(svg(figures["subjects"], AXES["subjects"]))
    points = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
    x, y = ([float(point.attrib[key]) for point in points] for key in ("cx", "cy"))
    assert (x[0] < x[1], y[0] > y[1]) == (True, True)
    titles = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"lora", "dora", "drift of the class", "likeness"} <= set(titles)
    assert "lokr" not in titles


def test_lines_go_through_all_lengths_of_the_first_subjects() -> None:
    first, *others = scale.subjects.sample_subjects(5)
    rows = {
        scale.Piece(scale.SubjectCase(first), "lora", length): row(value) | {"drift": 1 - value}
        for length, value in ((2.0, 0.9), (0.5, 0.1), (1.0, 0.5))
    }
    rows[scale.Piece(scale.SubjectCase(first), "dora", 1.0)] = row(0.7)  # without other lengths
    rows |= {scale.Piece(scale.SubjectCase(other), "lora", 1.0): row(0.5) for other in others[:3]}
    rows[scale.Piece(scale.SubjectCase(others[3]), "lora", 1.0)] = row(0.0)
    figures: Any = scale.summary(rows)
    assert figures["subjects"]["lora, 1"]["fidelity"]["value"] == pytest.approx(0.4)
    assert figures[scale.FIRST]["lora, 1"]["fidelity"]["value"] == pytest.approx(0.5)
    tree = ElementTree.fromstring(paths(figures[scale.FIRST], AXES["subjects"]))
    points = list(tree.iter("{http://www.w3.org/2000/svg}circle"))
    x, y = ([float(point.attrib[key]) for point in points] for key in ("cx", "cy"))
    assert [point.attrib["r"] for point in points] == ["3", "4", "5"]
    assert x == sorted(x, reverse=True)
    assert y == sorted(y, reverse=True)
    (line,) = tree.iter("{http://www.w3.org/2000/svg}polyline")
    corners = [f"{across:.1f},{up:.1f}" for across, up in zip(x, y, strict=True)]
    assert line.attrib["points"].split() == corners


def test_the_plot_of_styles_shows_the_style_over_the_prompt() -> None:
    rows = {scale.Piece(scale.StyleCase("sepia"), "lora", 1.0): row(0.2)}
    rows[scale.Piece(scale.StyleCase("sepia"), "dora", 1.0)] = row(0.2) | {"prompt following": 0.6}
    figures: Any = scale.summary(rows)
    tree = ElementTree.fromstring(svg(figures["styles"], AXES["styles"]))
    x, y = ([c.attrib[key] for c in tree.iter() if "cx" in c.attrib] for key in ("cx", "cy"))
    assert (float(x[0]) < float(x[1]), y[0] == y[1]) == (True, True)
    assert {"prompt following", "style among the nearest ten of 258"} <= {
        text.text for text in tree.iter()
    }


@pytest.mark.parametrize(("kind", "score"), [("subjects", "fidelity"), ("styles", "among ten")])
def test_the_recommended_method_has_the_best_figures(kind: str, score: str) -> None:
    rows: Any = read_figures("scale")[kind].values()
    most = max(row["cases"] for row in rows)
    compared = {row["method"]: row for row in rows if (row["cases"], row["length"]) == (most, 1)}
    follow = [
        name
        for name in registry.names("methods")
        if name in compared and compared[name]["prompt following"]["value"] >= 0.95
    ]
    assert len(follow) > 1
    assert max(follow, key=lambda name: compared[name][score]["value"]) == RECOMMENDED
