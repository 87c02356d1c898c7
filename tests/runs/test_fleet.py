"""Many subjects by many workers: the same results as in one process, whatever dies on the way."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image

from pinxit.cli import main
from pinxit.errors import ModelError, RequestError, RunError
from pinxit.files.text import read_table
from pinxit.models.model import Model
from pinxit.runs import fleet_worker
from pinxit.runs.engines.ray import check_reachable, connection_error
from pinxit.runs.events import RunFailure
from pinxit.runs.fleet import Engine, FleetEvent, FleetOptions, prepare_folder, train_fleet
from pinxit.runs.fleet_worker import Done, Ended, Message, Setup, Status, Task
from pinxit.runs.groups import GroupMember
from pinxit.runs.many import RunGroup, train_many
from pinxit.runs.reader import read_run
from pinxit.runs.store import Store
from tests.noisy_subjects import noisy_subjects
from tests.seeing import save_seeing

NAMES = ("ape", "bee", "cow", "dog", "eel")


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    return noisy_subjects(tmp_path / "subjects", NAMES, 1)


@pytest.fixture
def group(subjects: Path, nano: Path) -> RunGroup:
    """Five subjects in batches of two or three."""
    common = {
        "method": "textual-inversion",
        "base": str(nano),
        "class_noun": "toy",
        "steps": 6,
        "batch_size": 1,
        "checkpoint_every": 2,
        "preview_every": 0,
    }
    return RunGroup.from_table(subjects, common, 3)


def trained_here(model: Model, group: RunGroup, folder: Path) -> Path:
    group.create(folder)
    for _ in train_many(model, list(group.runs(folder).values()), group.max_concepts_per_batch):
        pass
    return folder


def events_of(group: RunGroup, folder: Path, engine: Engine, **options: Any) -> list[FleetEvent]:
    prepare_folder(folder, group)
    chosen = FleetOptions.model_validate(options)
    return list(train_fleet(engine, group, folder, chosen))


def local(folder: Path) -> Engine:
    return FleetOptions().open(Setup(folder))


def errors(events: Iterable[FleetEvent]) -> dict[str, str]:
    ends = [event[1] for event in events if not isinstance(event, int)]
    return {end.name: str(end.error) for end in ends if isinstance(end, Ended) and end.error}


def differing(one: Path, other: Path, names: Iterable[str] = NAMES) -> list[str]:
    """The subjects whose concept or last checkpoint is not the same to the bit."""

    def content(folder: Path) -> list[bytes]:
        files = [folder / "concept.safetensors", max((folder / "checkpoints").iterdir())]
        return [file.read_bytes() for file in files]

    return [name for name in names if content(one / name) != content(other / name)]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_workers_give_the_result_of_one_process_after_a_kill(
    engine: str, model: Model, group: RunGroup, subjects: Path, tmp_path: Path
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    (subjects / "bee" / "0.png").write_bytes(b"no image")
    # So many that no worker ends before the first message of one has arrived.
    recipes = {n: one.model_copy(update={"steps": 120}) for n, one in group.subjects.items()}
    group = group.model_copy(update={"subjects": recipes})
    here, folder = trained_here(model, group, tmp_path / "here"), tmp_path / "out"
    prepare_folder(folder, group)
    options = FleetOptions(engine=engine, workers=2)
    killed, events = 0, list[FleetEvent]()
    for event in train_fleet(options.open(Setup(folder, "cpu", 1)), group, folder, options):
        events.append(event)
        status = event[1] if isinstance(event, tuple) else None
        if not killed and isinstance(status, Status) and status.total:
            killed = kill_worker()
    assert (0, None) in events or (1, None) in events
    assert list(errors(events)) == ["bee"]
    assert differing(here, folder, [name for name in NAMES if name != "bee"]) == []


# What Ray 2.60 raises: without a token, and with one that the cluster refuses.
_ADVICE = "Ensure that the token for the cluster is available in a local file"
_REFUSED = f"""Failed to connect to GCS. Last connection error: Traceback (most recent call last):
ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: the token is incorrect. {_ADVICE}
"""


class AuthenticationError(Exception):
    """As Ray's."""


