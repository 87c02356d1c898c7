"""What must be reached, measured by the commands that the docs quote; the bars are in one file."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"
BARS = tomllib.loads((TOOLS / "bars.toml").read_text(encoding="utf-8"))
SUBJECTS = 2  # of the ten


def figures(tool: str, *words: str) -> Any:
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *words]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("subjects")
    return figures("subjects", "--subjects", str(SUBJECTS), "--count", "1", "--work", str(work))


@pytest.mark.slow
@pytest.mark.parametrize("method", list(BARS["subjects"]))
def test_a_method_keeps_what_it_reached(subjects: Any, method: str) -> None:
    found = subjects[method]
    for share in found["share"].values():
        assert share["value"] >= BARS["kept"]["share"]
    assert found["background_of_base"] >= BARS["kept"]["background"]
