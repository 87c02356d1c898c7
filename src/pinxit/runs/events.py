"""Everything that a run reports, as one line of its training log each. Without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, InstanceOf, PlainSerializer, TypeAdapter, ValidationError

from pinxit.errors import PinxitError
from pinxit.progress import Notice, Progress
from pinxit.training.step_result import StepResult


def _file_name(path: Path) -> str:
    return path.name


def _error_values(error: PinxitError) -> dict[str, str]:
    return {"message": error.message, "hint": error.hint}


def _as_error(values: object) -> object:
    return PinxitError(**values) if isinstance(values, dict) else values


# Only the name is written to the log: a run folder can be moved.
LoggedPath = Annotated[Path, PlainSerializer(_file_name)]
LoggedError = Annotated[
    InstanceOf[PinxitError], BeforeValidator(_as_error), PlainSerializer(_error_values)
]


@dataclass(frozen=True)
class Started:
    """A process has started or continued the run after a step, to train it to step `total`."""

    from_step: int
    total: int


@dataclass(frozen=True)
class ValidationLoss:
    """The loss of fixed samples after a step."""

    step: int
    loss: float


@dataclass(frozen=True)
class MemoryNotice:
    """How steps are computed from now on to fit into memory."""

    micro_batch: int
    gradient_checkpointing: bool = False
    text: str = ""


@dataclass(frozen=True)
class LearningRateReduction:
    """The learning rate from this step on is multiplied by `multiplier`."""

    step: int
    multiplier: float
    reason: str


@dataclass(frozen=True)
class Preview:
    """A sheet of images was generated after a step; `num_flat` have only one colour."""

    step: int
    path: LoggedPath
    num_flat: int = 0


@dataclass(frozen=True)
class PreviewScores:
    """The previews of a step were scored. `problems` are sentences about what they show."""

    step: int
    likeness: float
    prompt: float
    score: float
    is_best: bool = False
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The event as a message."""
        scores = f"likeness {self.likeness:.0%}, prompts met {self.prompt:.0%}"
        return f"step {self.step}: {scores}{', the best so far' if self.is_best else ''}"


@dataclass(frozen=True)
class SavedConcept:
    """The concept of a step was saved in a file that stays."""

    step: int
    path: LoggedPath


@dataclass(frozen=True)
class SavedCheckpoint:
    """Checkpoint and concept are saved, up to and including this step."""

    step: int
    path: LoggedPath


@dataclass(frozen=True)
class EarlyStop:
    """Training stopped early after this step, since it has converged."""

    step: int

    @property
    def text(self) -> str:
        """The event as a message."""
        return f"converged after step {self.step}: stopped early (--early-stop 0 trains all steps)"


@dataclass(frozen=True)
class Stopped:
    """The process was stopped; all steps up to and including this one are saved."""

    step: int


@dataclass(frozen=True)
class RunFailure:
    """The run cannot start or continue. What it has saved stays."""

    error: LoggedError


@dataclass(frozen=True)
class Finished:
    """The last step is trained and saved; `path` is the concept to generate with."""

    step: int
    path: LoggedPath


Event = (
    Started
    | Progress
    | MemoryNotice
    | StepResult
    | ValidationLoss
    | LearningRateReduction
    | Preview
    | PreviewScores
    | SavedConcept
    | SavedCheckpoint
    | Notice
    | EarlyStop
    | Stopped
    | RunFailure
    | Finished
)

_TYPES: dict[str, type[Event]] = {
    "started": Started,
    "progress": Progress,
    "memory": MemoryNotice,
    "step": StepResult,
    "validation": ValidationLoss,
    "learning-rate": LearningRateReduction,
    "preview": Preview,
    "scores": PreviewScores,
    "concept": SavedConcept,
    "checkpoint": SavedCheckpoint,
    "notice": Notice,
    "early-stop": EarlyStop,
    "stopped": Stopped,
    "failure": RunFailure,
    "finished": Finished,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_ADAPTERS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(kind) for name, kind in _TYPES.items()}

# Lines of the first version have no type: the type by a key that only such lines have, and the
# names of the values since then.
_UNTYPED = {
    "losses": "step",
    "fixed": "validation",
    "chosen": "memory",
    "because": "learning-rate",
    "best": "scores",
    "stopped": "early-stop",
}
_RENAMED = {
    "rate": "learning_rate",
    "fixed": "loss",
    "together": "micro_batch",
    "economise": "gradient_checkpointing",
    "pace": "multiplier",
    "because": "reason",
    "best": "score",
    "wrong": "problems",
}


def to_line(event: Event) -> str:
    """An event as a line of the training log; ValueError for a number that is not finite."""
    name = _NAMES[type(event)]
    values = _ADAPTERS[name].dump_python(event, mode="json", exclude={"concepts"})
    return json.dumps({"type": name, **values}, allow_nan=False) + "\n"


def from_line(line: str) -> Event | None:
    """The event of a line, also of one written by the first version; None if it is not valid."""
    try:
        entry: dict[str, Any] = dict(json.loads(line))
        entry = entry if "type" in entry else _with_type(entry)
        return _ADAPTERS[entry["type"]].validate_python(entry)
    except (ValueError, TypeError, KeyError, ValidationError):
        return None


def step_of(event: Event) -> int:
    """The step that an event belongs to; 0 if it belongs to the whole run.

    If a run goes back before that step, the event is dropped, since the step is repeated.
    """
    match event:
        case StepResult(number=number):
            return number
        case (
            ValidationLoss(step=step)
            | LearningRateReduction(step=step)
            | Preview(step=step)
            | PreviewScores(step=step)
            | SavedConcept(step=step)
            | SavedCheckpoint(step=step)
            | EarlyStop(step=step)
            | Finished(step=step)
        ):
            return step
        case _:
            return 0


def _with_type(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = next((name for key, name in _UNTYPED.items() if key in entry), "")
    values = {**entry, **entry.get("chosen", {})}
    values = {_RENAMED.get(key, key): value for key, value in values.items()}
    return {"step": entry.get("number"), **values, "type": name}