@pytest.mark.parametrize(
    ("error", "cause", "reason", "hint"),
    [
        (
            AuthenticationError(f"no token was found. {_ADVICE}"),
            None,
            "no token was found",
            "TOKEN",
        ),
        (ConnectionError("failed"), RuntimeError(_REFUSED), "the token is incorrect", "TOKEN"),
        (ConnectionError("failed"), RuntimeError("timeout"), "failed", "--address"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_told_in_one_sentence(
    error: Exception, cause: Exception | None, reason: str, hint: str
) -> None:
    error.__cause__ = cause
    raised = connection_error("10.0.0.1:6379", error)
    assert raised.message == f"Ray cannot be used at 10.0.0.1:6379: {reason}"
    assert raised.hint and hint.lower() in raised.hint.lower()


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_reachable(address)
    with pytest.raises(RunError, match=f"at {address}: .*refused"):
        FleetOptions(engine="ray", address=address).open(Setup(Path()))


def kill_worker() -> int:
    """Kill one of the processes that have a base model open."""
    workers = [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if {"ray::_Actor", "--multiprocessing-fork"} & {w.split(".")[0] for w in process.cmdline()}
    ]
    os.kill(workers[0], signal.SIGKILL)
    return workers[0]


@pytest.mark.long
@pytest.mark.parametrize("saved", ["0000006", "0000004", None])
def test_a_group_killed_while_saving_continues_at_a_common_step(
    saved: str | None, model: Model, group: RunGroup, tmp_path: Path
) -> None:
    here, folder = trained_here(model, group, tmp_path / "here"), tmp_path / "out"
    first = events_of(group, folder, local(folder))
    assert sum(event for event in first if isinstance(event, int)) == len(NAMES)
    assert differing(here, folder) == []
    # One subject lags behind the others of its batch, as if the process had been killed earlier.
    behind = folder / "cow"
    for file in (behind / "checkpoints").iterdir():
        if saved is None or file.stem > saved:
            file.unlink()
    if saved != "0000006":
        (behind / "concept.safetensors").unlink()
    assert errors(events_of(group, folder, local(folder))) == {}
    assert differing(here, folder) == []
    # The same batches as before, not the unfinished one alone.
    assert json.loads((folder / "groups.json").read_text())["groups"] == [
        [name.name for name in names] for names in groups_of(model, group, tmp_path / "other")
    ]


def groups_of(model: Model, group: RunGroup, folder: Path) -> Iterable[Iterable[Path]]:
    events = train_many(model, list(group.runs(folder).values()), group.max_concepts_per_batch)
    return next(event.groups for event in events if not isinstance(event, tuple))


def test_a_corrected_subject_changes_no_other(
    group: RunGroup, subjects: Path, tmp_path: Path
) -> None:
    good = (subjects / "bee" / "0.png").read_bytes()
    (subjects / "bee" / "0.png").write_bytes(b"no image")
    folder = tmp_path / "out"
    assert list(errors(events_of(group, folder, local(folder)))) == ["bee"]
    before = {name: (folder / name / "journal.jsonl").read_bytes() for name in NAMES[2:]}
    (subjects / "bee" / "0.png").write_bytes(good)
    assert errors(events_of(group, folder, local(folder))) == {}
    assert read_run(folder / "bee").is_done
    assert {name: (folder / name / "journal.jsonl").read_bytes() for name in before} == before


class Fake:
    """An engine that trains nothing; tasks with a subject in `deadly` end the worker."""

    workers = 2

    def __init__(self, folder: Path, *deadly: str) -> None:
        self.folder = folder
        self.deadly = deadly
        self.tasks: dict[int, Task] = {}
        self.trained: list[tuple[str, ...]] = []

    def send(self, number: int, task: Task) -> None:
        self.tasks[number] = task

    def receive(self) -> Iterator[tuple[int, Message | None]]:
        for number, task in list(self.tasks.items()):
            del self.tasks[number]
            yield from ((number, message) for message in self.messages(task))

    def messages(self, task: Task) -> Iterator[Message | None]:
        if not task.survey and set(self.deadly) & set(task.subjects):
            yield None
            return
        if not task.survey:
            self.trained.append(tuple(task.subjects))
        for name, recipe in task.subjects.items():
            member = GroupMember(self.folder / name, recipe.token, "x", True, 1, name, (), False)
            yield member if task.survey else Ended(name)
        yield Done()

    def close(self) -> None: ...


def test_a_subject_that_kills_its_worker_is_left_out(group: RunGroup, tmp_path: Path) -> None:
    engine = Fake(tmp_path / "out", "bee")
    prepare_folder(tmp_path / "out", group)
    (tmp_path / "out" / "bee").mkdir()
    (tmp_path / "out" / "bee" / "journal.jsonl").write_text("")
    failures = errors(events_of(group, tmp_path / "out", engine))
    assert list(failures) == ["bee"]
    assert "its worker has died 3 times" in failures["bee"]
    assert sorted(name for names in engine.trained for name in names) == sorted({*NAMES} - {"bee"})
    log = (tmp_path / "out" / "bee" / "journal.jsonl").read_text()
    assert RunFailure.__name__ in log


def test_workers_that_cannot_work_are_an_error(group: RunGroup, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="as soon as they start"):
        events_of(group, tmp_path / "out", Fake(tmp_path / "out", *NAMES))
    broken = group.subjects["ape"].model_copy(update={"base": str(tmp_path / "none")})
    broken_group = group.model_copy(update={"subjects": {"ape": broken}})
    with pytest.raises(ModelError):
        events_of(broken_group, tmp_path / "none", local(tmp_path / "none"))


def test_shards_train_each_group_once(group: RunGroup, tmp_path: Path) -> None:
    small = group.model_copy(update={"max_concepts_per_batch": 1})
    engines = [Fake(tmp_path / "out") for _ in range(2)]
    for number, engine in enumerate(engines, 1):
        events_of(small, tmp_path / "out", engine, shard=f"{number}/2")
    parts = [[names[0] for names in engine.trained] for engine in engines]
    assert [len(part) for part in parts] == [3, 2]
    assert sorted(parts[0] + parts[1]) == sorted(NAMES)
    for wrong in ("0/2", "3/2", "2", "a/b", "1/0"):
        with pytest.raises(RequestError, match="--shard"):
            FleetOptions(shard=wrong)


def test_another_command_does_not_continue_a_folder(group: RunGroup, tmp_path: Path) -> None:
    prepare_folder(tmp_path / "out", group)
    prepare_folder(tmp_path / "out", group)
    other = group.model_copy(update={"max_concepts_per_batch": 2})
    with pytest.raises(RunError, match="other subjects or options"):
        prepare_folder(tmp_path / "out", other)
    (tmp_path / "out" / "groups.json").write_text('{"groups": [["nobody"]]}')
    with pytest.raises(RunError, match="is not valid"):
        events_of(group, tmp_path / "out", local(tmp_path / "out"))


def test_the_command_prints_json_lines(
    subjects: Path, nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (subjects / "bee" / "0.png").write_bytes(b"no image")
    options = f"--base={nano} --class-noun=toy --steps=2 --batch-size=1 --preview-every=0 --json"
    words = ["train-many", "textual-inversion", str(subjects), *options.split()]
    assert main([*words, f"--out={tmp_path / 'out'}"]) == 2
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    trained = {line["subject"]: line["path"] for line in lines if line["type"] == "trained"}
    assert set(trained) == {*NAMES} - {"bee"}
    assert all(Path(concept).is_file() for concept in trained.values())
    assert [line["subject"] for line in lines if line["type"] == "left_out"] == ["bee"]
    assert "1 of 5 subjects were not trained: bee" in err
    progress = next(line for line in lines if line["type"] == "progress")
    assert {"done", "total", "left out", "restarts", "workers"} <= set(progress)
    assert lines[-1]["type"] == "progress"
    assert lines[-1]["done"] == lines[-1]["total"] == 5
    assert lines[-1]["workers"] == [{"done": 0, "total": 0, "note": "waiting"}]
    assert main(["train-many", f"--resume={tmp_path / 'out'}", "--engine=local"]) == 2
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main([*words, f"--out={tmp_path / 'out'}", "--engine=proceses"]) == 2
    assert "did you mean processes?" in capsys.readouterr().err


def test_images_of_all_concepts_are_those_of_generate(
    group: RunGroup, nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = group.model_copy(update={"subjects": dict(list(group.subjects.items())[:2])})
    folder, out = tmp_path / "runs", tmp_path / "images"
    assert errors(events_of(two, folder, local(folder))) == {}
    words = ["generate-many", str(folder), "a photo of {}", "--steps=1", f"--out={out}"]
    assert main([*words, "--num-images=2"]) == 0
    assert sorted(capsys.readouterr().out.split()) == [str(out / "ape"), str(out / "bee")]
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        *("ape/0.png", "ape/1.png", "bee/0.png", "bee/1.png")
    }
    alone = [f"--base={nano}", f"--concept={folder / 'bee'}", "--seed=1", "--num-images=1"]
    one = tmp_path / "one.png"
    assert main(["generate", "a photo of <bee>", *alone, "--steps=1", f"--out={one}"]) == 0
    assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(out / "bee/1.png")))
    (out / "ape" / "0.png").unlink()
    (folder / "ape" / "concept.safetensors").unlink()
    before = (out / "bee" / "1.png").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*words, "--num-images=2"]) == 2
    output = capsys.readouterr()
    assert "1 of 2 subjects were not generated: ape" in output.err
    assert output.out.split() == [str(out / "bee")]
    assert (out / "bee" / "1.png").stat().st_mtime_ns == before


