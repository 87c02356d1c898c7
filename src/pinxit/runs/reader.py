"""The state of a run, read from its folder without torch and without a change to it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pinxit.arguments import checked
from pinxit.concepts.metadata import read_metadata
from pinxit.errors import FileError, PinxitError, RunError
from pinxit.files.atomic_write import is_locked
from pinxit.files.untrusted import read_untrusted_text, run_hint
from pinxit.progress import Notice, Progress
from pinxit.runs.events import (
    EarlyStop,
    Event,
    Finished,
    LearningRateReduction,
    MemoryNotice,
    Preview,
    PreviewScores,
    RunFailure,
    SavedCheckpoint,
    Started,
    Stopped,
    ValidationLoss,
)
from pinxit.runs.file_names import (
    BEST,
    CHECKPOINTS,
    CONCEPT,
    JOURNAL,
    PREVIEWS,
    RECIPE,
    result_file,
)
from pinxit.runs.journal import TrainingLog
from pinxit.training.step_result import StepResult

Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class RunState:
    """A run at one moment: its recipe as stored, its log, and what is saved.

    `saved_step` and `best_step` are the steps of the last and of the best concept, if there are
    any. `is_running` is whether a process trains the run now.
    """

    folder: Path
    recipe: Mapping[str, Any]
    events: tuple[Event, ...]
    saved_step: int | None
    best_step: int | None
    is_running: bool

    def __repr__(self) -> str:
        """One line without the events."""
        steps = f"{self.saved_step or 0} of {self.total_steps or '?'} steps"
        return f"<RunState {self.folder}: {self.state}, {steps}>"

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """The events of one kind, oldest first."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def state(self) -> Literal["waiting", "running", "stopped", "failed", "done"]:
        """What the run does now. Waiting: nothing is trained yet. Stopped: it can be continued."""
        if self.is_running:
            return "running"
        if self.is_done:
            return "done"
        if self.error:
            return "failed"
        return "stopped" if self.of_kind(Started) or self.steps else "waiting"

    @property
    def is_done(self) -> bool:
        """Whether the concept of the last step, or of early stopping, is saved without an error."""
        last = (self.total_steps, self.early_stop)
        return self.saved_step is not None and self.saved_step in last and not self.error

    @property
    def total_steps(self) -> int | None:
        """The number of steps to train; None if the recipe does not say it."""
        return self.recipe.get("steps")

    @property
    def early_stop(self) -> int | None:
        """The step of early stopping; None if it did not happen or is switched off."""
        stops = self.of_kind(EarlyStop)
        is_on = self.recipe.get("early_stop") or self.recipe.get("stop")
        return stops[-1].step if stops and is_on else None

    @property
    def steps(self) -> list[StepResult]:
        """The results of all steps."""
        return self.of_kind(StepResult)

    @property
    def validation_losses(self) -> dict[int, float]:
        """The validation loss by step."""
        return {event.step: event.loss for event in self.of_kind(ValidationLoss)}

    @property
    def previews(self) -> dict[int, Path]:
        """The sheet of preview images by step."""
        return {
            event.step: self.folder / PREVIEWS / event.path.name for event in self.of_kind(Preview)
        }

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.folder / CHECKPOINTS).glob("*.safetensors"))

    @property
    def best(self) -> PreviewScores | None:
        """The scores of the best step; None if no preview was scored."""
        scores = [event for event in self.scores if event.step == self.best_step]
        return scores[-1] if scores else None

    @property
    def scores(self) -> list[PreviewScores]:
        """The scores of all previews that were scored."""
        return self.of_kind(PreviewScores)

    @property
    def notices(self) -> list[str]:
        """All notices."""
        return [event.message for event in self.of_kind(Notice)]

    @property
    def decisions(self) -> list[str]:
        """What training has decided by itself: a lower learning rate, an early stop."""
        return [e.text for e in self.events if isinstance(e, LearningRateReduction | EarlyStop)]

    @property
    def progress(self) -> Progress | None:
        """The task before training that was reported last."""
        return next(reversed(self.of_kind(Progress)), None)

    @property
    def memory_plan(self) -> MemoryNotice | None:
        """How the last steps were computed; None before the first step."""
        return next(reversed(self.of_kind(MemoryNotice)), None)

    @property
    def error(self) -> PinxitError | None:
        """The error that ended the last attempt to train the run; None if none did."""
        ends = [e for e in self.events if isinstance(e, Started | Stopped | RunFailure | Finished)]
        return ends[-1].error if ends and isinstance(ends[-1], RunFailure) else None

    @property
    def concept_file(self) -> Path:
        """The concept of the last saved step."""
        return self.folder / CONCEPT

    @property
    def result_file(self) -> Path:
        """The concept to generate with: the best, or the last if no preview was scored."""
        return result_file(self.folder)


@checked
def read_run(folder: Path | str) -> RunState:
    """Read the state of a run; RunError if the folder is not a run's."""
    folder = Path(folder)
    return RunState(
        folder,
        _read_recipe(recipe_file(folder)),
        tuple(TrainingLog(folder / JOURNAL).events()),
        saved_step(folder / CONCEPT),
        saved_step(folder / BEST),
        is_locked(folder),
    )


def read_log(folder: Path) -> RunState:
    """Like `read_run`, but from recipe and log alone: no concept file is opened.

    The saved steps are those in the log: they can be older than the files after a power failure.
    """
    events = tuple(TrainingLog(folder / JOURNAL).events())
    saved = [e.step for e in events if isinstance(e, SavedCheckpoint | Stopped | Finished)]
    best = [e.step for e in events if isinstance(e, PreviewScores) and e.is_best]
    return RunState(
        folder,
        _read_recipe(folder / RECIPE),
        events,
        max(saved, default=None),
        max(best, default=None),
        is_locked(folder),
    )


def recipe_file(folder: Path) -> Path:
    """The recipe of a run; RunError if the folder is not a run's."""
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder} is not a run folder", run_hint(folder))
    return folder / RECIPE


def saved_step(concept: Path) -> int | None:
    """The step of a concept file; None if there is no file or it is damaged."""
    try:
        return read_metadata(concept).steps
    except PinxitError:
        return None


def _read_recipe(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(read_untrusted_text(path))
    except (FileError, ValueError, RecursionError):
        return {}
