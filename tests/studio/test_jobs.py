"""Jobs are found again whatever dies, and the worker continues where another one was killed."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from pinxit.errors import RequestError, RunError
from pinxit.files.atomic_write import exclusive_lock
from pinxit.generation.request import GenerationRequest
from pinxit.progress import Progress
from pinxit.studio.jobs import MAX_ATTEMPTS, JobQueue
from pinxit.studio.schema import all_options
from pinxit.studio.server import _Supervisor
from pinxit.studio.worker import Worker
from pinxit.studio.workspace import TOKENS, Workspace


def train_recipe(nano: Path, pictures: Path, **changes: Any) -> dict[str, Any]:
    common = {"images": str(pictures), "token": "<toy>", "class_noun": "toy", "base": str(nano)}
    times = {"steps": 12, "checkpoint_every": 2, "preview_every": 0, "batch_size": 1}
    return {"recipe": {"method": "textual-inversion", **common, **times, **changes}}


def test_states_follow_from_files_and_lock(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    options = {"request": {"prompt": "a"}, "concepts": []}
    job = queue.add("generate", options)
    assert job.state == "waiting"
    with exclusive_lock(job.folder):
        assert job.state == "running"
        job.request_stop()
        assert job.state == "stopping"
    assert job.state == "stopped"
    job.requeue()
    assert job.state == "waiting"
    job.finish(RunError("too hot", "cool it"))
    assert (job.state, job.result) == (
        "failed",
        {"state": "failed", "message": "too hot", "hint": "cool it"},
    )
    assert JobQueue(tmp_path).get(job.id).options == options


def test_half_written_job_is_no_job(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    (tmp_path / "000001").mkdir()
    assert queue.all() == []
    assert queue.add("inspect", {}).id == "000002"
    with pytest.raises(RequestError):
        queue.get("000001")


def test_short_jobs_go_before_trainings(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    training = queue.add("train", train_recipe(tmp_path, tmp_path))
    short = queue.add("inspect", {})
    with queue.claim() as first:
        assert first == short
        with JobQueue(tmp_path).claim() as second:
            assert second == training
            with JobQueue(tmp_path).claim() as third:
                assert third is None
    short.request_stop()
    with queue.claim() as after:
        assert after == training


def test_job_that_kills_its_worker_is_given_up(tmp_path: Path) -> None:
    job = JobQueue(tmp_path).add("inspect", {})
    for _ in range(MAX_ATTEMPTS):
        job.count_attempt(0)
    with pytest.raises(RunError, match="5 times"):
        job.count_attempt(0)
    job.count_attempt(1)  # progress: it may go on


def test_one_device_has_one_worker_by_whatever_name(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pinxit.models.device.accelerator", lambda: None)
    first = Worker(workspace, "auto", print)
    assert first.device == "cpu"
    job = workspace.queue.add("inspect", {"file": ""})
    seen = list[str]()

    def look(text: str) -> None:
        if text.startswith("job"):
            with pytest.raises(RunError, match="another process"):
                Worker(workspace, "cpu:0", print).run(until_empty=True)
            seen.append(str(workspace.workers()))

    first.say = look
    first.run(until_empty=True)
    assert job.state == "failed"
    assert seen[0] == "{'cpu': True}"
    assert workspace.workers() == {"cpu": False}
    assert workspace.device_of("auto") == "cpu"


def test_worker_trains_generates_and_pauses_for_short_jobs(
    workspace: Workspace, nano: Path, pictures: Path
) -> None:
    training = workspace.queue.add("train", train_recipe(nano, pictures))
    request = {"prompt": "a photo of <toy>", "num_images": 2, "steps": 2, "base": str(nano)}
    Worker(workspace, "cpu", print).run(until_empty=True)
    generation = workspace.queue.add("generate", {"request": request, "concepts": [training.id]})
    Worker(workspace, "cpu", print).run(until_empty=True)
    assert training.state == generation.state == "done"
    cost = workspace.cost(str(nano), "textual-inversion")
    assert re.fullmatch(r"last time: 12 steps in .+, .+ of memory", cost)
    assert json.loads((training.folder / TOKENS).read_text()) == {"<toy>": ["<toy>", 1]}
    assert [path.name for path in workspace.generated(generation)] == ["0000.png", "0001.png"]
    conversions = [
        workspace.queue.add("convert", {"concept": training.id, "format": name})
        for name in ("a1111", "")  # the usual one
    ]
    Worker(workspace, "cpu", print).run(until_empty=True)
    files = [workspace.concept_file(conversion) for conversion in conversions]
    assert [file and file.suffix for file in files] == [".pt", ".safetensors"]


@pytest.mark.long
def test_strength_of_a_concept_is_used(workspace: Workspace, nano: Path, pictures: Path) -> None:
    quick = {"steps": 1, "method": "lora", "learning_rate": 0.1}
    training = workspace.queue.add("train", train_recipe(nano, pictures, **quick))
    Worker(workspace, "cpu", print).run(until_empty=True)
    request = {"prompt": "a <toy>", "steps": 1, "base": str(nano)}
    images: list[bytes] = []
    for strengths in ({}, {training.id: 1.0}, {training.id: 0.1}):
        options = {"request": request, "concepts": [training.id], "strengths": strengths}
        generation = workspace.queue.add("generate", options)
        Worker(workspace, "cpu", print).run(until_empty=True)
        (path,) = workspace.generated(generation)
        (reference,) = GenerationRequest.from_png(path).concepts  # as the command line stores it
        assert reference.path == workspace.concept_file(training)
        assert reference.strength == strengths.get(training.id, 1.0)
        with Image.open(path) as image:
            images.append(image.tobytes())
    assert images[0] == images[1] != images[2]


def test_tokens_of_a_prompt_are_counted(workspace: Workspace, nano: Path, pictures: Path) -> None:
    training = workspace.queue.add("train", train_recipe(nano, pictures, steps=1))
    Worker(workspace, "cpu", print).run(until_empty=True)
    request = {"prompt": "a <toy> on a table", "steps": 1, "base": str(nano)}
    job = workspace.queue.add("generate", {"request": request, "concepts": [training.id]})
    Worker(workspace, "cpu", print).run(until_empty=True)
    prompt = json.loads((job.folder / "report.json").read_text())["prompt"]
    assert prompt["tokens"][:2] == ["a", "<toy>"]
    assert prompt["windows"][0] == 1
    assert len(prompt["tokens"]) + 2 <= prompt["windows"][1]


def test_texts_and_tokens_are_those_of_the_training(
    workspace: Workspace, nano: Path, pictures: Path
) -> None:
    (pictures / "0.txt").write_text("a toy on a table")
    recipe = train_recipe(nano, pictures)["recipe"]
    recipe["method"] = {"name": "textual-inversion", "captions": True, "num_vectors": 2}
    job = workspace.queue.add("texts", {"recipe": recipe, "images": ""})
    Worker(workspace, "cpu", print).run(until_empty=True)
    report = json.loads((job.folder / "report.json").read_text())
    image = report["images"]["0.png"]
    (text,) = [report["texts"][number] for number in image["texts"]]
    assert (image["caption"], text["text"]) == ("a toy on a table", "a <toy> on a table")
    assert text["tokens"][:3] == ["a", "<toy>", "<toy>"]
    assert "".join(text["tokens"]) == "a<toy><toy>onatable"
    assert len(report["images"]["1.png"]["texts"]) > 1  # no caption: the method's own texts


@pytest.mark.long
def test_preview_on_request_and_prompts_without_the_token(
    workspace: Workspace, nano: Path, pictures: Path
) -> None:
    training = workspace.queue.add("train", train_recipe(nano, pictures, steps=3))
    training.request_preview()
    Worker(workspace, "cpu", print).run(until_empty=True)
    run = workspace.run(training)
    assert run
    assert list(run.previews) == [1]
    assert not training.preview_requested
    drift = workspace.queue.add("drift", {"concept": training.id})
    Worker(workspace, "cpu", print).run(until_empty=True)
    assert drift.state == "done", drift.result
    assert len(workspace.generated(drift)) == 8
    assert workspace.drift(training) == drift


def test_errors_are_shown_with_their_hint(workspace: Workspace, nano: Path) -> None:
    job = workspace.queue.add("train", train_recipe(nano, workspace.folder / "none"))
    Worker(workspace, "cpu", print).run(until_empty=True)
    assert job.state == "failed"
    assert job.result
    assert "there is no folder" in job.result["message"]
    assert job.result["hint"]


def test_error_names_an_opened_file_without_its_path(workspace: Workspace) -> None:
    folder = workspace.new_folder("files")
    (folder / "my old-dog.safetensors").write_bytes(b"x" * 300)
    job = workspace.queue.add("inspect", {"file": folder.name})
    Worker(workspace, "cpu", print).run(until_empty=True)
    assert job.result
    assert job.result["message"].startswith("`my old-dog.safetensors` is not a safetensors file")
    assert job.result["hint"]


def digests(workspace: Workspace, number: str) -> dict[str, str]:
    run = workspace.folder / "runs" / number
    files = [run / "concept.safetensors", *sorted((run / "checkpoints").iterdir())]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.long
def test_killed_workers_lose_nothing(workspace: Workspace, nano: Path, pictures: Path) -> None:
    """A worker is killed at several moments; the last one ends with the bytes of no kill."""
    quiet = workspace.queue.add("train", train_recipe(nano, pictures, steps=60))
    Worker(workspace, "cpu", print).run(until_empty=True)
    killed = workspace.queue.add("train", train_recipe(nano, pictures, steps=60))
    command = [sys.executable, "-m", "pinxit", "worker", str(workspace.folder), "--until-empty"]
    for saved in (2, 12, 24):
        process = subprocess.Popen(command, start_new_session=True)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            run = workspace.run(killed)
            if run and (run.saved_step or 0) >= saved:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert killed.state == "waiting"  # never "running" without a process
    assert subprocess.run(command, check=True).returncode == 0
    assert killed.state == "done"
    assert digests(workspace, killed.id) == digests(workspace, quiet.id)


def test_options_for_forms_are_current() -> None:
    """If this fails: python -m pinxit.studio.schema."""
    assert json.loads(json.dumps(all_options())) == Workspace(Path()).options


def test_no_option_of_a_form_names_a_file_or_something_to_load() -> None:
    options = all_options()
    groups = [options["recipe"], options["request"]]
    groups += [
        part["fields"] for kind in ("methods", "controls") for part in options[kind].values()
    ]
    names = {field["name"] for group in groups for field in group}
    assert not names & {"images", "image", "base", "vae", "weights", "init_image", "mask", "out"}
    texts = {field["name"] for group in groups for field in group if field["input"] == "text"}
    assert texts <= {"negative_prompt", "scheduler", "source_prompt", "rare_token"}


def test_jobs_that_cannot_be_read_do_not_hide_the_others(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path)
    jobs = [queue.add("inspect", {}) for _ in range(4)]
    damaged = [job.folder / "job.json" for job in jobs[:2]]
    damaged[0].write_text("{")
    damaged[1].unlink()
    os.mkfifo(damaged[1])
    (jobs[2].folder / "result.json").symlink_to("/dev/zero")
    read = JobQueue(tmp_path)
    assert [job.state for job in read.all()] == ["failed", "failed", "waiting"]
    assert read.next_waiting() == jobs[3]


@pytest.mark.parametrize("name", ["bases/x", "queue/000001", "runs/000001", "images/000001/.full"])
def test_links_to_folders_in_a_studio_are_refused(name: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "studio")
    workspace.create()
    (tmp_path / "outside" / "inner").mkdir(parents=True)
    runs = workspace.folder / "runs"
    (runs / "own").symlink_to(tmp_path / "outside")  # a run of the terminal
    workspace.create()
    link = workspace.folder / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match=f"{link} is a link"):
        workspace.create()
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["inner"]


def test_a_link_is_not_followed_by_the_log_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "studio")
    workspace.create()
    supervisor = _Supervisor(workspace, "cpu")
    supervisor.folder.mkdir()
    (tmp_path / "mine").write_text("mine")
    (supervisor.folder / "worker.log").symlink_to(tmp_path / "mine")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=1))
    supervisor._start()
    assert (tmp_path / "mine").read_text() == "mine"
    assert (supervisor.folder / "worker.log").is_file()


def test_a_comparison_stops_and_continues(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def evaluate(_runs: object, _out: object, _open: object, report: Any, _: object) -> None:
        calls.append("begins")
        if len(calls) == 1:
            job.request_stop()
        report(Progress("generating", 1, 2))
        calls.append("ends")

    monkeypatch.setattr("pinxit.studio.tasks.evaluate", evaluate)
    job = workspace.queue.add("compare", {"concepts": []})
    Worker(workspace, "cpu", print).run(until_empty=True)
    assert (job.state, calls) == ("stopped", ["begins"])
    job.requeue()
    Worker(workspace, "cpu", print).run(until_empty=True)
    assert (job.state, calls) == ("done", ["begins", "begins", "ends"])
