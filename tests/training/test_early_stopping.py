"""Stopping: the fixed samples, when a run has learned enough, and which step is the best."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pinxit.concepts.concept import Concept
from pinxit.errors import FileError, RequestError
from pinxit.evaluation.findings import Findings
from pinxit.evaluation.judge import Judge, Sight, Sitting, Verdict
from pinxit.evaluation.prompt_sets import brief, prompt_set
from pinxit.generation.generate import Notice
from pinxit.models.model import Model
from pinxit.pocket.eyes import Eyes
from pinxit.runs import folder as run_folder
from pinxit.runs.best import Scored
from pinxit.runs.folder import Stopped
from pinxit.runs.many import learn_many
from pinxit.runs.preview import Preview
from pinxit.runs.run import Run, teach
from pinxit.training import concept_trainer
from pinxit.training.early_stopping import SAMPLES, settled, steps_between_looks
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, Step

Rule = Callable[[Sequence[float], float], bool]


def recipe(pictures: Path, **changed: object) -> Recipe:
    small = {"steps": 8, "batch_size": 2, "preview_every": 0, "checkpoint_every": 3}
    given = {"pictures": pictures, "token": "<mytoy>", "class_noun": "toy"}
    looks = {"look_every": 2, "stop": 1.0}
    return Recipe.model_validate(
        {"method": "textual-inversion", **given, **small, **looks, **changed}
    )


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rule], None]:
    """Puts another rule in the place of the real one, which wants more looks than a test has."""
    return lambda other: monkeypatch.setattr(concept_trainer, "settled", other)


def four_looks(losses: Sequence[float], share: float) -> bool:
    return share > 0 and len(losses) >= 4


def never(_: Sequence[float], __: float) -> bool:
    return False


def test_fixed_samples_stay(model: Model, pictures: Path) -> None:
    one = Lesson.of(model, recipe(pictures).settled(model, 3), recipe(pictures).read_pictures())
    samples = one.learners[0].samples
    first, again = samples.fixed(8, 0), samples.fixed(8, 0)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.noise, b.noise)
        assert (a.time, a.prompt, a.shown) == (b.time, b.prompt, b.shown)
    assert sum(sample.weight for sample in first) == pytest.approx(1)
    shown = [sample.shown for sample in first]
    assert sorted(map(shown.count, set(shown))) == [2, 3, 3]
    times = [sample.time for sample in first]
    assert times == sorted(times)
    assert min(times) < 250
    assert max(times) > 750
    drawn = samples.draw(0, 0)
    assert not torch.equal(first[0].noise, drawn[0].noise)


def test_looking_changes_nothing(model: Model, pictures: Path, tmp_path: Path) -> None:
    seen = teach(model, recipe(pictures, stop=1e-12), tmp_path / "seen")
    unseen = teach(model, recipe(pictures, stop=0), tmp_path / "unseen")
    assert list(seen.notes.looks()) == [0, 2, 4, 6]
    assert not unseen.notes.looks()
    assert _steps(seen) == _steps(unseen)
    one, other = (run.concept.parts[0].tensors for run in (seen, unseen))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("at", range(1, 7))
def test_a_run_that_goes_on_stops_at_the_same_step(
    model: Model, pictures: Path, tmp_path: Path, rule: Callable[[Rule], None], at: int
) -> None:
    rule(four_looks)
    whole = Run.create(tmp_path / "whole", recipe(pictures))
    events = list(whole.learn(model))
    assert [event.number for event in events if isinstance(event, Stopped)] == [6]
    assert [event.number for event in events if isinstance(event, Step)] == [1, 2, 3, 4, 5, 6]
    assert whole.finished
    part = Run.create(tmp_path / "part", recipe(pictures))
    with closing(part.learn(model)) as going:
        for event in going:
            if isinstance(event, Step) and event.number == at:
                # As if the process were killed here; the other way it is stopped in order.
                shutil.copytree(part.folder, tmp_path / "killed")
                break
    for folder in (part.folder, tmp_path / "killed"):
        again = Run.open(folder)
        list(again.learn(model))
        assert Run.open(folder).finished
        assert _entries(again) == _entries(whole)
        files = [run.folder / "concept.safetensors" for run in (again, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_more_steps_on_request(
    model: Model, pictures: Path, tmp_path: Path, rule: Callable[[Rule], None]
) -> None:
    rule(four_looks)
    run = teach(model, recipe(pictures), tmp_path / "run")
    assert not [e for e in Run.open(run.folder).learn(model) if isinstance(e, Step)]
    more = Run.open(run.folder, steps=9)
    assert not more.finished
    assert [e.number for e in more.learn(model) if isinstance(e, Step)] == [7, 8, 9]
    rule(never)
    whole = teach(model, recipe(pictures, steps=9), tmp_path / "whole")
    assert _steps(whole) == _steps(more)


def test_each_of_many_stops_alone(
    model: Model, pictures: Path, tmp_path: Path, rule: Callable[[Rule], None]
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number, colour in enumerate(("teal", "gold")):
        Image.new("RGB", (48, 48), colour).save(others / f"{number}.png")
    alone = teach(model, recipe(pictures, stop=1e-12), tmp_path / "alone")
    first = alone.notes.looks()[0]

    def after_three(losses: Sequence[float], _: float) -> bool:
        return len(losses) >= 3 and abs(losses[0] - first) < first * 1e-4

    rule(after_three)
    one = Run(tmp_path / "one", recipe(pictures))
    other = Run(tmp_path / "other", recipe(others, token="<another>"))
    told = [event for event in learn_many(model, [one, other]) if isinstance(event, tuple)]
    assert [(run, e.number) for run, e in told if isinstance(e, Stopped)] == [(one, 4)]
    assert one.concept.provenance.steps == 4
    assert other.concept.provenance.steps == 8
    assert one.finished
    assert other.finished
    near = [number for number in alone.notes.looks() if number <= 4]
    for number in near:
        assert one.notes.looks()[number] == pytest.approx(alone.notes.looks()[number], rel=1e-4)


@dataclass
class Scores:
    """Scores previews by a list."""

    scores: list[float]

    def preview(
        self, model: object, recipe: object, number: int, folder: Path, _: object
    ) -> object:
        assert model
        assert recipe
        best = self.scores[number // 2 - 1]
        found = Findings(8, Verdict(best, best), base_prompt=1.0, copies=0)
        return Preview(number, folder / "none.png", 0, found)


def nobody(_: Run, __: Model) -> Iterator[Notice]:
    yield from ()


def test_the_best_is_kept(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Scores([0.2, 0.9, 0.9, 0.5])
    monkeypatch.setattr(run_folder, "preview", judge.preview)
    monkeypatch.setattr(Run, "call_judge", nobody)
    given = recipe(pictures, preview_every=2, stop=0, keep_every=4)
    run = Run.create(tmp_path / "run", given)
    scored = [event for event in run.learn(model) if isinstance(event, Scored)]
    assert [event.best for event in scored] == [True, True, False, False]
    assert (run.best, run.concept.provenance.steps) == (4, 8)
    assert run.result.name == "best.safetensors"
    assert not [said for said in run.wrong if "not like its pictures" in said]
    # The folder is the best; the last, and those that stay, are had by name.
    assert Concept.load(run.folder).provenance.steps == 4
    assert Concept.load(run.folder).provenance.scores["best"] == 0.9
    kept = sorted((run.folder / "concepts").iterdir())
    assert [Concept.load(file).provenance.steps for file in kept] == [4, 8]
    entries = [entry["best"] for entry in run.notes.entries() if "best" in entry]
    assert entries == judge.scores

    # A run that stops in between comes to the same best, to the byte.
    part = Run.create(tmp_path / "part", given)
    with closing(part.learn(model)) as going:
        for event in going:
            if isinstance(event, Scored) and event.number == 4:
                break
    list(Run.open(part.folder).learn(model))
    assert part.result.read_bytes() == run.result.read_bytes()

    # What is damaged is told, and replaced when something is scored again.
    run.result.write_bytes(run.result.read_bytes()[:-9])
    with pytest.raises(FileError, match=r"best\.safetensors"):
        Concept.load(run.folder)
    assert Concept.load(run.folder / "concept.safetensors").provenance.steps == 8
    judge.scores.append(0.1)
    list(Run.open(run.folder, steps=10).learn(model))
    assert run.best == 10


def test_previews_are_judged_as_it_goes(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    blind = Sight.of_pocket(Eyes().requires_grad_(False).eval(), "object")
    given = recipe(pictures, preview_every=4, steps=8, stop=0)
    sitting = Sitting(given, brief(prompt_set("objects", "dog"), 2), steps=1)
    real = Judge.of

    def of(*asked: Any, folder: Path) -> Judge:
        return real(*asked, folder=folder, sight=blind, sitting=sitting)

    monkeypatch.setattr(Judge, "of", of)
    run = Run.create(tmp_path / "run", given)
    events = list(run.learn(model))
    assert not [event.message for event in events if isinstance(event, Notice)]
    scored = [event for event in events if isinstance(event, Scored)]
    assert [event.number for event in scored] == [4, 8]
    assert scored[0].best
    assert run.wrong == list(scored[-1].wrong if scored[-1].best else scored[0].wrong)
    assert len(list((run.folder / "plain").iterdir())) == 2
    # The same again, and with a stop in between: the same scores.
    part = Run.create(tmp_path / "part", given)
    with closing(part.learn(model)) as going:
        for event in going:
            if isinstance(event, Step) and event.number == 5:
                break
    told = [event for event in Run.open(part.folder).learn(model) if isinstance(event, Scored)]
    assert told == scored[1:]
    assert part.result.read_bytes() == run.result.read_bytes()


def test_a_base_that_nobody_can_judge_is_learned_all_the_same(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(*_: object, **__: object) -> None:
        raise RequestError("pictures cannot be judged by no-one: gone", "look elsewhere")

    monkeypatch.setattr(Judge, "of", of)
    run = Run.create(tmp_path / "run", recipe(pictures, steps=2, preview_every=2))
    events = list(run.learn(model))
    (said,) = [event.message for event in events if isinstance(event, Notice)]
    assert said == "previews are not scored, for pictures cannot be judged by no-one: gone"
    assert [event.number for event in events if isinstance(event, Preview)] == [2]
    assert run.result.name == "concept.safetensors"


def falling(*sizes: float) -> list[float]:
    """The first loss, and two windows that each have one."""
    first, before, now = sizes
    return [first, *[before] * 12, *[now] * 12]


def test_settled() -> None:
    assert settled(falling(1.0, 0.5, 0.5), 0.05)
    assert settled(falling(1.0, 0.5, 0.48), 0.05)
    assert settled(falling(1.0, 0.5, 0.6), 0.05)
    assert settled(falling(1.0, 1.2, 1.2), 0.05)
    assert not settled(falling(1.0, 0.5, 0.4), 0.05)
    assert not settled(falling(1.0, 0.5, 0.48), 0.03)
    assert not settled(falling(1.0, 0.5, 0.5)[1:], 0.05)
    assert not settled(falling(1.0, 0.5, 0.5), 0.0)
    assert not settled([], 0.05)
    # A steady fall is none that has ended, however slow it is.
    assert not any(settled([1 - n / 1e4 for n in range(count)], 0.05) for count in range(60))


@pytest.mark.parametrize(
    ("advised", "batch", "every"),
    [(300, 8, 8), (300, 4, 8), (2000, 2, 50), (1000, 1, 25), (9, 9, 3)],
)
def test_looks_are_cheap(advised: int, batch: int, every: int) -> None:
    assert steps_between_looks(advised, batch) == every
    assert SAMPLES / (3 * batch * every) < 0.12


def _entries(run: Run) -> list[dict[str, Any]]:
    """The journal, but for times."""
    return [{k: v for k, v in e.items() if k != "seconds"} for e in run.notes.entries()]


def _steps(run: Run) -> list[object]:
    return [(entry["number"], entry["losses"], entry["norms"]) for entry in run.journal()]
