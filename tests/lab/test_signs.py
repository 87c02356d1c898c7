"""Findings of the literature in small live runs on pocket, and the freshness of stored figures."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lab.figures import COMMANDS
from lab.quality import stopping, styles, truths

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
BARS = tomllib.loads((ROOT / "lab" / "quality" / "bars.toml").read_text(encoding="utf-8"))


def measured(tool: str, work: Path, *asked: str) -> Any:
    """What a tool finds, on one thread."""
    process = subprocess.run(
        [sys.executable, "-m", f"lab.quality.{tool}", "--work", str(work), *asked],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def stored(name: str) -> Any:
    return json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(set(COMMANDS) & {path.stem for path in FIGURES.iterdir()}))
def test_figures_are_of_todays_commands(name: str) -> None:
    """Options may differ, but the program that was run must still exist under its name."""
    program = COMMANDS[name].split(" --")[0]
    assert re.match(rf"{re.escape(program)}( |$)", stored(name)["command"])


def test_figures_have_todays_experiments_and_bars() -> None:
    figures = {name: stored(name)["figures"] for name in ("styles", "truths", "stopping")}
    assert list(figures["styles"]) == list(styles.STYLES)
    assert {name: list(rows) for name, rows in figures["truths"].items()} == {
        name: list(experiments) for name, experiments in truths.GROUPS.items()
    }
    for rows in figures["stopping"].values():
        assert set(map(int, rows["grid"])) <= {*stopping.GRID, 400}
    assert stored("real-pictures")["figures"]["bars"] == BARS["real"]


@pytest.mark.slow
def test_a_lora_catches_a_style_and_not_the_things_in_it(tmp_path: Path) -> None:
    figures = measured(
        "styles", tmp_path, "--styles", "blueprint", "--methods", "lora", "--named", "4"
    )
    ways, bars = figures["blueprint"], BARS["styles"]["lora"]
    lora = ways["lora"]
    assert lora["right"]["style"] >= bars["style"]
    assert lora["right"]["class"] >= bars["class"] * ways["base"]["right"]["class"]
    assert lora["leaked"] <= bars["leaked"]
    for scale, caught in lora["caught"].items():
        assert caught > ways["in words"]["caught"][scale], scale
