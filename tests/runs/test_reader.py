"""The state of a run is read from its folder alone: without torch, at any moment."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pinxit.errors import DiskError, PinxitError, RunError
from pinxit.files import atomic_write
from pinxit.files.atomic_write import exclusive_lock, is_locked
from pinxit.models.model import Model
from pinxit.progress import Notice, Progress
from pinxit.runs import events as e
from pinxit.runs import run as run_module
from pinxit.runs.reader import read_run
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult

EVENTS = (
    e.Started(2, 9),
    Progress("images encoded", 1, 2),
    e.MemoryNotice(2, True, "training in fp32"),
    StepResult(3, 9, (0.1,), (2.5,), 1e-3, 0.5),
    e.ValidationLoss(3, 0.25),
    e.LearningRateReduction(4, 0.5, "training diverged"),
    e.Preview(4, Path("0000004.png"), 1),
    e.PreviewScores(4, 0.5, 0.25, 0.125, True, ("the images are flat",)),
    e.SavedConcept(4, Path("0000004.safetensors")),
    e.SavedCheckpoint(4, Path("concept.safetensors")),
    Notice("<x> is ä\n"),
    e.EarlyStop(6),
    e.Stopped(6),
    e.Finished(6, Path("best.safetensors")),
)
# Lines of the first version: they have no type, and other names.
FIRST_VERSION = """\
{"number": 0, "fixed": 1.5}
{"chosen": {"together": 4, "economise": false}}
{"number": 1, "total": 6, "losses": [0.75], "norms": [0.5], "rate": 0.01, "seconds": 0.125}
{"number": 1, "pace": 0.5, "because": "training diverged"}
{"number": 1, "likeness": 0.5, "prompt": 0.25, "best": 0.125, "wrong": ["flat"]}
{"number": 1, "stopped": 1}
{"number": 2, "total": 6, "losses"
"""


def recipe(images: Path, **options: object) -> Recipe:
    values = {"images": images, "token": "<mytoy>", "class_noun": "toy", "steps": 3}
    fixed = {"method": "textual-inversion", "batch_size": 2, "preview_every": 0, "early_stop": 0}
    return Recipe.model_validate({**fixed, **values, **options})


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_read_back(event: e.Event) -> None:
    assert e.from_line(e.to_line(event)) == event


def test_a_failure_is_read_back() -> None:
    event = e.from_line(e.to_line(e.RunFailure(RunError("no images", "give some"))))
    assert isinstance(event, e.RunFailure)
    assert (event.error.message, event.error.hint) == ("no images", "give some")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"type": "else"}',
        '{"type": "step", "number": 1}',
        '{"type": "no',
        '{"number": 1, "total": 6, "losses": [], "norms": [], "rate": 0.01, "seconds": 0.1}',
        '{"number": 1, "total": 6, "losses": [1], "norms": [], "rate": 0.01, "seconds": 0.1}',
    ],
)
def test_a_line_that_is_not_valid_is_no_event(line: str) -> None:
    assert e.from_line(line) is None


def test_a_log_of_the_first_version_is_read() -> None:
    assert [e.from_line(line) for line in FIRST_VERSION.splitlines()] == [
        e.ValidationLoss(0, 1.5),
        e.MemoryNotice(4),
        StepResult(1, 6, (0.75,), (0.5,), 0.01, 0.125),
        e.LearningRateReduction(1, 0.5, "training diverged"),
        e.PreviewScores(1, 0.5, 0.25, 0.125, problems=("flat",)),
        e.EarlyStop(1),
        None,
    ]


def test_the_state_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("steps = 6\nstop = 0.05\n")
    (tmp_path / "journal.jsonl").write_text(FIRST_VERSION)
    code = (
        "import sys; from pinxit.runs.reader import read_run\n"
        f"run = read_run({str(tmp_path)!r})\n"
        "print(run.state, run.total_steps, run.early_stop, len(run.steps), 'torch' in sys.modules)"
    )
    result = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert result == "stopped 6 1 1 False\n"


def test_the_state_of_a_run_at_each_moment(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures))
    with pytest.raises(RunError, match="is not a run folder"):
        read_run(run.folder)
    run.settle_recipe(model)
    run.folder.mkdir()
    run.write_recipe()
    assert read_run(run.folder).state == "waiting"

    def fail(*_: object) -> None:
        raise DiskError("no such device", "replace the disk")

    with monkeypatch.context() as patch, pytest.raises(PinxitError):
        patch.setattr(run_module, "read_class_images", fail)
        list(Run.open(run.folder).train(model))
    failed = read_run(run.folder)
    assert failed.state == "failed"
    assert failed.error
    assert (failed.error.message, failed.error.hint) == ("no such device", "replace the disk")

    with closing(Run.open(run.folder).train(model)) as training:
        for event in training:
            if isinstance(event, StepResult) and event.number == 2:
                assert read_run(run.folder).state == "running"
                break
    stopped = read_run(run.folder)
    assert (stopped.state, stopped.error, stopped.saved_step) == ("stopped", None, 2)
    assert stopped.events[-1] == e.Stopped(2)

    list(Run.open(run.folder).train(model))
    done = read_run(run.folder)
    assert (done.state, done.saved_step, done.total_steps) == ("done", 3, 3)
    assert [step.number for step in done.steps] == [1, 2, 3]
    assert [path.name for path in done.checkpoints] == ["0000003.safetensors"]
    assert done.result_file.is_file()


def test_a_run_with_a_log_of_the_first_version_is_continued(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    runs = [Run.create(tmp_path / name, recipe(pictures)) for name in ("old", "new")]
    for run in runs:
        with closing(run.train(model)) as training:
            next(event for event in training if isinstance(event, StepResult))
    log = runs[0].folder / "journal.jsonl"
    (step,) = runs[0].state.steps
    old = f'{{"number": 1, "total": 3, "losses": [{step.losses[0]!r}], "norms": [1.0], '
    log.write_text(f'{{"chosen": {{"together": 2}}}}\n{old}"rate": 0.01, "seconds": 0.5}}\n')
    for run in runs:
        list(Run.open(run.folder).train(model))
    old_losses, new_losses = ([step.losses for step in run.state.steps] for run in runs)
    assert len(old_losses) == 3
    assert old_losses == new_losses


def test_reading_does_not_disturb_a_run(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert not list(tmp_path.iterdir())
    with exclusive_lock(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(RunError, match="another process"), exclusive_lock(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_a_start_waits_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = iter((OSError(11, "locked by a reader"), None))

    def lock(_: int) -> None:
        if error := next(attempts):
            raise error

    monkeypatch.setattr(atomic_write, "_lock", lock)
    with exclusive_lock(tmp_path):
        assert next(attempts, "both used") == "both used"


def test_progress_is_logged_at_most_once_a_second(pictures: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(pictures))
    run.folder.mkdir()
    for done in range(1, 101):
        run.record(Progress("class images", done, 100))
    assert [event.done for event in run.log.events() if isinstance(event, Progress)] == [1, 100]
