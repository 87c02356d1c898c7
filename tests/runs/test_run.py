"""Runs: what is in the folder, and what going on with it needs."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pinxit.errors import DiskError, RunError
from pinxit.files.atomic_write import atomic_write, defer_signals, write_text
from pinxit.images.folder import read_images
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.progress import Notice
from pinxit.runs.checkpoint import Manifest
from pinxit.runs.class_images import cache_folder, generate_class_images, read_class_images
from pinxit.runs.events import Preview
from pinxit.runs.run import Run, train_run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.method import ClassImages
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult, TrainingSession, train

STEPS = ("StepResult", "StepResult", "SavedCheckpoint", "StepResult")


def recipe(pictures: Path, **changed: object) -> Recipe:
    small = {"steps": 4, "batch_size": 2, "preview_every": 0, "checkpoint_every": 2, "score": False}
    given = {"pictures": pictures, "token": "<mytoy>", "class_noun": "toy"}
    return Recipe.model_validate({"method": "textual-inversion", **given, **small, **changed})


def test_the_state_of_a_run_is_read_from_its_folder(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "runs" / "toy", recipe(pictures, preview_every=3))
    events = list(run.train(model))
    kinds = [type(event).__name__ for event in events]
    assert kinds[:3] == ["Started", "Progress", "MemoryNotice"]
    assert kinds[3:] == [*STEPS, "Preview", "StepResult", "Preview", "SavedCheckpoint", "Finished"]
    assert all(event.path.is_file() for event in events if isinstance(event, Preview))
    files = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert files == {
        "recipe.toml",
        "journal.jsonl",
        "previews/0000003.png",
        "previews/0000004.png",
        "checkpoints/0000002.safetensors",
        "checkpoints/0000004.safetensors",
        ".lock",
        "concept.safetensors",
    }
    steps = [event for event in events if isinstance(event, StepResult)]
    assert run.state.steps == steps
    assert Run.open(run.folder).recipe == run.recipe
    about = run.concept.provenance
    assert about.steps == 4
    assert sorted(about.images) == ["001", "002", "003"]
    assert about.versions["torch"] == torch.__version__
    # Only the run's own recipe has the path of the images: the concept may be shared.
    shared = run.recipe.model_copy(update={"images": Path(pictures.name)})
    assert Recipe.model_validate(__import__("tomllib").loads(about.recipe)) == shared


@pytest.mark.long
def test_previews_change_nothing(model: Model, pictures: Path, tmp_path: Path) -> None:
    with_them = train_run(model, recipe(pictures, preview_every=1), tmp_path / "a")
    without = train_run(model, recipe(pictures), tmp_path / "b")
    for one, other in zip(with_them.concept.parts, without.concept.parts, strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize(
    "name", ["best.safetensors", "previews/0000006.png", "previews/0000005.png"]
)
def test_a_file_in_the_way_is_refused_before_the_first_step(
    name: str, model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe(pictures, preview_every=2), tmp_path / "run")
    assert len(run.state.previews) == 2  # they have a mark, and do not prevent that it goes on
    file = run.folder / name
    file.write_bytes((pictures / "0.png").read_bytes())
    events: list[object] = []
    with pytest.raises(RunError, match=f"{file.name} is in the way"):
        events.extend(Run.open(run.folder, steps=6).train(model))
    assert not any(isinstance(event, StepResult) for event in events)
    assert file.read_bytes() == (pictures / "0.png").read_bytes()
    file.unlink()
    assert any(isinstance(e, StepResult) for e in Run.open(run.folder, steps=6).train(model))


def test_existing_folders_and_folders_without_a_run_are_errors(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")
    with pytest.raises(RunError, match="exists already") as caught:
        Run.create(run.folder, recipe(pictures))
    assert "--resume" in caught.value.hint
    first, second = (Run.create(tmp_path / "two", recipe(pictures)) for _ in "ab")
    first_steps = [e for e in first.train(model) if isinstance(e, StepResult)]
    with pytest.raises(RunError, match="two exists already"):
        list(second.train(model))
    assert [e.number for e in Run.open(first.folder).state.steps] == [e.number for e in first_steps]
    with pytest.raises(RunError, match=r"run cannot be made: .*0\.png is a file"):
        Run.create(pictures / "0.png" / "run", recipe(pictures))
    with pytest.raises(RunError, match="is not a run folder"):
        Run.open(pictures)
    (tmp_path / "empty").mkdir()
    assert Run.create(tmp_path / "empty", recipe(pictures)).folder.name == "empty"


def test_more_steps_go_on_the_same_way(model: Model, pictures: Path, tmp_path: Path) -> None:
    whole = train_run(model, recipe(pictures, steps=6), tmp_path / "whole")
    train_run(model, recipe(pictures, steps=4), tmp_path / "part")
    more = Run.open(tmp_path / "part", steps=6)
    assert [e.number for e in more.train(model) if isinstance(e, StepResult)] == [5, 6]
    assert _learned(more) == _learned(whole)
    with pytest.raises(RunError, match="has already trained 6 steps, more than 5"):
        list(Run.open(tmp_path / "part", steps=5).train(model))


def test_an_embedding_is_saved_as_the_average_of_the_later_steps(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    """The weights of arXiv:1212.1824, and what is learned does not know of them."""
    trainer = ConceptTrainer(
        model, TrainingPlan.of(recipe(pictures, steps=6), model, 3), read_images(pictures)
    )
    words = [trainer.weights[0].detach().clone() for _ in train(TrainingSession(model, [trainer]))]
    shares: list[float] = []
    for step in range(1, 7):
        shares = [share * (step - 1) / (step + 3) for share in shares] + [4 / (step + 3)]
    mean = sum(share * word for share, word in zip(shares, words, strict=True))
    with trainer.averaged_weights():
        assert torch.allclose(trainer.weights[0], torch.as_tensor(mean), atol=1e-6)
    assert torch.equal(trainer.weights[0], words[-1])
    run = train_run(model, recipe(pictures, steps=6), tmp_path / "run")
    (saved,) = run.concept.parts[0].tensors.values()
    assert torch.allclose(saved, torch.as_tensor(mean), atol=1e-6)
    assert not torch.allclose(saved, words[-1], atol=1e-4)


def test_a_damaged_checkpoint_is_never_used(model: Model, pictures: Path, tmp_path: Path) -> None:
    whole = train_run(model, recipe(pictures), tmp_path / "whole")
    run = train_run(model, recipe(pictures), tmp_path / "run")
    older, newest = sorted((run.folder / "checkpoints").iterdir())
    _flip(newest)
    events = list(Run.open(run.folder).train(model))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert notices == [f"{newest} is damaged: continuing from step 2"]
    assert [event.number for event in events if isinstance(event, StepResult)] == [3, 4]
    assert _learned(run) == _learned(whole)
    _flip(newest)
    _flip(older)
    with pytest.raises(RunError, match=r"damaged: 0000004\.safetensors, 0000002\.safetensors"):
        list(Run.open(run.folder).train(model))
    newest.unlink()
    older.unlink()
    with pytest.raises(RunError, match=r"checkpoints of .* are missing"):
        list(Run.open(run.folder).train(model))


def test_what_has_changed_is_named(
    model: Model, nano: Path, pictures: Path, tmp_path: Path, copied: Callable[[Path], Path]
) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")
    other = copied(nano)
    (other / "unet" / "config.json").write_text(
        (other / "unet" / "config.json").read_text().replace("{", "{ ", 1)
    )
    with pytest.raises(RunError, match="another base model"):
        list(Run.open(run.folder).train(open_base(other)))
    Image.new("RGB", (20, 20), "black").save(pictures / "1.png")
    with pytest.raises(RunError, match=r"images have changed .*: 1\.png"):
        list(Run.open(run.folder).train(model))


@pytest.mark.parametrize("changed", ["caption", "new caption", "mask", "new mask"])
def test_a_resumed_run_names_captions_and_masks_that_changed(
    model: Model, pictures: Path, tmp_path: Path, changed: str
) -> None:
    what = changed.split()[-1]
    file = pictures / {"caption": "1.txt", "mask": "1.mask.png"}[what]
    if "new" not in changed:
        _write_input(file, "a red dog", "white")
    run = train_run(model, recipe(pictures, kind="style"), tmp_path / "run")
    _write_input(file, "a blue cat", "gray")
    with pytest.raises(RunError, match=rf"have changed .*: {what} of 1\.png"):
        list(Run.open(run.folder, steps=6).train(model))


def _write_input(path: Path, text: str, color: str) -> None:
    if path.suffix == ".txt":
        path.write_text(text)
    else:
        Image.new("L", (41, 48), color).save(path)


def _rotate(path: Path) -> None:
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # orientation: turned by 90 degrees
        image.save(path, exif=exif)


# What happens to a folder between two parts of a run, and what is named; "" if the run goes on.
BETWEEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "time": (lambda folder: os.utime(folder / "1.png", (1, 1)), ""),
    "other file": (lambda folder: (folder / "notes.md").write_text("mine"), ""),
    "utf-16": (lambda folder: (folder / "1.txt").write_text("a red dog", "utf-16"), ""),
    "byte order mark": (lambda folder: (folder / "1.txt").write_text("a red dog", "utf-8-sig"), ""),
    "line end": (lambda folder: (folder / "1.txt").write_bytes(b"a red dog\r\n"), ""),
    "name of a caption": (lambda folder: (folder / "1.txt").rename(folder / "1.caption"), ""),
    "copied": (lambda folder: shutil.copy(folder / "1.png", folder / "9.png"), "9.png"),
    "removed": (lambda folder: (folder / "1.png").unlink(), "1.png"),
    "renamed": (lambda folder: (folder / "2.png").rename(folder / "9.png"), "2.png, 9.png"),
    "exchanged": (lambda folder: _exchange(folder / "0.png", folder / "1.png"), "0.png, 1.png"),
    "rotation": (lambda folder: _rotate(folder / "1.png"), "1.png"),
    "first caption": (
        lambda folder: (folder / "2.caption").write_text("a blue cat"),
        "caption of 2.png",
    ),
    "caption of full name": (
        lambda folder: (folder / "2.png.txt").write_text("a blue cat"),
        "caption of 2.png",
    ),
    "table of captions": (
        lambda folder: (folder / "metadata.csv").write_text("file_name,text\n2.png,a blue cat\n"),
        "caption of 2.png",
    ),
    "no caption": (lambda folder: (folder / "1.txt").unlink(), "caption of 1.png"),
    "upper case": (lambda folder: (folder / "1.txt").write_text("a red DOG"), "caption of 1.png"),
}


def _exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("name", BETWEEN)
def test_what_happens_to_the_images_between_two_parts(
    model: Model, pictures: Path, tmp_path: Path, name: str
) -> None:
    (pictures / "1.txt").write_text("a red dog")
    small = {"kind": "style", "steps": 1, "batch_size": 1, "checkpoint_every": 1}
    run = train_run(model, recipe(pictures, **small), tmp_path / "run")
    change, names = BETWEEN[name]
    change(pictures)
    again = Run.open(run.folder, steps=2)
    if names:
        with pytest.raises(RunError, match=f"have changed .*: {re.escape(names)}\n"):
            list(again.train(model))
    else:
        assert any(isinstance(event, StepResult) for event in again.train(model))


@pytest.mark.parametrize("changed", ["image", "new image", "caption"])
def test_a_resumed_run_names_own_class_images_that_changed(
    model: Model, pictures: Path, tmp_path: Path, changed: str
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40), ("navy", "teal")[number]).save(folder / f"{number}.png")
    method = {"name": "dreambooth", "class_images_folder": folder}
    run = train_run(model, recipe(pictures, method=method), tmp_path / "run")
    name = "2.png" if "new" in changed else "1.png"  # a training image has this name, too
    if changed == "caption":
        (folder / "1.txt").write_text("a blue toy")
    else:
        Image.new("RGB", (40, 40), "red").save(folder / name)
    with pytest.raises(
        RunError, match=rf"inputs have changed .*: (caption of )?class image {name}"
    ):
        list(Run.open(run.folder, steps=6).train(model))


def test_old_checkpoints_without_class_images_say_so(model: Model) -> None:
    inputs = {"caption of 0.png": "a", "class image 0.png": "b+c"}
    old = Manifest(4, model.hash, {}, {"caption of 0.png": "a"})
    with pytest.raises(RunError, match="did not record those of --class-images-folder") as error:
        old.check_compatible(model, {}, inputs, 6)
    assert "--recipe" in error.value.hint
    Manifest(4, model.hash, {}, inputs).check_compatible(model, {}, inputs, 6)


def test_options_that_changed_in_the_recipe_are_named_once(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    run = train_run(model, recipe(pictures), tmp_path / "run")

    def notices(steps: int) -> list[str]:
        events = list(Run.open(run.folder, steps=steps).train(model))
        texts = [event.message for event in events if isinstance(event, Notice)]
        return [text for text in texts if "differs" in text]

    assert notices(5) == []
    file = run.folder / "recipe.toml"
    text = file.read_text()
    rate = next(line for line in text.splitlines() if line.startswith("learning_rate"))
    file.write_text(text.replace(rate, "learning_rate = 0.125"))
    (notice,) = notices(6)
    assert notice.endswith(f"learning_rate = 0.125 (was {rate.split()[-1]})")
    assert notices(7) == []


@pytest.mark.long
def test_class_images_are_part_of_a_checkpoint(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PINXIT_CACHE", str(tmp_path / "cache"))
    method = {"name": "dreambooth", "class_images": 2}
    run = train_run(model, recipe(pictures, method=method), tmp_path / "run")
    (first, *_) = read_class_images(model, run.plan.class_images)
    intact = first.path.read_bytes()
    first.path.write_bytes(intact[:99])
    list(Run.open(run.folder, steps=5).train(model))
    assert first.path.read_bytes() == intact
    other = replace(first, sha256="0" * 64)
    monkeypatch.setattr("pinxit.runs.run.read_class_images", lambda *_: (other,))
    with pytest.raises(RunError, match=rf"changed .*: class image {first.path.name}"):
        list(Run.open(run.folder, steps=6).train(model))


def test_a_loss_that_is_no_number_stops_it(model: Model, pictures: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures, rate=1e30))
    with pytest.raises(RunError, match="training diverged at step"):
        list(run.train(model))
    assert not model.placeholders


def test_class_images_are_generated_once(model: Model) -> None:
    few, more = ClassImages("a toy", 3), ClassImages("a toy", 10)
    steps = [step.done for step in generate_class_images(model, few)]
    assert steps == [3]
    images = read_class_images(model, few)
    assert [image.caption for image in images] == ["a toy"] * 3
    assert all(image.class_image for image in images)
    times = [image.path.stat().st_mtime_ns for image in images]
    assert images[0].path.is_relative_to(cache_folder())
    # More of them share the first; once lost, a picture comes back to the last bit.
    images[1].path.unlink()
    assert [step.done for step in generate_class_images(model, more)] == [8, 10]
    again = read_class_images(model, more)
    assert [image.sha256 for image in again[:3]] == [image.sha256 for image in images]
    assert [p.path.stat().st_mtime_ns for p in read_class_images(model, more)][8:]
    assert list(generate_class_images(model, few))
    assert times[0] <= again[0].path.stat().st_mtime_ns


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "first")

    def torn(beside: Path) -> None:
        beside.write_text("sec")
        raise OSError(28, "no space left on device")

    with pytest.raises(DiskError, match=r"cannot write .*a\.txt: no space") as caught:
        atomic_write(file, torn)
    assert caught.value.hint == "free some space on that disk"
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_ctrl_c_waits_for_the_end_of_a_step() -> None:
    done = False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs may begin without one
    try:
        with pytest.raises(KeyboardInterrupt), defer_signals():
            os.kill(os.getpid(), signal.SIGINT)
            done = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert done


def _flip(file: Path) -> None:
    """Damage the last bit."""
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))


def _learned(run: Run) -> tuple[bytes, object]:
    """The concept to the last byte, and the losses."""
    steps = [(step.number, step.losses, step.norms) for step in run.state.steps]
    return (run.folder / "concept.safetensors").read_bytes(), steps


@pytest.mark.long
def test_a_run_reports_misleading_inputs(model: Model, pictures: Path, tmp_path: Path) -> None:
    (pictures / "0.txt").write_text("a toy on a table")
    options = {"images": pictures, "token": "<my>", "class_noun": "toy", "base": model.name}
    common = {**options, "method": "textual-inversion", "steps": 1, "preview_every": 0}
    for name, changes, expected in (
        (
            "plain",
            {},
            ["the captions of 1 of 3 images are not used for an object; --captions uses them"],
        ),
        ("used", {"method": {"name": "textual-inversion", "captions": True}}, []),
        ("style", {"kind": "style"}, []),
        ("large", {"kind": "style", "resolution": 128}, ["was trained at"]),
        ("warmup", {"kind": "style", "warmup_steps": 2}, ["rises for 2 steps"]),
        ("all warmup", {"kind": "style", "warmup_steps": 1}, []),
    ):
        run = train_run(model, Recipe.model_validate({**common, **changes}), tmp_path / name)
        notices = run.state.notices
        assert len(notices) == len(expected), (name, notices)
        assert all(text in notice for text, notice in zip(expected, notices, strict=True))
