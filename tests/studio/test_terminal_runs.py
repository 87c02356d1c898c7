"""Runs of the terminal in the folder `runs` of a studio: shown, used, never written."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pinxit.errors import PinxitError
from pinxit.files.atomic_write import exclusive_lock
from pinxit.runs.events import Preview, RunFailure, to_line
from pinxit.studio.trash import Trash
from pinxit.studio.workspace import Workspace
from tests.studio.conftest import add_training

RECIPE = """
token = "<cat>"
class_noun = "cat"
kind = "object"
base = "pocket"
steps = 4
method = {name = "lora"}
"""


@pytest.fixture
def run(workspace: Workspace, tmp_path: Path) -> Path:
    """A run in another folder, to which a link in the studio leads."""
    job = add_training(workspace)
    folder = tmp_path / "elsewhere" / "my cat"
    folder.parent.mkdir()
    (workspace.folder / "runs" / job.id).rename(folder)
    (folder / "recipe.toml").write_text(RECIPE)
    Trash(workspace).add(job)
    (workspace.folder / "runs" / "terminal").symlink_to(folder.parent)
    return folder


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_of_the_terminal_is_shown_and_used_but_not_changed(
    client: TestClient, workspace: Workspace, run: Path
) -> None:
    before = content_of(run)
    (job,) = workspace.jobs()
    assert (job.kind, job.state, workspace.token(job)) == ("train", "stopped", "<cat>")
    assert "run my cat" in client.get("/library").text
    page = client.get(f"/jobs/{job.id}").text
    assert f"/jobs/{job.id}/previews/4" in page
    assert "Move to the trash" not in page
    assert "Continue" not in page
    for action in ("remove", "stop", "continue", "preview"):
        answer = client.post(f"/jobs/{job.id}/{action}")
        assert (answer.status_code, "only reads it" in answer.text) == (400, True)
    assert client.get(f"/jobs/{job.id}/concept").content == b"tensors"
    client.post("/generate", data={"prompt": "<cat>", "concepts": job.id})
    assert workspace.queue.all()[0].options["concepts"] == [job.id]
    assert content_of(run) == before
    with exclusive_lock(run):
        assert job.state == "running"
        assert "Stop and keep" not in client.get(f"/jobs/{job.id}").text
        assert workspace.queue.next_waiting() == workspace.queue.all()[0]


def test_failed_run_shows_its_error(client: TestClient, workspace: Workspace, run: Path) -> None:
    line = to_line(RunFailure(PinxitError("out of memory", "a smaller batch")))
    with (run / "journal.jsonl").open("a") as journal:
        journal.write(line)
    (job,) = workspace.jobs()
    for address in ("/library", f"/jobs/{job.id}"):
        page = client.get(address).text
        assert "out of memory" in page
        assert "a smaller batch" in page


def test_log_of_a_foreign_run_leads_nowhere_else(
    client: TestClient, workspace: Workspace, run: Path
) -> None:
    line = to_line(Preview(9, Path("x.png"), 0)).replace("x.png", "../../../secret.png")
    with (run / "journal.jsonl").open("a") as journal:
        journal.write(line)
    (run.parent.parent / "secret.png").write_bytes((run / "previews" / "0000002.png").read_bytes())
    (job,) = workspace.jobs()
    assert client.get(f"/jobs/{job.id}/previews/9").status_code == 400
    assert client.get("/jobs/my cat").status_code == 400
