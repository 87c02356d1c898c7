"""The whole demo on a random base model: what it writes, and that it can continue."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pinxit.concepts.read import read_concept
from pinxit.errors import RunError
from pinxit.progress import Progress
from pinxit.reports.demo import STYLE_TOKEN, SUBJECT_TOKEN, DemoSettings, run_demo
from tests.pages import must_be_well_formed

Demo = tuple[Path, dict[str, Any], list[Progress]]


def settings(base: Path) -> DemoSettings:
    small = {"steps": 2, "sampling_steps": 1, "num_images": 1}
    return DemoSettings(str(base), **small, full=True)


@pytest.fixture(scope="module")
def patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # Images are judged by pocket's classifier, not by networks from the hub.
        patch.setattr("pinxit.evaluation.judge.uses_pocket_vocabulary", lambda _: True)
        yield patch


@pytest.fixture(scope="module")
def demo(nano: Path, patch: object, tmp_path_factory: pytest.TempPathFactory) -> Demo:  # noqa: ARG001
    out = tmp_path_factory.mktemp("demo") / "out"
    events: list[Progress] = []
    metrics = run_demo(out, events.append, settings(nano))
    return out, metrics, events


@pytest.mark.long
def test_the_report_is_complete_and_needs_no_other_file(demo: Demo) -> None:
    page = (demo[0] / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 * (5 + 6 * 3) + 4 * 3
    assert page.count("<svg") == 1 + 4
    assert not re.search(r"<script|<link|https?:|@import|{{|{%", page)
    assert all(source.startswith("data:image/png") for source in re.findall(r'src="([^"]+)', page))
    assert "&lt;mydog&gt;" in page
    assert "Style transfer" in page
    assert len(page) < 2_000_000
    must_be_well_formed(page)


@pytest.mark.long
def test_all_metrics_are_returned(demo: Demo) -> None:
    metrics = json.loads(json.dumps(demo[1], allow_nan=False))
    for name, token in (("subject", SUBJECT_TOKEN), ("style", STYLE_TOKEN)):
        assert list(metrics[name]["runs"]) == [f"{token}, textual inversion", f"{token}, LoRA"]
        assert metrics[name]["pictures"] == 6
        real, lookalikes, _ = metrics[name]["anchors"].values()
        assert real["likeness"]["value"] == pytest.approx(1)
        assert lookalikes["likeness"]["value"] == pytest.approx(0, abs=1e-6)
    assert Path(metrics["report"]).is_file()


@pytest.mark.long
def test_the_runs_are_concepts(demo: Demo) -> None:
    tokens = {read_concept(run).token for run in (demo[0] / "runs").iterdir()}
    assert tokens == {SUBJECT_TOKEN, STYLE_TOKEN}


@pytest.mark.long
def test_each_task_is_reported_to_its_end(demo: Demo) -> None:
    last = {event.task: event for event in demo[2]}
    assert {"lora of <mydog>", "transferring images to the style"} < set(last)
    assert all(event.done == event.total for event in last.values())


@pytest.mark.long
def test_a_second_demo_trains_and_generates_nothing_again(
    demo: Demo, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Generating now raises a TypeError.
    monkeypatch.setattr("pinxit.generation.image_cache.sample_images", None)
    events: list[Progress] = []
    again = run_demo(demo[0], events.append, settings(nano))
    assert not [event for event in events if event.task.startswith("lora of") and event.note]
    assert again["subject"] == demo[1]["subject"]


def test_a_folder_with_other_files_is_not_changed(nano: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError, match="was not made by pinxit demo"):
        run_demo(tmp_path, lambda _: None, settings(nano))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "runs"]
