"""A run's folder: its recipe, journal of steps, previews, checkpoints, and what was learned."""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pinxit.concepts.concept import Concept, Provenance
from pinxit.errors import DiskError, PinxitError, RunError
from pinxit.evaluation.judge import Judge
from pinxit.files.atomic_write import make_folder, must_be_regular, replace_text, sweep, undisturbed
from pinxit.generation import image_cache as portfolio
from pinxit.generation.generate import Notice
from pinxit.images.folder import Picture, fingerprints
from pinxit.runs import best
from pinxit.runs.best import Scored
from pinxit.runs.checkpoint import NAMES, Manifest, keep, newest
from pinxit.runs.journal import Journal
from pinxit.runs.preview import Preview, preview
from pinxit.training.concept_trainer import DivergedError, Learner
from pinxit.training.memory import Choice
from pinxit.training.method import Preparing
from pinxit.training.recipe import Recipe
from pinxit.training.train import Step

RECIPE = "recipe.toml"
_JOURNAL = "journal.jsonl"
_CONCEPT = "concept.safetensors"
_CHECKPOINTS = "checkpoints"
_PREVIEWS = "previews"
_CONCEPTS = "concepts"
PLAIN = "plain"
_FILES = (RECIPE, _JOURNAL, _CONCEPT, best.FILE)
# The names of the files that a run writes, by folder.
_WRITTEN = {
    "": re.compile("|".join(map(re.escape, _FILES))),
    _CHECKPOINTS: NAMES,
    _CONCEPTS: NAMES,
    _PREVIEWS: re.compile(r"[0-9]{7,}\.png"),
    PLAIN: portfolio.NAMES,
}

# What a run is slowed down to when its learning has gone wrong.
_GENTLER = 0.5
_BROKEN = "are of one colour: a lower --rate or --precision fp32 may help"


@dataclass(frozen=True)
class Saved:
    """What was learned is on the disk, up to this step."""

    number: int
    path: Path


@dataclass(frozen=True)
class Chosen:
    """How steps are computed from now on, and why."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A run cannot begin or go on; what it learned before stays."""

    error: PinxitError


@dataclass(frozen=True)
class Stopped:
    """Enough is learned after this step, earlier than the recipe allows."""

    number: int

    @property
    def text(self) -> str:
        """Itself in words."""
        return f"enough is learned after step {self.number} (--stop 0 takes all steps)"


Event = Preparing | Step | Preview | Scored | Saved | Notice | Chosen | Stopped
Told = Event | Failed


