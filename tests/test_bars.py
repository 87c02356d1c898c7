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
PICTURES = ROOT.parent / "shared" / "seed" / "pictures"
SUBJECTS = 3  # of the ten that docs/figures/subjects.json is about


def figures(tool: str, *words: str) -> Any:
    command = [sys.executable, str(TOOLS / f"{tool}.py"), *words]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("subjects")
    return figures("subjects", "--subjects", str(SUBJECTS), "--work", str(work))


@pytest.mark.slow
@pytest.mark.parametrize("method", list(BARS["subjects"]))
def test_a_method_reaches_its_bars(subjects: Any, method: str) -> None:
    found, bar = subjects[method], BARS["subjects"][method]
    for share in found["share"].values():
        assert share["value"] >= bar["share"]
        assert share["low"] > 0
    assert found["background_of_base"] >= bar["background"]


@pytest.mark.slow
@pytest.mark.skipif(not PICTURES.is_dir(), reason=f"no pictures in {PICTURES}")
def test_real_pictures_are_learned(tmp_path: Path) -> None:
    words = ("--pictures", str(PICTURES), "--work", str(tmp_path))
    found = figures("real_pictures", *words)
    for folder in ("pegasus", "shifu"):
        for method in BARS["subjects"]:
            reached = found[folder][method]
            assert min(reached["nearest"].values()) >= BARS["real"]["nearest"]
            assert reached["colour_distance_of_base"]["together"] <= BARS["real"]["colours"]


def test_the_figures_in_the_docs_are_of_all_ten_subjects() -> None:
    kept = json.loads((ROOT / "docs" / "figures" / "subjects.json").read_text(encoding="utf-8"))
    for method in BARS["subjects"]:
        assert len(kept["figures"][method]["subjects"]) == 10
