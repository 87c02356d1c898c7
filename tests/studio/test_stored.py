"""Whatever is stored in a studio, each page answers and names what is damaged."""

import copy
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pinxit.runs.events import PreviewScores, to_line
from pinxit.studio.jobs import new_numbered_folder
from pinxit.studio.workspace import Workspace
from pinxit.training.step_result import StepResult
from tests.studio.conftest import add_training

RECIPE: dict[str, Any] = {
    "token": "<a>",
    "class_noun": "toy",
    "kind": "object",
    "base": "pocket",
    "method": {"name": "lora"},
    "steps": 4,
}
CONTROL = {"name": "inversion", "preserve": 0.5}
JOBS: dict[str, dict[str, Any]] = {
    "train": {"recipe": RECIPE, "images": "000001", "snapshot": "000002"},
    "texts": {"recipe": RECIPE, "images": "000001"},
    "generate": {
        "request": {"prompt": "a", "seed": 1, "num_images": 2, "image": "1", "control": CONTROL},
        "concepts": ["000001"],
        "strengths": {"000001": 0.5},
    },
    "inspect": {"file": "000001"},
    "convert": {"concept": "000001", "format": "a1111"},
    "compare": {"concepts": ["000001"]},
    "drift": {"concept": "000001"},
}
REPORTS: dict[str, Any] = {
    "generate": {"prompt": {"tokens": ["a"], "cut": ""}},
    "texts": {"texts": [{"text": "a", "tokens": ["a"], "cut": ""}], "images": {}},
    "inspect": {"rows": [["token", "a"]], "token": "a", "has_strength": True},
}
WRONG = (None, [3])
PAGES = ("", "library", "train", "generate", "transfer", "compare", "side", "files", "queue")
OF_A_JOB = ("jobs/{}", "train?like={}", "generate?like={}", "generate?concepts={}", "api/jobs/{}")
OF_A_RUN = (*OF_A_JOB, "side?steps={}", "jobs/{}/zip", "jobs/{}/previews/2", "jobs/{}/untrained/0")