class RunFolder:
    """What is in a run's folder, and the only writer into it."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.pictures: tuple[Picture, ...] = ()
        self.notes = Journal(folder / _JOURNAL)
        self.kept = 0  # the step that the disk surely has
        self.judge: Judge | None = None  # who scores its previews
        self._noted = 0
        self._seen = -1  # the step of the last look that was noted
        self._full = False

    @property
    def concept(self) -> Concept:
        """What was learned last; ConceptError if nothing was yet."""
        return Concept.load(self.folder / _CONCEPT)

    @property
    def best(self) -> int | None:
        """After which step it scored best, if it was scored."""
        found = best.kept(self.folder)
        return found.provenance.steps if found else None

    @property
    def wrong(self) -> list[str]:
        """What is wrong with the best, in sentences; none if nothing was scored."""
        step, noted = self.best, (entry for entry in self.notes.entries() if "wrong" in entry)
        return next((entry["wrong"] for entry in noted if entry["number"] == step), [])

    @property
    def result(self) -> Path:
        """What to paint with: the best, or what was learned last if nothing was scored."""
        kept = self.folder / best.FILE
        return kept if kept.is_file() else self.folder / _CONCEPT

    @property
    def stopped(self) -> int | None:
        """After which step enough was learned, if before the recipe's last."""
        found = [entry["stopped"] for entry in self.notes.entries() if "stopped" in entry]
        return found[-1] if found and self.recipe.stop else None

    def must_be_whole(self) -> None:
        """RunError if what a run writes to is a link, which could lead out of its folder."""
        must_be_regular(*(self.folder / name for name in (*_WRITTEN, *_FILES) if name))

    def write_recipe(self) -> None:
        """Make the folder a run's, to go on with, before anything that takes long."""
        if not (self.folder / RECIPE).is_file():
            with self.resumable():
                replace_text(self.folder / RECIPE, self.recipe.to_toml())

    def begin(self, learner: Learner, wrong: str | None = None) -> Generator[Event]:
        """Bring a new learner to where the run stopped, or to where it was before it went wrong."""
        with self.resumable():
            for name, written in _WRITTEN.items():
                sweep(self.folder / name, written)
            every = self.recipe.checkpoint_every if wrong else 1
            if found := newest(self.folder / _CHECKPOINTS, every):
                steps = self.recipe.steps or 0
                found.manifest.must_fit(learner.model, fingerprints(self.pictures), steps)
                learner.restore(found.state)
                for file in found.damaged:
                    yield Notice(f"{file} is damaged: going on from step {learner.done}")
            elif not wrong:
                yield from self._afresh()
            self.kept = self._noted = learner.done
            replace_text(self.folder / RECIPE, self.recipe.to_toml())
            make_folder(self.folder / _PREVIEWS)
            self.notes.go_back(learner.done)
            self._seen = max(self.notes.looks(), default=-1)
            self._note_looks(learner, learner.done)
            yield from self._ended(learner)
            if wrong:
                learner.pace *= _GENTLER
                self.notes.note(
                    {"number": learner.done + 1, "pace": learner.pace, "because": wrong}
                )
                yield Notice(f"going on from step {learner.done} with {_GENTLER:.0%} of the rate")
            elif found and not self._concept_is(self._provenance(learner)):
                self._keep_concept(learner)

    def follow(self, step: Step, learner: Learner) -> Generator[Event]:
        """Do and tell what is due after a step that was noted."""
        yield step
        yield from self._ended(learner)
        last = not learner.learning
        if _due(step, self.recipe.preview_every, last):
            with self.resumable(), learner.settled_down():
                place = self.folder / _PREVIEWS
                shown = preview(learner.model, self.recipe, step.number, place, self.judge)
            yield shown
            if shown.flat:
                yield Notice(f"{shown.flat} previews of step {step.number} {_BROKEN}")
            if shown.findings:
                with self.resumable(), self._learned(learner) as concept:
                    found = best.offer(self.folder, concept, shown.findings)
                    self.notes.note({"number": step.number, **found.scores, "wrong": found.wrong})
                yield found
        if _due(step, self.recipe.keep_every, last=False):
            with self.resumable():
                make_folder(self.folder / _CONCEPTS)
                self._keep_concept(learner, f"{_CONCEPTS}/{step.number:07}.safetensors")
        if _due(step, self.recipe.checkpoint_every, last):
            self.keep(learner)
            yield Saved(step.number, self.folder / _CONCEPT)

    def note(self, step: Step, learner: Learner) -> None:
        """Add a step, and looks at the fixed samples, to the journal if they are not there."""
        with self.resumable(), undisturbed():
            self._note_looks(learner, step.number - 1)
            if step.number > self._noted:
                entry = asdict(step)
                del entry["concepts"]
                self.notes.note(entry)
                self._noted = step.number
            self._note_looks(learner, step.number)

    def choose(self, choice: Choice) -> None:
        """Add to the journal how steps are computed from now on."""
        with self.resumable():
            self.notes.note({"chosen": choice.noted})

    @property
    def chosen(self) -> Choice | None:
        """How steps were computed last; None if none was."""
        noted = [entry["chosen"] for entry in self.notes.entries() if "chosen" in entry]
        return Choice.read(noted[-1]) if noted else None

    def keep(self, learner: Learner) -> None:
        """Save what is not yet: the learner, to go on from, and the concept, to paint with.

        DivergedError if it holds numbers that are none. What went wrong is not kept, and nothing
        on a disk that is full.
        """
        if learner.done <= self.kept or learner.trouble or self._full:
            return
        state = learner.state()
        broken = sum(not tensor.isfinite().all() for tensor in state.values())
        if broken:
            raise DivergedError(
                f"learning went wrong by step {learner.done}: {broken} of {len(state)} tensors "
                "are not finite",
                "try a lower --rate, or --precision fp32; what was kept before is sound",
            )
        with self.resumable():
            self.notes.flush()
            about = Manifest(learner.done, learner.model.hash, fingerprints(self.pictures))
            keep(self.folder / _CHECKPOINTS, state, about, self.recipe.checkpoint_every)
            self._keep_concept(learner)
            self.kept = learner.done

    def journal(self) -> list[dict[str, Any]]:
        """Every step so far, as it was noted."""
        return self.notes.steps()

    @contextmanager
    def resumable(self) -> Generator[None]:
        """What to do after the disk took no more."""
        try:
            yield
        except DiskError as trouble:
            self._full = True
            raise DiskError(
                trouble.message,
                f"{trouble.hint}, then go on with pinxit train --resume {self.folder}; "
                f"step {self.kept} is kept",
            ) from trouble

    def _afresh(self) -> Iterator[Event]:
        """A notice that steps are lost; RunError if checkpoints are."""
        if (self.folder / _CONCEPT).is_file():
            raise RunError(
                f"the checkpoints of {self.folder} are gone",
                f"bring its folder {_CHECKPOINTS} back from a copy, or begin a new run",
            )
        lost = len(self.journal())
        if lost:
            yield Notice(f"{lost} steps were not kept: it begins again at 1")

    def _keep_concept(self, learner: Learner, name: str = _CONCEPT) -> None:
        with self._learned(learner) as so_far:
            so_far.save(self.folder / name)

    @contextmanager
    def _learned(self, learner: Learner) -> Generator[Concept]:
        """What is learned so far; its tensors are so only as long as this is open."""
        with learner.settled_down():
            parts = tuple(adapter.part() for adapter in learner.adapters)
            yield Concept(parts, self._provenance(learner))

    def _note_looks(self, learner: Learner, until: int) -> None:
        for step, loss in learner.looks.items():
            if self._seen < step <= until:
                self.notes.note({"number": step, "fixed": loss})
                self._seen = step

    def _ended(self, learner: Learner) -> Iterator[Event]:
        """Note and tell that a run is done before its time."""
        if learner.done == learner.total < (self.recipe.steps or 0):
            if self.stopped != learner.done:
                with self.resumable():
                    self.notes.note({"number": learner.done, "stopped": learner.done})
            yield Stopped(learner.done)

    def _concept_is(self, provenance: Provenance) -> bool:
        """Whether the concept is there, sound, and of this step and recipe."""
        try:
            return self.concept.provenance == provenance
        except PinxitError:
            return False

    def _provenance(self, learner: Learner) -> Provenance:
        recipe, model = self.recipe, learner.model
        return Provenance(
            token=recipe.token,
            class_noun=recipe.class_noun,
            method=recipe.method.name,
            base=model.name,
            base_hash=model.hash,
            steps=learner.done,
            pictures=fingerprints(self.pictures),
            recipe=recipe.to_toml(),
        )


def _due(step: Step, every: int, last: bool) -> bool:
    """Whether something done now and then, and after the last step, is to be done after this."""
    return every > 0 and (step.number % every == 0 or last)
