"""Everything that a run reports, as one line of its training log each. Without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, InstanceOf, PlainSerializer, TypeAdapter, ValidationError

from pinxit.errors import PinxitError
from pinxit.progress import Notice, Progress
from pinxit.training.step_result import StepResult


def share(value: float) -> float:
    """A score as it is shown: between 0 and 1."""
    return min(max(value, 0.0), 1.0)


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
    device: str = ""
    precision: str = ""


@dataclass(frozen=True)
class StepEvent:
    """An event that belongs to a step, and is dropped if the run goes back before it."""

    step: int


@dataclass(frozen=True)
class ValidationLoss(StepEvent):
    """The loss of fixed samples after a step."""

    loss: float


@dataclass(frozen=True)
class MemoryNotice:
    """How steps are computed from now on to fit into memory."""

    micro_batch: int
    gradient_checkpointing: bool = False
    text: str = ""


@dataclass(frozen=True)
class LearningRateReduction(StepEvent):
    """The learning rate from this step on is multiplied by `multiplier`."""

    multiplier: float
    reason: str

    @property
    def text(self) -> str:
        """The event as a message."""
        return f"step {self.step}: learning rate lowered, {self.reason}"


@dataclass(frozen=True)
class Preview(StepEvent):
    """A sheet of images was generated after a step; `num_flat` have only one colour."""

    path: LoggedPath
    num_flat: int = 0


@dataclass(frozen=True)
class PreviewScores(StepEvent):
    """The previews of a step were scored. `problems` are sentences about what they show.

    `likeness` and `score`, which combines both, are None if the judge cannot measure likeness.
    """

    likeness: float | None
    prompt: float
    score: float | None
    is_best: bool = False
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The event as a message."""
        likeness = "" if self.likeness is None else f"likeness {share(self.likeness):.0%}, "
        best = ", the best so far" if self.is_best else ""
        return f"step {self.step}: {likeness}prompts met {share(self.prompt):.0%}{best}"


@dataclass(frozen=True)
class SavedConcept(StepEvent):
    """The concept of a step was saved in a file that later steps do not replace."""

    path: LoggedPath


@dataclass(frozen=True)
class SavedCheckpoint(StepEvent):
    """Checkpoint and concept are saved, up to and including this step."""

    path: LoggedPath


@dataclass(frozen=True)
class EarlyStop(StepEvent):
    """Training stopped early after this step, since it has converged."""

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
class Finished(StepEvent):
    """The last step is trained and saved; `path` is the concept to generate with."""

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

# A line has the name of the event's class as its type.
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in get_args(Event)
}

# Lines of the first version have no type: the type by a key that only such lines have, and the
# names of the values since then.
_UNTYPED = {
    "losses": "StepResult",
    "fixed": "ValidationLoss",
    "chosen": "MemoryNotice",
    "because": "LearningRateReduction",
    "best": "PreviewScores",
    "stopped": "EarlyStop",
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
    name = type(event).__name__
    values = _ADAPTERS[name].dump_python(event, mode="json", exclude={"concepts"})
    return json.dumps({"type": name, **values}, allow_nan=False) + "\n"


def from_line(line: str) -> Event | None:
    """The event of a line, also of one written by the first version; None if it is not valid."""
    try:
        entry: dict[str, Any] = dict(json.loads(line))
        entry = entry if "type" in entry else _with_type(entry)
        event = _ADAPTERS[entry["type"]].validate_python(entry)
    except (ValueError, TypeError, KeyError, ValidationError, RecursionError):
        return None
    is_step = isinstance(event, StepResult)
    return None if is_step and not 0 < len(event.losses) == len(event.norms) else event


def step_of(event: Event) -> int:
    """The step that an event belongs to; 0 if it belongs to the whole run."""
    if isinstance(event, StepResult):
        return event.number
    return event.step if isinstance(event, StepEvent) else 0


def _with_type(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = next((name for key, name in _UNTYPED.items() if key in entry), "")
    values = {**entry, **entry.get("chosen", {})}
    values = {_RENAMED.get(key, key): value for key, value in values.items()}
    return {"step": entry.get("number"), **values, "type": name}
