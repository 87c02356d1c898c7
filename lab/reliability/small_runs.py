"""Runs of every method on a base of random weights, small enough to be stopped a thousand times."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from pinxit import registry
from pinxit.files import atomic_write
from pinxit.models.model import Model, open_base
from pinxit.runs.folder import Event
from pinxit.runs.run import Run
from pinxit.training.recipe import Recipe

METHODS = registry.names("methods")
STEPS = 12
EVERY = 4
_KNOBS: dict[str, dict[str, Any]] = {"dreambooth": {"prior_pictures": 2}}
_COLOURS = ("crimson", "orange", "purple")


class Workshop:
    """A folder with a base and pictures, where runs are made."""

    def __init__(self, folder: Path) -> None:
        tests = Path(__file__).resolve().parents[2] / "tests"
        save_nano: Callable[[Path], Path] = run_path(str(tests / "conftest.py"))["save_nano"]
        self.folder = folder
        os.environ["PINXIT_CACHE"] = str(folder / "cache")
        self.base = save_nano(folder / "base")
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        for number, colour in enumerate(_COLOURS):
            picture = Image.new("RGB", (40 + number, 48), colour)
            picture.save(self.pictures / f"{number}.png")

    @cached_property
    def model(self) -> Model:
        """The base, open."""
        return open_base(self.base)

    def recipe(self, method: str, steps: int = STEPS, every: int = EVERY) -> Recipe:
        """A short run of a method."""
        return Recipe.model_validate(
            {
                "method": {"name": method, **_KNOBS.get(method, {})},
                "pictures": self.pictures,
                "token": "<mytoy>",
                "class_noun": "toy",
                "batch_size": 1,
                "steps": steps,
                "preview_every": 0,
                "stop": 1e-12,
                "look_every": 2,
                "checkpoint_every": every,
            }
        )

    def events(self, folder: Path, recipe: Recipe) -> Generator[Event]:
        """Go on with a run if it was begun, else begin it, as a person would."""
        begun = (folder / "recipe.toml").is_file()
        return (Run.open(folder) if begun else Run.create(folder, recipe)).learn(self.model)

    def whole(self, folder: Path, recipe: Recipe) -> str:
        """The mark of a run that goes to its end."""
        list(self.events(folder, recipe))
        return mark(folder)


def mark(folder: Path) -> str:
    """The fingerprint of all that a run must come to: concept, last checkpoint, the journal."""
    entries = Run.open(folder).notes.entries()
    told = [{key: value for key, value in e.items() if key != "seconds"} for e in entries]
    last = max((folder / "checkpoints").glob("*.safetensors"))
    files = (folder / "concept.safetensors").read_bytes() + last.read_bytes()
    return sha256(files + last.name.encode() + repr(told).encode()).hexdigest()


@contextmanager
def workshop() -> Iterator[Workshop]:
    """A workshop in a folder that goes away."""
    with TemporaryDirectory() as folder:
        yield Workshop(Path(folder))


@contextmanager
def instead_of_os(disk: object) -> Iterator[None]:
    """Let pinxit write through this disk."""
    real = atomic_write.os
    atomic_write.os = disk  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        atomic_write.os = real
