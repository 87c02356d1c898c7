"""Runs survive other processes, moved folders, signals, damaged files and NaN values."""

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
from safetensors.torch import load_file, save, save_file

from pinxit.cli import main
from pinxit.concepts.read import read_concept
from pinxit.errors import DiskError, FileError, RunError
from pinxit.files import atomic_write
from pinxit.files.atomic_write import append, check_claim, claim_folder, exclusive_lock, write_text
from pinxit.files.safetensors_file import (
    checksum_matches,
    file_chunks,
    read_safetensors,
    write_tensors,
)
from pinxit.generation.request import GeneratedImage
from pinxit.models.model import Model
from pinxit.progress import Notice
from pinxit.runs.checkpoint import Manifest, newest_checkpoint, save_checkpoint
from pinxit.runs.events import (
    Finished,
    LearningRateReduction,
    MemoryNotice,
    Started,
    Stopped,
    ValidationLoss,
)
from pinxit.runs.journal import TrainingLog
from pinxit.runs.reader import saved_step
from pinxit.runs.run import Run, train_run
from pinxit.training.concept_trainer import ConceptTrainer, DivergedError
from pinxit.training.optimizers.adamw import Adamw
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult


def recipe(pictures: Path, **changes: object) -> Recipe:
    required = {"method": "textual-inversion", "images": pictures, "token": "<mytoy>"}
    small = {"class_noun": "toy", "batch_size": 1, "preview_every": 0, "checkpoint_every": 2}
    return Recipe.model_validate({**required, **small, "steps": 4, **changes})


def notices(run: Run, model: Model) -> list[str]:
    return [event.message for event in run.train(model) if isinstance(event, Notice)]


@pytest.fixture
def child() -> Iterator[list[int]]:
    """Process ids that a test started; they are killed at its end."""
    processes: list[int] = []
    yield processes
    for process in processes:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_files_equal_those_of_the_safetensors_library() -> None:
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64]
    dtypes += [torch.int64, torch.uint8, torch.int16, torch.bool, torch.float8_e5m2]
    for dtype in dtypes:
        tensors = {"b": torch.ones(3, 5).to(dtype), "a": torch.zeros(2).to(dtype)}
        tensors |= {"none": torch.zeros(0, 4).to(dtype), "one": torch.tensor(1).to(dtype)}
        assert b"".join(file_chunks(tensors, {"k": "ü"}, checksum=False)) == save(
            tensors, {"k": "ü"}
        )
    transposed = torch.arange(6.0).reshape(2, 3).t()
    assert b"".join(file_chunks({"t": transposed}, {}, checksum=False)) == save(
        {"t": transposed.contiguous()}
    )


def test_tensors_are_written_without_a_copy() -> None:
    tensor = torch.rand(1000)
    chunks = list(file_chunks({"t": tensor}, {}, checksum=True))
    assert torch.frombuffer(chunks[2], dtype=torch.float32).data_ptr() == tensor.data_ptr()


def test_the_checksum_is_not_a_tensor_and_covers_every_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"t": torch.rand(3)}, {"k": "v"}, checksum=True)
    tensors, _ = read_safetensors(file)
    assert list(tensors) == ["t"]
    assert torch.equal(load_file(file)["t"], tensors["t"])
    good = file.read_bytes()
    for index in range(len(good)):
        file.write_bytes(good[:index] + bytes([good[index] ^ 4]) + good[index + 1 :])
        assert not checksum_matches(file)
    file.write_bytes(good)
    assert checksum_matches(file)