def damaged(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Copies of a table: each key missing, and with values of other types, also inside."""
    for key in value:
        yield {name: other for name, other in value.items() if name != key}
        for wrong in WRONG:
            yield {**value, key: wrong}
        if isinstance(value[key], dict):
            for part in damaged(value[key]):
                yield {**value, key: part}


def store(workspace: Workspace, content: str) -> str:
    """A job with this file; its number."""
    folder = new_numbered_folder(workspace.folder / "queue")
    (folder / "job.json").write_text(content, "latin-1")
    return folder.name


def must_answer(client: TestClient, numbers: list[str], texts: Sequence[str] = OF_A_JOB) -> None:
    """Each page answers; TestClient raises what would be a server error."""
    addresses = [*PAGES, "api/jobs"]
    addresses += [text.format(number) for number in numbers for text in texts]
    for address in addresses:
        assert client.get(f"/{address}").status_code in (200, 400), address


@pytest.mark.parametrize("kind", JOBS)
def test_damaged_jobs_are_named_by_every_page(
    client: TestClient, workspace: Workspace, kind: str
) -> None:
    contents = [json.dumps(value) for value in damaged({"kind": kind, "options": JOBS[kind]})]
    numbers = [store(workspace, content) for content in contents]
    must_answer(client, numbers)
    library, queue = client.get("/library?all=1").text, client.get("/queue").text
    found = [workspace.job(number) for number in numbers]
    assert sum(bool(job.problem) for job in found) >= 5
    for job, content in zip(found, contents, strict=True):
        if job.problem:
            page = client.get(f"/jobs/{job.id}").text
            assert "is damaged: " in page, content
            assert "Try again" not in page
            assert f"/jobs/{job.id}" in library, content
            assert f"/jobs/{job.id}" in queue, content
    waiting = workspace.queue.next_waiting()
    assert waiting is None or not waiting.problem


def test_file_of_a_job_that_is_no_table_is_named(client: TestClient, workspace: Workspace) -> None:
    contents = ("", "{", "null", "[]", "5", '"a"', "\xff\0")
    numbers = [store(workspace, text) for text in contents]
    (workspace.folder / "queue" / numbers[0] / "title").write_bytes(b"\xff")
    must_answer(client, numbers)
    for number in numbers:
        page = client.get(f"/jobs/{number}").text
        assert "is damaged: job.json is not a table" in page
        client.post(f"/jobs/{number}/remove")
        assert number in client.get("/files").text
    assert workspace.queue.all() == []


def test_old_job_without_kind_or_base_is_shown_as_before(workspace: Workspace) -> None:
    recipe = {"token": "<a>", "class_noun": "toy", "method": "lora"}
    job = workspace.queue.add("train", {"recipe": recipe})
    assert job.state == "waiting"
    expected = {**recipe, "kind": "object", "base": "pocket", "method": {"name": "lora"}}
    assert job.options["recipe"] == expected


def test_damaged_results_and_reports_are_named(client: TestClient, workspace: Workspace) -> None:
    results = ["", "[]", "{}", '{"state": 3}', '{"state": "running"}', '{"state": "failed"}']
    numbers: list[str] = []
    for text in results:
        job = workspace.queue.add("inspect", {})
        (job.folder / "result.json").write_text(text)
        numbers.append(job.id)
        assert job.state == "failed"
    for kind, report in REPORTS.items():
        for content in [*damaged(report), report]:
            job = workspace.queue.add(kind, JOBS[kind])  # pyright: ignore[reportArgumentType]
            (job.folder / "report.json").write_text(json.dumps(content))
            job.finish()
            numbers.append(job.id)
    must_answer(client, numbers)
    assert "result.json cannot be" in client.get(f"/jobs/{numbers[3]}").text.replace(".state", "")
    assert workspace.report(workspace.job(numbers[-1])) == REPORTS["inspect"]


def toml(table: dict[str, Any]) -> str:
    """A table as TOML; nothing is written for None."""
    texts = {name: json.dumps(value) for name, value in table.items() if value is not None}
    texts |= {name: "{}" for name, value in table.items() if isinstance(value, dict)}
    return "".join(f"{name} = {text}\n" for name, text in texts.items())


def test_damaged_runs_are_named_by_every_page(client: TestClient, workspace: Workspace) -> None:
    recipes = ["", "steps = ", "\0", *(toml(recipe) for recipe in damaged(copy.deepcopy(RECIPE)))]
    own = add_training(workspace)
    events = [StepResult(n, 0, (0.0,), (1.0,), 1e-3, 1.0) for n in (1, 2, 3)]
    run = workspace.run_folder(own)
    with (run / "journal.jsonl").open("a") as journal:
        journal.writelines(map(to_line, [*events, PreviewScores(2, None, 0.5, None)]))
        journal.write('{"type": "StepResult"}\nnull\n{\n')
    (run / "previews" / "0000004.png").write_bytes(b"")
    (run / "plain").mkdir()
    (run / "plain" / "a.png").write_bytes(b"")
    terminal = workspace.folder / "runs" / "terminal"
    for number, text in enumerate(recipes):
        (terminal / str(number)).mkdir(parents=True)
        (terminal / str(number) / "recipe.toml").write_text(text)
    jobs = [job for job in workspace.jobs() if not job.is_own]
    assert len(jobs) == len(recipes)
    assert sum(job.kind == "damaged" for job in jobs) > 10
    must_answer(client, [job.id for job in jobs], OF_A_RUN)
    for job in jobs:
        if job.problem:
            assert "is damaged: " in client.get(f"/jobs/{job.id}").text
    for text in recipes:
        (run / "recipe.toml").write_text(text)
        must_answer(client, [own.id], OF_A_RUN)
    (run / "recipe.toml").write_text('steps = "many"\n')
    page = client.get(f"/jobs/{own.id}").text
    assert "recipe is damaged: recipe.toml.steps cannot be &#39;many&#39;" in page


def test_second_process_reads_the_secret_of_the_first(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def slow_lock(_: Path) -> Generator[None]:
        """The lock of a folder, which another process had until it had made the secret."""
        (workspace.folder / "secret").write_text("that of the first")
        yield

    monkeypatch.setattr("pinxit.studio.workspace.waiting_lock", slow_lock)
    assert workspace.secret == b"that of the first"
