"""The literature's signs on pocket: in the figures that docs quote, and in small live checks."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
BARS = tomllib.loads((ROOT / "lab" / "quality" / "bars.toml").read_text(encoding="utf-8"))

pytestmark = pytest.mark.slow


def figures(name: str) -> Any:
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))["figures"]


def measured(tool: str, work: Path, *asked: str) -> Any:
    """What a tool finds, on one thread."""
    told = subprocess.run(
        [sys.executable, "-m", f"lab.quality.{tool}", "--work", str(work), *asked],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return json.loads(told.stdout.splitlines()[-1])


def test_dreambooth_is_truer_than_textual_inversion() -> None:
    """Table 1 of arXiv:2208.12242: DINO 0.668 against 0.569; live in test_bars.py."""
    word, tuned = (
        figures("subjects")[name]["share"] for name in ("textual-inversion", "dreambooth")
    )
    for scale in ("likeness", "hidden"):
        assert tuned[scale]["low"] > word[scale]["high"], scale


def test_class_pictures_keep_the_class_and_its_diversity(tmp_path: Path) -> None:
    """Table 3 of arXiv:2208.12242: PRES 0.493 against 0.664, DIV 0.391 against 0.371."""
    live = measured("truths", tmp_path, "--groups", "prior", "--subjects", "1")
    for found in (live["prior"], figures("truths")["prior"]):
        without, with_them = (found[f"{which} class pictures"] for which in ("without", "with"))
        assert with_them["drift"] < without["drift"] - 0.3
        assert with_them["diversity"] > 1.5 * without["diversity"]


def test_the_right_class_noun_is_learned_soonest() -> None:
    """Table 4 of arXiv:2208.12242: DINO 0.744 right, 0.454 wrong; what none shows is in docs."""
    nouns = figures("truths")["nouns"]
    right, wrong, none = (nouns[f"{which} noun, 12 steps"] for which in ("right", "wrong", "no"))
    for scale in ("likeness", "hidden"):
        assert right[scale] > wrong[scale] + 0.05
        assert right[scale] > none[scale] + 0.05


def test_words_grow_unless_they_are_held() -> None:
    """Of arXiv:2512.13672's two signs the one that shows here (docs/results/learning.md)."""
    words = figures("truths")["words"]
    for count in (1, 8):
        free, held = words[f"{count} free"], words[f"{count} held"]
        assert free["norm"] > 2 * free["norm of the noun"]
        assert abs(held["norm"] - held["norm of the noun"]) < 1e-4
        assert held["obeyed"] > free["obeyed"] - 0.01  # nothing to repair, and nothing is lost


def test_more_vectors_obey_less() -> None:
    """Section 5 of arXiv:2208.01618, which finds them no truer, either."""
    words = figures("truths")["words"]
    assert words["8 free"]["obeyed"] < words["1 free"]["obeyed"]


def test_a_lora_catches_a_style_and_not_the_things_in_it(tmp_path: Path) -> None:
    found = measured("styles", tmp_path, "--styles", "blueprint", "--methods", "lora")
    ways, bars = found["blueprint"], BARS["styles"]["lora"]
    lora = ways["lora"]
    assert lora["right"]["style"] >= bars["style"]
    assert lora["right"]["class"] >= bars["class"] * ways["base"]["right"]["class"]
    assert lora["leaked"] <= bars["leaked"]
    for scale, caught in lora["caught"].items():
        assert caught > ways["in words"]["caught"][scale], scale