@pytest.mark.long
def test_evaluations_of_all_concepts_are_those_of_evaluate(
    group: RunGroup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = group.model_copy(update={"subjects": dict(list(group.subjects.items())[:2])})
    folder, out, alone = tmp_path / "runs", tmp_path / "out", tmp_path / "alone"
    assert errors(events_of(two, folder, local(folder))) == {}
    options = ["--prompts=pocket-objects", "--num-images=1", "--steps=1"]
    for kind in ("dino", "clip"):
        (tmp_path / kind).mkdir()
        save_seeing(kind, tmp_path / kind)
        options += [f"--{kind}-model", str(tmp_path / kind)]
    words = ["evaluate-many", str(folder), *options, f"--out={out}"]
    (folder / "ape" / "concept.safetensors").rename(tmp_path / "later")
    assert main(words) == 2
    output = capsys.readouterr()
    assert "1 of 2 subjects were not evaluated: ape" in output.err
    assert output.out.split() == [str(out / "bee" / "report.html")]
    (tmp_path / "later").rename(folder / "ape" / "concept.safetensors")
    before = (out / "bee" / "metrics.csv").stat().st_mtime_ns
    assert main(words) == 0
    assert (out / "bee" / "metrics.csv").stat().st_mtime_ns == before
    assert main(["evaluate", str(folder / "bee"), *options, f"--out={alone}"]) == 0
    for file in ("report.html", "metrics.csv"):
        assert (out / "bee" / file).read_bytes() == (alone / file).read_bytes()
    images = [path.name for path in (alone / "pictures").iterdir()]
    of_bee = [*(out / "bee" / "pictures").iterdir(), *(out / ".base").iterdir()]
    assert sorted(images) == sorted(path.name for path in of_bee)
    rows = {row["name"]: row for row in read_table(out / "metrics.csv")}
    assert list(rows) == ["ape", "bee"]
    metrics = json.loads((alone / "metrics.json").read_text())["groups"][0]["runs"]["bee"]
    assert float(rows["bee"]["prompt"]) == metrics["figures"]["prompt"]["value"]


def other_machine(model: Model, group: RunGroup, tmp_path: Path, url: str) -> list[str]:
    """Continue in another folder what is in a store; the subjects that differ from one process."""
    here, folder = trained_here(model, group, tmp_path / "here"), tmp_path / "second"
    prepare_folder(folder, group, url)
    options = FleetOptions(store=url)
    assert errors(train_fleet(options.open(Setup(folder)), group, folder, options)) == {}
    return differing(here, folder)


@pytest.mark.long
def test_runs_in_object_storage_continue_on_another_machine(
    model: Model, group: RunGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_worker, "_STATUS_EVERY", 0.0)
    url, first = f"memory://{tmp_path.name}", tmp_path / "first"
    prepare_folder(first, group, url)
    options = FleetOptions(store=url)
    with closing(train_fleet(options.open(Setup(first)), group, first, options)) as events:
        while not list(first.glob("*/checkpoints/0000002.safetensors")):
            next(events)
    files = fsspec.filesystem("memory").find(url)
    assert any(file.endswith("groups.json") for file in files)
    saved = {Path(file).stem for file in files if "/checkpoints/" in file}
    assert "0000002" in saved and "0000006" not in saved
    assert other_machine(model, group, tmp_path, url) == []
    # What is done is not trained again, and later checkpoints on a machine are not replaced.
    store = Store(url, tmp_path / "second")
    later = tmp_path / "second" / "ape" / "checkpoints" / "0000009.safetensors"
    later.write_bytes(b"later")
    store.fetch("ape")
    assert later.is_file()
    store.put("ape")
    later.unlink()
    store.put("ape")
    assert not [f for f in fsspec.filesystem("memory").find(url) if f.endswith(later.name)]


@pytest.mark.long
def test_a_lost_machine_loses_what_is_after_the_last_checkpoint(
    model: Model, group: RunGroup, tmp_path: Path
) -> None:
    url, first = (tmp_path / "bucket").as_uri(), tmp_path / "first"
    prepare_folder(first, group, url)
    options = FleetOptions(store=url, engine="processes", workers=1)
    engine = options.open(Setup(first, "cpu", 1))
    for event in train_fleet(engine, group, first, options):
        status = event[1] if isinstance(event, tuple) else None
        if isinstance(status, Status) and 6 < status.done < status.total:
            kill_worker()
            break
    assert list((tmp_path / "bucket").rglob("checkpoints/*"))
    shutil.rmtree(first)
    assert other_machine(model, group, tmp_path, url) == []


def test_an_unknown_store_is_an_error(group: RunGroup, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--store nothing://here cannot be used"):
        prepare_folder(tmp_path / "out", group, "nothing://here")
