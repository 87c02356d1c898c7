"""Short runs of every method on a tiny base model with random weights, to be stopped often."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from pinxit import registry
from pinxit.files import atomic_write
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.runs.events import (
    EarlyStop,
    Event,
    LearningRateReduction,
    MemoryNotice,
    PreviewScores,
    ValidationLoss,
)
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe
from pinxit.training.step_result import StepResult

METHODS = registry.names("methods")
STEPS = 12
EVERY = 4
_OPTIONS: dict[str, dict[str, Any]] = {"dreambooth": {"class_images": 2}}
_COLORS = ("crimson", "orange", "purple")


class Workshop:
    """A folder with a base model and images, in which runs are created."""

    def __init__(self, folder: Path) -> None:
        tests = Path(__file__).resolve().parents[2] / "tests"
        save_nano: Callable[[Path], Path] = run_path(str(tests / "conftest.py"))["save_nano"]
        self.folder = folder
        os.environ["PINXIT_CACHE"] = str(folder / "cache")
        self.base = save_nano(folder / "base")
        self.images = folder / "images"
        self.images.mkdir()
        for number, color in enumerate(_COLORS):
            image = Image.new("RGB", (40 + number, 48), color)
            image.save(self.images / f"{number}.png")

    @cached_property
    def model(self) -> Model:
        """The open base model."""
        return open_base(self.base)

    def recipe(self, method: str, steps: int = STEPS, every: int = EVERY) -> Recipe:
        """A short run of a method."""
        return Recipe.model_validate(
            {
                "method": {"name": method, **_OPTIONS.get(method, {})},
                "images": self.images,
                "token": "<mytoy>",
                "class_noun": "toy",
                "batch_size": 1,
                "steps": steps,
                "preview_every": 0,
                "early_stop": 1e-12,
                "validate_every": 2,
                "checkpoint_every": every,
            }
        )

    def events(self, folder: Path, recipe: Recipe) -> Generator[Event]:
        """Train a run, or continue it if it exists; yields its events."""
        run = Run.open(folder) if Run.exists(folder) else Run.create(folder, recipe)
        return run.train(self.model)

    def finish(self, folder: Path, recipe: Recipe) -> str:
        """Train a run to its end and return the hash of its result."""
        list(self.events(folder, recipe))
        return result_hash(folder)


def result_hash(folder: Path, concept: bytes | None = None) -> str:
    """The SHA-256 of the result of a run: concept (or these bytes), last checkpoint and log."""
    log = list(training_log(Run.open(folder)))
    last = max((folder / "checkpoints").glob("*.safetensors"))
    if concept is None:
        concept = (folder / "concept.safetensors").read_bytes()
    return sha256(concept + last.read_bytes() + last.name.encode() + repr(log).encode()).hexdigest()


def training_log(run: Run) -> Iterator[object]:
    """The log entries that do not depend on time or on interruptions."""
    for event in run.state.events:
        if isinstance(event, StepResult):
            yield replace(event, seconds=0)
        elif isinstance(event, MemoryNotice):
            yield replace(event, text="")
        elif isinstance(event, _REPEATABLE):
            yield event


# The other events differ if a run is interrupted.
_REPEATABLE = (ValidationLoss, PreviewScores, LearningRateReduction, EarlyStop)


@contextmanager
def workshop() -> Iterator[Workshop]:
    """A workshop in a temporary folder."""
    with TemporaryDirectory() as folder:
        yield Workshop(Path(folder))


@contextmanager
def simulated_disk(disk: object) -> Iterator[None]:
    """Replace `os` in pinxit's file writer by a simulated disk."""
    original = atomic_write.os
    atomic_write.os = disk  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        atomic_write.os = original
