"""Early stopping: validation samples, when training ends, and which step is the best."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lab.reliability.small_runs import training_log
from pinxit.concepts.read import read_concept
from pinxit.errors import FileError, RequestError
from pinxit.evaluation.findings import Findings
from pinxit.evaluation.judge import Judge, JudgeScore, MetricSet, PromptRun
from pinxit.evaluation.prompt_sets import evenly_spaced, prompt_set
from pinxit.models.model import Model
from pinxit.pocket.eyes import Eyes
from pinxit.progress import Notice
from pinxit.runs import folder as run_folder
from pinxit.runs.events import EarlyStop, Preview, PreviewScores
from pinxit.runs.judging import subject_judge
from pinxit.runs.many import train_many
from pinxit.runs.run import Run, train_run
from pinxit.training import concept_trainer
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.early_stopping import VALIDATION_SAMPLES, converged, validation_interval
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import StepResult

Rule = Callable[[Sequence[float], float], bool]


def recipe(pictures: Path, **changed: object) -> Recipe:
    subject = {"images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    schedule = {"steps": 8, "batch_size": 2, "preview_every": 0, "checkpoint_every": 3}
    stopping = {"validate_every": 2, "early_stop": 1.0}
    return Recipe.model_validate(
        {"method": "textual-inversion", **subject, **schedule, **stopping, **changed}
    )


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rule], None]:
    """Replaces `converged`, which needs more validation losses than a test computes."""
    return lambda replacement: monkeypatch.setattr(concept_trainer, "converged", replacement)


def after_four(losses: Sequence[float], threshold: float) -> bool:
    return threshold > 0 and len(losses) >= 4


def never(_: Sequence[float], __: float) -> bool:
    return False


def test_validation_samples_are_always_the_same(model: Model, pictures: Path) -> None:
    plan = TrainingPlan.of(recipe(pictures), model, 3)
    samples = ConceptTrainer(model, plan, plan.recipe.read_images()).samples
    first, again = samples.validation_samples(8, 0), samples.validation_samples(8, 0)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.noise, b.noise)
        assert (a.timestep, a.prompt, a.image_name) == (b.timestep, b.prompt, b.image_name)
    assert sum(sample.weight for sample in first) == pytest.approx(1)
    names = [sample.image_name for sample in first]
    assert sorted(map(names.count, set(names))) == [2, 3, 3]
    timesteps = [sample.timestep for sample in first]
    assert timesteps == sorted(timesteps)
    assert min(timesteps) < 250
    assert max(timesteps) > 750
    training_samples = samples.draw_samples(0, 0)
    assert not torch.equal(first[0].noise, training_samples[0].noise)


def test_validation_does_not_change_training(model: Model, pictures: Path, tmp_path: Path) -> None:
    validated = train_run(model, recipe(pictures, early_stop=1e-12), tmp_path / "validated")
    plain = train_run(model, recipe(pictures, early_stop=0), tmp_path / "plain")
    assert list(validated.state.validation_losses) == [0, 2, 4, 6]
    assert not plain.state.validation_losses
    assert _steps(validated) == _steps(plain)
    one, other = (run.concept.parts[0].tensors for run in (validated, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
@pytest.mark.parametrize("at", range(1, 7))
def test_a_continued_run_stops_at_the_same_step(
    model: Model, pictures: Path, tmp_path: Path, rule: Callable[[Rule], None], at: int
) -> None:
    rule(after_four)
    whole = Run.create(tmp_path / "whole", recipe(pictures))
    events = list(whole.train(model))
    assert [event.step for event in events if isinstance(event, EarlyStop)] == [6]
    assert [event.number for event in events if isinstance(event, StepResult)] == [1, 2, 3, 4, 5, 6]
    assert whole.finished
    part = Run.create(tmp_path / "part", recipe(pictures))
    with closing(part.train(model)) as training:
        for event in training:
            if isinstance(event, StepResult) and event.number == at:
                # A copy as after a kill; the run itself is stopped normally.
                shutil.copytree(part.folder, tmp_path / "killed")
                break
    for folder in (part.folder, tmp_path / "killed"):
        continued = Run.open(folder)
        list(continued.train(model))
        assert Run.open(folder).finished
        assert list(training_log(continued)) == list(training_log(whole))
        files = [run.folder / "concept.safetensors" for run in (continued, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.long
def test_more_steps_on_request(
    model: Model, pictures: Path, tmp_path: Path, rule: Callable[[Rule], None]
) -> None:
    rule(after_four)
    run = train_run(model, recipe(pictures), tmp_path / "run")
    assert not [e for e in Run.open(run.folder).train(model) if isinstance(e, StepResult)]
    more = Run.open(run.folder, steps=9)
    assert not more.finished
    assert [e.number for e in more.train(model) if isinstance(e, StepResult)] == [7, 8, 9]
    rule(never)
    whole = train_run(model, recipe(pictures, steps=9), tmp_path / "whole")
    assert _steps(whole) == _steps(more)


@pytest.mark.long
def test_concepts_of_one_session_stop_independently(
    model: Model, pictures: Path, tmp_path: Path, rule: Callable[[Rule], None]
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number, colour in enumerate(("teal", "gold")):
        Image.new("RGB", (48, 48), colour).save(others / f"{number}.png")
    alone = train_run(model, recipe(pictures, early_stop=1e-12), tmp_path / "alone")
    first = alone.state.validation_losses[0]

    def after_three(losses: Sequence[float], _: float) -> bool:
        return len(losses) >= 3 and abs(losses[0] - first) < first * 1e-4

    rule(after_three)
    one = Run(tmp_path / "one", recipe(pictures))
    other = Run(tmp_path / "other", recipe(others, token="<another>"))
    events = [event for event in train_many(model, [one, other]) if isinstance(event, tuple)]
    assert [(run, e.step) for run, e in events if isinstance(e, EarlyStop)] == [(one, 4)]
    assert one.concept.provenance.steps == 4
    assert other.concept.provenance.steps == 8
    assert one.finished
    assert other.finished
    losses = one.state.validation_losses
    expected = {n: loss for n, loss in alone.state.validation_losses.items() if n <= 4}
    assert {n: losses[n] for n in expected} == pytest.approx(expected, rel=1e-4)


@dataclass
class Scores:
    """Scores previews with the values of a list."""

    scores: list[float]

    def preview(
        self, model: object, recipe: object, number: int, folder: Path, *_: object
    ) -> object:
        assert model
        assert recipe
        best = self.scores[number // 2 - 1]
        findings = Findings(8, JudgeScore(best, best), base_prompt=1.0, copies=0)
        return Preview(number, folder / "none.png"), findings


def no_judge(_: Run, __: Model, ___: Iterable[Run]) -> Iterator[Notice]:
    yield from ()


def test_the_best_concept_is_kept(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Scores([0.2, 0.9, 0.9, 0.5])
    monkeypatch.setattr(run_folder, "save_preview", judge.preview)
    monkeypatch.setattr(Run, "create_judge", no_judge)
    previewed = recipe(pictures, preview_every=2, early_stop=0, save_every=4)
    run = Run.create(tmp_path / "run", previewed)
    scored = [event for event in run.train(model) if isinstance(event, PreviewScores)]
    assert [event.is_best for event in scored] == [True, True, False, False]
    assert (run.state.best_step, run.concept.provenance.steps) == (4, 8)
    assert run.state.result_file.name == "best.safetensors"
    assert run.state.best
    assert not [p for p in run.state.best.problems if "low subject fidelity" in p]
    # The folder stands for the best concept; the others are loaded by file name.
    assert read_concept(run.folder).provenance.steps == 4
    assert read_concept(run.folder).provenance.scores["best"] == 0.9
    saved = sorted((run.folder / "concepts").iterdir())
    assert [read_concept(file).provenance.steps for file in saved] == [4, 8]
    assert [event.score for event in run.state.of_kind(PreviewScores)] == judge.scores

    # An interrupted run has the same best concept, to the byte.
    part = Run.create(tmp_path / "part", previewed)
    with closing(part.train(model)) as training:
        for event in training:
            if isinstance(event, PreviewScores) and event.step == 4:
                break
    list(Run.open(part.folder).train(model))
    assert part.state.result_file.read_bytes() == run.state.result_file.read_bytes()

    # A damaged best concept is an error, and is replaced when a preview is scored again.
    run.state.result_file.write_bytes(run.state.result_file.read_bytes()[:-9])
    with pytest.raises(FileError, match=r"best\.safetensors"):
        read_concept(run.folder)
    assert read_concept(run.folder / "concept.safetensors").provenance.steps == 8
    judge.scores.append(0.1)
    list(Run.open(run.folder, steps=10).train(model))
    assert run.state.best_step == 10


@pytest.mark.long
@pytest.mark.usefixtures("separating")
def test_previews_are_scored_during_training(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    metrics = MetricSet.for_pocket(Eyes().requires_grad_(False).eval(), "object")
    previewed = recipe(pictures, preview_every=4, steps=8, early_stop=0)
    prompt_run = PromptRun(previewed, evenly_spaced(prompt_set("objects", "dog"), 2), steps=1)
    original = subject_judge

    def judge(*arguments: Any, folder: Path) -> Judge:
        return original(*arguments, folder=folder, metrics=metrics, prompt_run=prompt_run)

    monkeypatch.setattr("pinxit.runs.run.subject_judge", judge)
    run = Run.create(tmp_path / "run", previewed)
    events = list(run.train(model))
    assert not [event.message for event in events if isinstance(event, Notice)]
    scored = [event for event in events if isinstance(event, PreviewScores)]
    assert [event.step for event in scored] == [4, 8]
    assert scored[0].is_best
    assert run.state.best == (scored[-1] if scored[-1].is_best else scored[0])
    assert len(list((run.folder / "plain").iterdir())) == 2
    # An interrupted run has the same scores.
    part = Run.create(tmp_path / "part", previewed)
    with closing(part.train(model)) as training:
        for event in training:
            if isinstance(event, StepResult) and event.number == 5:
                break
    events = list(Run.open(part.folder).train(model))
    assert [event for event in events if isinstance(event, PreviewScores)] == scored[1:]
    assert part.state.result_file.read_bytes() == run.state.result_file.read_bytes()


def test_training_without_a_judge(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object, **__: object) -> None:
        raise RequestError("no metrics for this base model", "choose another base model")

    monkeypatch.setattr("pinxit.runs.run.subject_judge", judge)
    run = Run.create(tmp_path / "run", recipe(pictures, steps=2, preview_every=2))
    events = list(run.train(model))
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert notice == (
        "previews are not scored: no metrics for this base model. hint: choose another base model"
    )
    assert [event.step for event in events if isinstance(event, Preview)] == [2]
    assert run.state.result_file.name == "concept.safetensors"


def losses(first: float, previous: float, latest: float) -> list[float]:
    """The first loss, and two windows of equal losses."""
    return [first, *[previous] * 12, *[latest] * 12]


def test_converged() -> None:
    assert converged(losses(1.0, 0.5, 0.5), 0.05)
    assert converged(losses(1.0, 0.5, 0.48), 0.05)
    assert converged(losses(1.0, 0.5, 0.6), 0.05)
    assert converged(losses(1.0, 1.2, 1.2), 0.05)
    assert not converged(losses(1.0, 0.5, 0.4), 0.05)
    assert not converged(losses(1.0, 0.5, 0.48), 0.03)
    assert not converged(losses(1.0, 0.5, 0.5)[1:], 0.05)
    assert not converged(losses(1.0, 0.5, 0.5), 0.0)
    assert not converged([], 0.05)
    # A steady improvement has not converged, however slow it is.
    assert not any(converged([1 - n / 1e4 for n in range(count)], 0.05) for count in range(60))


@pytest.mark.parametrize(
    ("advised", "batch_size", "interval"),
    [(300, 8, 8), (300, 4, 8), (2000, 2, 50), (1000, 1, 25), (9, 9, 3)],
)
def test_validation_is_cheap(advised: int, batch_size: int, interval: int) -> None:
    assert validation_interval(advised, batch_size) == interval
    assert VALIDATION_SAMPLES / (3 * batch_size * interval) < 0.12


def _steps(run: Run) -> list[object]:
    return [(step.number, step.losses, step.norms) for step in run.state.steps]
