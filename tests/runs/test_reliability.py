"""Nothing saved is lost, and a run that goes on is the same run: kills, crashes, faults, damage."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

# What each part must try, and find none of.
ASKED: dict[str, list[str]] = {
    "kills": ["kill", "--kills", "20"],
    "stops and faults": ["reliability", "stops", "faults"],
    "the rest": ["reliability", "crashes", "runs", "flips", "numbers"],
}
NEVER = ("lost", "differing", "silent restarts", "failed", "unreported", "unseen", "false alarms")
ENOUGH = {
    "kills": 20,
    "stops": 2 * 29 * 2,
    "states": 800,
    "crashes": 200,
    "errors": 100,
    "in the rest": 20_000,
    "stages": 10,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The figures of all parts, of a process each."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", f"lab.reliability.{tool}", *words],
            cwd=ROOT,
            env=alone,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tool, *words in ASKED.values()
    ]
    said = [process.communicate()[0] for process in begun]
    assert [process.returncode for process in begun] == [0] * len(begun)
    kills, *parts = (json.loads(text.splitlines()[-1]) for text in said)
    return {"kill": kills} | {name: part for some in parts for name, part in some.items()}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["kill", "stops", "crashes", "runs", "faults", "flips", "numbers"])
def test_nothing_is_lost(found: dict[str, Any], part: str) -> None:
    figures = found[part]
    assert {name: figures[name] for name in NEVER if figures.get(name)} == {}
    assert {name: figures[name] for name in ENOUGH if figures.get(name, 10**6) < ENOUGH[name]} == {}


@pytest.mark.slow
def test_what_goes_wrong_is_mended_or_reported(found: dict[str, Any]) -> None:
    numbers, faults = found["numbers"], found["faults"]
    assert numbers["mended"] == numbers["reported"] == numbers["stages"]
    assert numbers["saved broken"] == 0
    assert faults["reported"] == faults["full disks"] > 30
