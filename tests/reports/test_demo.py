"""The demo, whole, on a base that knows nothing: what it writes, and that it can be stopped."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit.concepts.read import read_concept
from pinxit.errors import RunError
from pinxit.pocket.eyes import Eyes
from pinxit.reports.demo import DemoSettings, run_demo
from pinxit.reports.demo.chapters import STYLE_TOKEN, SUBJECT_TOKEN
from tests.pages import must_be_well_formed

Told = list[tuple[str, int, int]]


def settings(base: Path, *, full: bool = False) -> DemoSettings:
    torch.manual_seed(0)
    eyes = Eyes().requires_grad_(False).eval()
    small = {"steps": 2, "class_images": 8, "sampling_steps": 1, "num_images": 1}
    return DemoSettings(str(base), **small, eyes=eyes, full=full)


@pytest.fixture(scope="module")
def demo(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Told]:
    out = tmp_path_factory.mktemp("demo") / "out"
    told: Told = []

    def tell(task: str, done: int, total: int, _note: str = "") -> None:
        told.append((task, done, total))

    with pytest.MonkeyPatch.context() as patch:
        # What the plot shows is judged by pocket's eyes, not by what is on the hub.
        patch.setattr("pinxit.evaluation.judge.uses_pocket_vocabulary", lambda _: True)
        scores = run_demo(out, tell, settings(nano, full=True))
    return out, scores, told


@pytest.mark.long
def test_the_report_has_everything_in_it(demo: tuple[Path, dict[str, Any], Told]) -> None:
    page = (demo[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 5 + 6 * 3 + 5 + 6 * 3 + 4 * 3
    assert page.count("<svg") == 4 + 1
    assert not re.search(r"<script|<link|https?:|@import|\$\w", page)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]+)', page))
    assert "&lt;mydog&gt;" in page
    assert len(page) < 2_000_000


@pytest.mark.long
def test_the_report_is_well_formed(demo: tuple[Path, dict[str, Any], Told]) -> None:
    must_be_well_formed((demo[0] / "report.html").read_text(encoding="utf-8"))


@pytest.mark.long
def test_the_scores_are_plain_and_whole(demo: tuple[Path, dict[str, Any], Told]) -> None:
    scores = json.loads(json.dumps(demo[1], allow_nan=False))
    assert set(scores["subject"]) == {"base", "textual-inversion", "dreambooth"}
    assert set(scores["style"]) == {"base", "textual-inversion", "lora"}
    for column in scores["subject"].values():
        assert set(column["likeness"]) == {"likeness", "hidden"}
        assert set(column["right"]) == {"class", "background", "style", "all"}
        assert column["pictures"] == 6
    assert Path(scores["report"]).is_file()


@pytest.mark.long
def test_the_runs_can_be_painted_with(demo: tuple[Path, dict[str, Any], Told]) -> None:
    tokens = {read_concept(run).token for run in (demo[0] / "runs").iterdir()}
    assert tokens == {SUBJECT_TOKEN, STYLE_TOKEN}


@pytest.mark.long
def test_every_task_is_told_to_its_end(demo: tuple[Path, dict[str, Any], Told]) -> None:
    last = {task: (done, total) for task, done, total in demo[2]}
    assert (
        len(last) == 6 + 4 + 1 + 4 + 11
    )  # four runs encode their pictures; the rest is the full demo's
    assert all(done == total for done, total in last.values())


@pytest.mark.long
def test_a_demo_again_learns_nothing_twice(
    demo: tuple[Path, dict[str, Any], Told], nano: Path
) -> None:
    told: list[str] = []
    again: Any = run_demo(demo[0], lambda task, *_, **__: told.append(task), settings(nano))
    assert not [task for task in told if " of <" in task and "class images" not in task]
    assert again["style"]["base"]["likeness"] == demo[1]["style"]["base"]["likeness"]


def test_a_folder_with_something_else_is_left_alone(nano: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError, match="was not made by pinxit demo"):
        run_demo(tmp_path, lambda *_, **__: None, settings(nano))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "runs"]
