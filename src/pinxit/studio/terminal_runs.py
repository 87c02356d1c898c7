"""Runs that were started at the terminal: folders, or links to folders, in the folder `runs`.

They are only read. A job refers to one by a hash of its place, so that no path is in a request.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.runs.file_names import RECIPE
from pinxit.studio.jobs import Job, JobState, is_number
from pinxit.studio.stored import job_of

if TYPE_CHECKING:
    from pinxit.runs.reader import RunState

_RECIPE = {"token": "", "class_noun": "", "kind": "object", "method": {"name": ""}, "base": ""}


@dataclass(frozen=True)
class TerminalRun(Job):
    """A run that another process trains, shown as a job that can only be looked at."""

    is_own = False

    number: str
    read: "Callable[[], RunState]"

    @property
    def id(self) -> str:
        """A hash of the place of the run's folder."""
        return self.number

    @property
    def label(self) -> str:
        """The name of the run's folder."""
        return f"run {self.folder.name}"

    @property
    def created(self) -> float:
        """When the recipe was written, in seconds since 1970."""
        return (self.folder / RECIPE).stat().st_mtime

    @property
    def result(self) -> Mapping[str, str] | None:
        """Message and hint of the error that ended the run; None if none did."""
        if self.problem:
            return super().result
        error = self.read().error
        return {"message": error.message, "hint": error.hint} if error else None

    @property
    def state(self) -> JobState:
        """What the run does now."""
        state = "failed" if self.problem else self.read().state
        return "stopped" if state == "waiting" else state


def terminal_runs(folder: Path, read: "Callable[[Path], RunState]") -> dict[str, TerminalRun]:
    """The runs of the terminal in a folder, oldest first, by the hash of their place."""
    runs: list[TerminalRun] = []
    for path in _run_folders(folder):
        place = path.relative_to(folder).as_posix().encode()
        content = {"kind": "train", "options": {"recipe": {**_RECIPE, **read(path).recipe}}}
        kind, options, problem = job_of(content)
        number = hashlib.sha256(place).hexdigest()[:16]
        state = partial(read, path)
        runs.append(TerminalRun(path, kind, options, number, state, problem=problem))
    return {run.id: run for run in sorted(runs, key=lambda run: run.created)}


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folders with a recipe in a folder, or in one of its folders; not those of jobs."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_number(path.name) or not path.is_dir():
            continue
        inner = [path] if (path / RECIPE).is_file() else path.iterdir()
        yield from (run for run in inner if (run / RECIPE).is_file())
