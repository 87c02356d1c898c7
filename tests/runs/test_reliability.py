"""Saved steps are never lost and resumed runs are bit-identical: kills, crashes, faults, damage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# The arguments of each process.
COMMANDS: dict[str, list[str]] = {
    "kills": ["kill", "--kills", "20"],
    "stops and faults": ["reliability", "stops", "faults"],
    "the rest": ["reliability", "crashes", "runs", "flips", "numbers"],
}
MUST_BE_ZERO = (
    "lost",
    "differing",
    "silent restarts",
    "failed",
    "unreported",
    "unseen",
    "false alarms",
)
MINIMUM = {
    "kills": 20,
    "stops": 2 * 29 * 2,
    "states": 800,
    "crashes": 200,
    "errors": 100,
    "in the rest": 20_000,
    "stages": 10,
}


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The figures of all parts, from one process per command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"lab.reliability.{tool}", *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tool, *options in COMMANDS.values()
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    kills, *parts = (json.loads(text.splitlines()[-1]) for text in outputs)
    return {"kill": kills} | {name: part for figures in parts for name, part in figures.items()}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kill", "stops", "crashes", "runs", "faults", "flips", "numbers"])
def test_every_line_is_preserved(results: dict[str, Any], part: str) -> None:
    figures = results[part]
    assert {name: figures[name] for name in MUST_BE_ZERO if figures.get(name)} == {}
    assert {
        name: figures[name] for name in MINIMUM if figures.get(name, 10**6) < MINIMUM[name]
    } == {}


@pytest.mark.slow
def test_errors_are_repaired_or_reported(results: dict[str, Any]) -> None:
    numbers, faults = results["numbers"], results["faults"]
    assert numbers["mended"] == numbers["reported"] == numbers["stages"]
    assert numbers["saved broken"] == 0
    assert faults["reported"] == faults["full disks"] > 30
