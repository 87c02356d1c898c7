"""What a run survives: other processes, moves, signals, torn files, numbers that are none."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from pinxit.cli import main
from pinxit.concepts.concept import Concept
from pinxit.errors import DiskError, FileError, RunError
from pinxit.files import atomic_write
from pinxit.files.atomic_write import (
    alone,
    append,
    mark_ours,
    must_be_ours,
    replace_tensors,
    replace_text,
)
from pinxit.files.safetensors_file import in_pieces, read_safetensors, sealed
from pinxit.generation.generate import Notice, Painted
from pinxit.models.model import Model
from pinxit.runs.checkpoint import newest
from pinxit.runs.journal import Journal
from pinxit.runs.run import Run, teach
from pinxit.training.concept_trainer import DivergedError, Learner
from pinxit.training.optimizer import AdamW
from pinxit.training.recipe import Recipe
from pinxit.training.train import Step


def recipe(pictures: Path, **changed: object) -> Recipe:
    given = {"method": "textual-inversion", "pictures": pictures, "token": "<mytoy>"}
    small = {"class_noun": "toy", "batch_size": 1, "preview_every": 0, "checkpoint_every": 2}
    return Recipe.model_validate({**given, **small, "steps": 4, **changed})


def notices(run: Run, model: Model) -> list[str]:
    return [event.message for event in run.learn(model) if isinstance(event, Notice)]


@pytest.fixture
def child() -> Iterator[list[int]]:
    """Processes that a test has begun; none outlives it."""
    begun: list[int] = []
    yield begun
    for process in begun:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_the_writer_writes_what_the_library_writes() -> None:
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64]
    kinds += [torch.int64, torch.uint8, torch.int16, torch.bool, torch.float8_e5m2]
    for kind in kinds:
        tensors = {"b": torch.ones(3, 5).to(kind), "a": torch.zeros(2).to(kind)}
        tensors |= {"none": torch.zeros(0, 4).to(kind), "one": torch.tensor(1).to(kind)}
        assert b"".join(in_pieces(tensors, {"k": "ü"}, seal=False)) == save(tensors, {"k": "ü"})
    turned = torch.arange(6.0).reshape(2, 3).t()
    assert b"".join(in_pieces({"t": turned}, {}, seal=False)) == save({"t": turned.contiguous()})


def test_no_tensor_is_copied_to_be_written() -> None:
    tensor = torch.rand(1000)
    pieces = list(in_pieces({"t": tensor}, {}, seal=True))
    assert torch.frombuffer(pieces[2], dtype=torch.float32).data_ptr() == tensor.data_ptr()


def test_a_seal_is_seen_by_nobody_and_guards_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    replace_tensors(file, {"t": torch.rand(3)}, {"k": "v"}, seal=True)
    tensors, _ = read_safetensors(file)
    assert list(tensors) == ["t"]
    assert torch.equal(load_file(file)["t"], tensors["t"])
    good = file.read_bytes()
    for at in range(len(good)):
        file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert not sealed(file)
    file.write_bytes(good)
    assert sealed(file)


def test_a_disk_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    replace_tensors(file, {"t": torch.ones(3)}, {}, seal=True)

    class Liar:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def write(self, handle: int, data: memoryview) -> int:
            return os.write(handle, bytes(data).replace(b"\0\0\0@", b"\1\0\0@"))

    monkeypatch.setattr(atomic_write, "os", Liar())
    with pytest.raises(DiskError, match="reads back otherwise"):
        replace_tensors(file, {"t": torch.full((3,), 2.0)}, {}, seal=True)
    assert torch.equal(load_file(file)["t"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [file]


def test_one_process_at_a_time(
    model: Model, pictures: Path, tmp_path: Path, child: list[int]
) -> None:
    run = teach(model, recipe(pictures), tmp_path / "run")
    ready, tell = os.pipe()
    process = os.fork()
    if not process:
        with alone(run.folder):
            os.write(tell, b"!")
            time.sleep(600)
    child.append(process)
    assert os.read(ready, 1) == b"!"
    with pytest.raises(RunError, match=r"another process is at work in .*run"):
        list(Run.open(run.folder, steps=6).learn(model))
    os.kill(child.pop(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert [e for e in Run.open(run.folder, steps=6).learn(model) if isinstance(e, Step)]
    with alone(run.folder), pytest.raises(RunError, match="another process"), alone(run.folder):
        pass


def test_a_run_moves_with_its_pictures(model: Model, pictures: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    pictures = pictures.rename(here / "my-toy")
    whole = teach(model, recipe(pictures, steps=6), here / "whole")
    learned = whole.concept
    teach(model, recipe(pictures), here / "runs" / "toy")
    here.rename(there)
    moved = Run.open(there / "runs" / "toy", steps=6)
    assert moved.recipe.pictures == there / "my-toy"
    assert notices(moved, model) == []
    assert all(
        torch.equal(tensor, learned.parts[0].tensors[name])
        for name, tensor in moved.concept.parts[0].tensors.items()
    )
    (there / "my-toy").rename(there / "elsewhere")
    with pytest.raises(RunError, match=r"pictures are not in .*my-toy any more") as caught:
        list(Run.open(moved.folder, steps=8).learn(model))
    assert "--pictures FOLDER" in caught.value.hint
    more = Run.open(moved.folder, steps=8, pictures=there / "elsewhere")
    assert len([event for event in more.learn(model) if isinstance(event, Step)]) == 2


def test_a_finished_run_mends_its_concept(model: Model, pictures: Path, tmp_path: Path) -> None:
    run = teach(model, recipe(pictures), tmp_path / "run")
    file = run.folder / "concept.safetensors"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"<mytoy>", b"<myboy>", 1))
    with pytest.raises(FileError, match=r"concept\.safetensors is damaged") as caught:
        Concept.load(run.folder)
    assert "--resume" in caught.value.hint
    beside = run.folder / ".concept.safetensors.4711.tmp"
    beside.touch()
    assert list(Run.open(run.folder).learn(model)) == []
    assert file.read_bytes() == good
    assert not beside.exists()


def test_steps_that_were_not_kept_are_told(model: Model, pictures: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures, checkpoint_every=100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "keep", lambda *_: None)
        for event in run.learn(model):
            if isinstance(event, Step) and event.number == 3:
                break
    assert notices(Run.open(run.folder), model) == ["3 steps were not kept: it begins again at 1"]
    assert [entry["number"] for entry in run.journal()] == [1, 2, 3, 4]


def test_a_journal_keeps_choices_and_leaves_out_torn_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    step = {"losses": [1.0]}
    journal.note({"chosen": {"batch": 2}})
    for number in (1, 2, 3):
        journal.note({"number": number, **step})
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"number": 4, "losses": {}}\xff\0\0\n[3]\n{"chosen": {"a": 1}')
    assert [entry.get("number") for entry in journal.entries()] == [None, 1, 2, 3]
    journal.go_back(1)
    assert journal.entries() == [{"chosen": {"batch": 2}}, {"number": 1, **step}]
    assert journal.steps() == [{"number": 1, **step}]


def test_learning_that_goes_wrong_goes_back_once(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise, calls = type(model).denoise, 0

    def once(*given: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return denoise(*given) * (torch.nan if calls == 5 else 1)

    monkeypatch.setattr(type(model), "denoise", once)
    run = Run.create(tmp_path / "run", recipe(pictures, steps=5))
    told = list(run.learn(model))
    steps = [event for event in told if isinstance(event, Step)]
    assert [step.number for step in steps] == [1, 2, 3, 3, 4, 5]  # the first call only measures
    assert steps[-1].rate == steps[0].rate / 2
    wrong, back = (event.message for event in told if isinstance(event, Notice))
    assert wrong.startswith("learning went wrong at step 4: the errors of the samples are nan")
    assert wrong.endswith(".png")
    assert back == "going on from step 2 with 50% of the rate"
    (mark,) = [entry for entry in run.notes.entries() if "pace" in entry]
    assert (mark["number"], mark["pace"], mark["because"]) == (3, 0.5, wrong)


def test_what_is_broken_is_never_kept(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures, rate=1e38, steps=8))
    with pytest.raises(DivergedError, match="learning went wrong") as caught:
        list(run.learn(model))
    assert "--rate" in caught.value.hint
    found = newest(run.folder / "checkpoints")
    assert found is None or all(t.isfinite().all() for t in found.state.values())
    assert not model.words

    def black(*_: object) -> list[Painted]:
        return [Painted(Image.new("RGB", (8, 8)), None, None)] * 4

    monkeypatch.setattr("pinxit.runs.preview.paint", black)
    run = Run.create(tmp_path / "other", recipe(pictures, steps=1, preview_every=1, score=False))
    (said,) = notices(run, model)
    assert said.startswith("4 previews of step 1 are of one colour")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_are_like_ctrl_c(
    nano: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    noted = Run.note

    def stopped(self: Run, step: Step, learner: Learner) -> None:
        noted(self, step, learner)
        if step.number == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "note", stopped)
    words = ["train", "textual-inversion", str(pictures), "--token", "<t>", "--class-noun", "toy"]
    words += ["--base", str(nano), "--steps", "9", "--out", "run", "--preview-every", "0"]
    assert main(words) == status
    assert "stopped after step 2; what was learned is saved in run" in capsys.readouterr().err
    assert Run.open("run").concept.provenance.steps == 2
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_interrupt_in_the_midst_of_a_step_loses_no_line(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = teach(model, recipe(pictures), tmp_path / "whole")
    step = AdamW.step

    def interrupted(self: AdamW, *given: Any) -> None:
        step(self, *given)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number in (1, 2, 3):
            run = (Run.open if number > 1 else lambda f: Run.create(f, recipe(pictures)))(
                tmp_path / "run"
            )
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(AdamW, "step", interrupted)
                list(run.learn(model))
            assert run.concept.provenance.steps == len(run.journal()) == number
    finally:
        signal.signal(signal.SIGINT, before)
    list(Run.open(tmp_path / "run").learn(model))
    assert [e["losses"] for e in run.journal()] == [e["losses"] for e in whole.journal()]
    assert Run.open(run.folder).concept.about == whole.concept.about


def test_flags_of_going_on(
    nano: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    words = ["train", "textual-inversion", str(pictures), "--token", "<t>", "--class-noun", "toy"]
    words += ["--base", str(nano), "--no-score"]  # or judges are asked for on the net
    assert main([*words, "--steps", "1", "--out", out]) == 0
    shutil.copytree(nano, tmp_path / "base")
    moved = ["--pictures", str(pictures), "--base", str(tmp_path / "base")]
    assert main(["train", "--resume", out, "--steps", "2", *moved]) == 0
    assert Run.open(out).concept.provenance.steps == 2
    capsys.readouterr()
    assert main(["train", "--recipe", f"{out}/recipe.toml", "--steps", "2"]) == 2
    assert "--steps goes with --resume" in capsys.readouterr().err
    assert main(["train", "--resume", out, "--steps", "0"]) == 2
    assert "`steps` of the recipe cannot be 0" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        "previews",
        "plain",
        "concepts",
        ".lock",
        "journal.jsonl",
        "concept.safetensors",
    ],
)
def test_a_link_in_a_run_folder_is_refused(
    name: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for file in ("0000002.png", "0000001.safetensors", ".0000001.safetensors.7.tmp", "letter"):
        (victim / file).write_text("precious")
    before = contents(victim)
    run = Run.create(tmp_path / "run", recipe(pictures, preview_every=2, keep_every=2))
    run.folder.mkdir(exist_ok=True)
    run.write_recipe()
    leads_to = victim if "." not in name else victim / "new"
    (run.folder / name).symlink_to(leads_to, target_is_directory=leads_to.is_dir())
    with pytest.raises(RunError, match="is a link") as caught:
        list(Run.open(run.folder).learn(model))
    assert name in caught.value.message
    assert contents(victim) == before


def test_files_of_the_user_stay_in_a_run_folder(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = teach(model, recipe(pictures), tmp_path / "run")
    mine = [run.folder / "checkpoints" / "my-favourite.safetensors"]
    mine += [run.folder / "checkpoints" / "note.txt", run.folder / "checkpoints" / "1.safetensors"]
    mine += [run.folder / "notes" / ".draft.tmp", run.folder / ".letter.txt.12.tmp"]
    (run.folder / "notes").mkdir()
    for file in mine:
        file.write_text("mine")
    ours = [run.folder / ".concept.safetensors.12.tmp"]
    ours += [run.folder / "checkpoints" / ".0000004.safetensors.12.tmp"]
    for file in ours:
        file.write_text("half")
    assert notices(Run.open(run.folder, steps=6), model) == []
    assert all(file.read_text() == "mine" for file in mine)
    assert not any(file.exists() for file in ours)
    kept = {file.name for file in (run.folder / "checkpoints").glob("0*.safetensors")}
    assert kept == {"0000004.safetensors", "0000006.safetensors"}


def test_a_draft_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("precious")
    (tmp_path / f".note.{os.getpid()}.tmp").symlink_to(tmp_path / "letter")
    with pytest.raises(RunError, match="is a link"):
        replace_text(tmp_path / "note", "text")
    (tmp_path / "journal").symlink_to(tmp_path / "letter")
    with pytest.raises(DiskError, match="journal cannot be written"):
        append(tmp_path / "journal", "text")
    assert (tmp_path / "letter").read_text() == "precious"


def test_only_a_marked_folder_is_written_to_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    must_be_ours(out, "demo", "runs")
    mark_ours(out, "demo")
    (out / "report.html").write_text("scores")
    must_be_ours(out, "demo", "runs")
    with pytest.raises(RunError, match="no evaluation's folder"):
        must_be_ours(out, "evaluation", "pictures")
    (out / "runs").symlink_to(tmp_path)
    with pytest.raises(RunError, match="is a link"):
        must_be_ours(out, "demo", "runs")