def test_a_disk_that_returns_wrong_data_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"t": torch.ones(3)}, {}, checksum=True)

    class WrongDisk:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def write(self, handle: int, data: memoryview) -> int:
            return os.write(handle, bytes(data).replace(b"\0\0\0@", b"\1\0\0@"))

    monkeypatch.setattr(atomic_write, "os", WrongDisk())
    with pytest.raises(DiskError, match="the disk returns other data"):
        write_tensors(file, {"t": torch.full((3,), 2.0)}, {}, checksum=True)
    assert torch.equal(load_file(file)["t"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [file]


def test_only_one_process_can_train_a_run(
    model: Model, pictures: Path, tmp_path: Path, child: list[int]
) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")
    read_end, write_end = os.pipe()
    process = os.fork()
    if not process:
        with exclusive_lock(run.folder):
            os.write(write_end, b"!")
            time.sleep(600)
    child.append(process)
    assert os.read(read_end, 1) == b"!"
    with pytest.raises(RunError, match=r"another process is using .*run"):
        list(Run.open(run.folder, steps=6).train(model))
    os.kill(child.pop(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert [e for e in Run.open(run.folder, steps=6).train(model) if isinstance(e, StepResult)]
    with (
        exclusive_lock(run.folder),
        pytest.raises(RunError, match="another process"),
        exclusive_lock(run.folder),
    ):
        pass


def test_a_run_can_be_moved_with_its_images(model: Model, pictures: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    pictures = pictures.rename(here / "my-toy")
    whole = train_run(model, recipe(pictures, steps=6), here / "whole")
    learned = whole.concept
    train_run(model, recipe(pictures), here / "runs" / "toy")
    here.rename(there)
    moved = Run.open(there / "runs" / "toy", steps=6)
    assert moved.recipe.images == there / "my-toy"
    assert notices(moved, model) == []
    assert all(
        torch.equal(tensor, learned.parts[0].tensors[name])
        for name, tensor in moved.concept.parts[0].tensors.items()
    )
    (there / "my-toy").rename(there / "elsewhere")
    with pytest.raises(RunError, match=r"image folder .*my-toy does not exist any more") as caught:
        list(Run.open(moved.folder, steps=8).train(model))
    assert "--images FOLDER" in caught.value.hint
    more = Run.open(moved.folder, steps=8, images=there / "elsewhere")
    assert len([event for event in more.train(model) if isinstance(event, StepResult)]) == 2


def test_a_finished_run_repairs_its_concept(model: Model, pictures: Path, tmp_path: Path) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")
    file = run.folder / "concept.safetensors"
    good = file.read_bytes()
    file.write_bytes(good.replace(b"<mytoy>", b"<myboy>", 1))
    with pytest.raises(FileError, match=r"concept\.safetensors is damaged") as caught:
        read_concept(run.folder)
    assert "--resume" in caught.value.hint
    draft = run.folder / ".concept.safetensors.4711.tmp"
    draft.touch()
    events = list(Run.open(run.folder).train(model))
    assert events == [Started(4, 4, "CPU", "fp32"), Finished(4, file)]
    assert file.read_bytes() == good
    assert not draft.exists()


def test_lost_steps_are_reported(model: Model, pictures: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures, checkpoint_every=100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", lambda *_: None)
        for event in run.train(model):
            if isinstance(event, StepResult) and event.number == 3:
                break
    assert notices(Run.open(run.folder), model) == [
        "3 steps were not saved: starting again at step 1"
    ]
    assert [step.number for step in run.state.steps] == [1, 2, 3, 4]


def test_the_training_log_skips_damaged_lines(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "journal.jsonl")
    plan, losses = MemoryNotice(2), [ValidationLoss(number, 1.0) for number in (1, 2, 3)]
    for event in (plan, *losses):
        log.append(event)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"type": "step", "number": 4}\xff\0\0\n[3]\n{"type": "notice", "mess')
    assert log.events() == [plan, *losses]
    # The next process does not write into the incomplete line.
    TrainingLog(tmp_path / "journal.jsonl").append(Stopped(3))
    assert log.events() == [plan, *losses, Stopped(3)]
    log.drop_after(1)
    assert log.events() == [plan, losses[0], Stopped(3)]


@pytest.mark.usefixtures("every_trial")
def test_diverged_training_restarts_once_at_a_lower_rate(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoise, calls = type(model).denoise, 0

    def once(*given: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return denoise(*given) * (torch.nan if calls == 6 else 1)

    monkeypatch.setattr(type(model), "denoise", once)
    run = Run.create(tmp_path / "run", recipe(pictures, steps=5))
    events = list(run.train(model))
    steps = [event for event in events if isinstance(event, StepResult)]
    assert [step.number for step in steps] == [1, 2, 3, 3, 4, 5]  # the first two calls only measure
    assert steps[-1].learning_rate == steps[0].learning_rate / 2
    wrong, back = (event.message for event in events if isinstance(event, Notice))
    assert wrong.startswith("training diverged at step 4: sample losses nan")
    assert wrong.endswith(".png")
    assert back == "continuing from step 2 with 50% of the learning rate"
    assert run.state.of_kind(LearningRateReduction) == [LearningRateReduction(3, 0.5, wrong)]


def test_a_validation_loss_that_is_not_finite_is_divergence(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, number = ConceptTrainer.add_validation_loss, 0

    def second_is_nan(trainer: ConceptTrainer, loss: float) -> None:
        nonlocal number
        number += 1
        add(trainer, torch.nan if number == 2 else loss)

    monkeypatch.setattr(ConceptTrainer, "add_validation_loss", second_is_nan)
    options = {"early_stop": 1e-12, "validate_every": 2}
    run = Run.create(tmp_path / "run", recipe(pictures, steps=5, **options))
    events = list(run.train(model))
    wrong, back = (event.message for event in events if isinstance(event, Notice))
    assert wrong == "training diverged after step 2: validation loss nan"
    assert back == "continuing from step 0 with 50% of the learning rate"
    assert sorted(run.state.validation_losses) == [0, 2, 4]
    assert isinstance(events[-1], Finished)


def test_weights_that_are_not_finite_are_never_saved(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures, learning_rate=1e38, steps=8))
    with pytest.raises(DivergedError, match="training diverged") as caught:
        list(run.train(model))
    assert "--learning-rate" in caught.value.hint
    checkpoint = newest_checkpoint(run.folder / "checkpoints")
    assert checkpoint is None or all(t.isfinite().all() for t in checkpoint.state.values())
    assert not model.placeholders

    def black(*_: object) -> list[GeneratedImage]:
        return [GeneratedImage(Image.new("RGB", (8, 8)), None, None)] * 4

    monkeypatch.setattr("pinxit.runs.preview.generate_images", black)
    run = Run.create(
        tmp_path / "other", recipe(pictures, steps=1, preview_every=1, score_previews=False)
    )
    notice = notices(run, model)[-1]
    assert notice.startswith("4 previews of step 1 have only one colour")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (getattr(signal, "SIGHUP", None), 129)]
)
def test_other_stop_signals_act_like_ctrl_c(
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
    log_step = Run.log_step

    def stopped(self: Run, step: StepResult, trainer: ConceptTrainer) -> None:
        log_step(self, step, trainer)
        if step.number == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Run, "log_step", stopped)
    words = ["train", "textual-inversion", str(pictures), "--token", "<t>", "--class-noun", "toy"]
    words += ["--base", str(nano), "--steps", "9", "--out", "run", "--preview-every", "0"]
    assert main(words) == status
    assert "stopped at step 2 of 9; saved in run" in capsys.readouterr().err
    assert Run.open("run").concept.provenance.steps == 2
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_interrupt_during_a_step_loses_no_log_line(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_run(model, recipe(pictures), tmp_path / "whole")
    step = Adamw.step

    def interrupted(self: Adamw, *given: Any) -> None:
        step(self, *given)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number in (1, 2, 3):
            run = (Run.open if number > 1 else lambda f: Run.create(f, recipe(pictures)))(
                tmp_path / "run"
            )
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Adamw, "step", interrupted)
                list(run.train(model))
            assert run.concept.provenance.steps == len(run.state.steps) == number
    finally:
        signal.signal(signal.SIGINT, before)
    list(Run.open(tmp_path / "run").train(model))
    assert [e.losses for e in run.state.steps] == [e.losses for e in whole.state.steps]
    assert Run.open(run.folder).concept.description == whole.concept.description


def test_flags_of_resuming(
    nano: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    words = ["train", "textual-inversion", str(pictures), "--token", "<t>", "--class-noun", "toy"]
    words += ["--base", str(nano), "--no-score-previews"]  # scoring would download models
    assert main([*words, "--steps", "1", "--out", out]) == 0
    shutil.copytree(nano, tmp_path / "base")
    moved = ["--images", str(pictures), "--base", str(tmp_path / "base")]
    assert main(["train", "--resume", out, "--steps", "2", *moved]) == 0
    assert Run.open(out).concept.provenance.steps == 2
    capsys.readouterr()
    assert main(["train", "--resume", out, "--steps", "0"]) == 2
    assert "has already trained 2 steps, more than 0" in capsys.readouterr().err


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
    run = Run.create(tmp_path / "run", recipe(pictures, preview_every=2, save_every=2))
    run.folder.mkdir(exist_ok=True)
    run.write_recipe()
    leads_to = victim if "." not in name else victim / "new"
    (run.folder / name).symlink_to(leads_to, target_is_directory=leads_to.is_dir())
    with pytest.raises(RunError, match="is a link") as caught:
        list(Run.open(run.folder).train(model))
    assert name in caught.value.message
    assert contents(victim) == before


def test_files_of_the_user_in_a_run_folder_are_not_deleted(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")
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
    names = {file.name for file in (run.folder / "checkpoints").glob("0*.safetensors")}
    assert names == {"0000004.safetensors", "0000006.safetensors"}


@pytest.mark.parametrize("content", ["", "mine", "another program's"])
@pytest.mark.parametrize("name", ["checkpoints/0000006", "concepts/0000006", "concept"])
def test_a_file_of_the_user_in_the_way_is_not_replaced(
    name: str, content: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe(pictures, save_every=2), tmp_path / "run")
    file = run.folder / f"{name}.safetensors"
    file.write_text(content)
    if content.startswith("another"):
        save_file({"t": torch.ones(3)}, file, {"format": "pt"})
    before = file.read_bytes()
    with pytest.raises(RunError, match="is in the way") as caught:
        list(Run.open(run.folder, steps=6).train(model))
    assert str(file) in caught.value.message
    assert "move it" in caught.value.hint
    assert file.read_bytes() == before
    file.rename(tmp_path / "moved.safetensors")
    assert list(Run.open(run.folder, steps=6).train(model))
    assert saved_step(run.folder / "concept.safetensors") == 6


def test_old_checkpoints_of_others_are_not_deleted(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")
    mine = run.folder / "checkpoints" / "0000001.safetensors"
    save_file({"t": torch.ones(3)}, mine, {"format": "pt"})
    state, _ = read_safetensors(run.folder / "checkpoints" / "0000004.safetensors")
    save_checkpoint(mine.parent, state, Manifest(6, "", {}), 2)
    names = [file.stem for file in sorted(mine.parent.iterdir())]
    assert names == ["0000001", "0000004", "0000006"]


def test_drafts_are_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("precious")
    (tmp_path / f".note.{os.getpid()}.tmp").symlink_to(tmp_path / "letter")
    with pytest.raises(RunError, match="is a link"):
        write_text(tmp_path / "note", "text")
    (tmp_path / "journal").symlink_to(tmp_path / "letter")
    with pytest.raises(DiskError, match=r"cannot write .*journal"):
        append(tmp_path / "journal", "text")
    assert (tmp_path / "letter").read_text() == "precious"


def test_only_a_claimed_folder_is_written_to_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_claim(out, "demo", "runs")
    claim_folder(out, "demo")
    (out / "report.html").write_text("scores")
    check_claim(out, "demo", "runs")
    with pytest.raises(RunError, match="not made by pinxit evaluation"):
        check_claim(out, "evaluation", "pictures")
    (out / "runs").symlink_to(tmp_path)
    with pytest.raises(RunError, match="is a link"):
        check_claim(out, "demo", "runs")


@pytest.mark.skipif(not hasattr(os, "O_NONBLOCK"), reason="Windows has no such pipes")
def test_a_pipe_in_place_of_a_log_is_an_error(tmp_path: Path) -> None:
    """Without a reader, opening it would wait for ever."""
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(DiskError, match="cannot write"):
        append(tmp_path / "journal.jsonl", "a line")
