"""The queue: a folder for each job, with its options, its log and how it ended. Without torch."""

import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pinxit.errors import FileError, PinxitError, RequestError, RunError
from pinxit.files.atomic_write import (
    append,
    exclusive_lock,
    is_locked,
    make_folder,
    remove,
    write_text,
)
from pinxit.files.untrusted import read_untrusted_text
from pinxit.progress import Notice, Progress
from pinxit.studio.stored import RESULT, JobKind, job_of, problem_of

if TYPE_CHECKING:  # the types of the log load slowly: the first page must not wait for them
    from pinxit.runs.journal import TrainingLog

JobState = Literal["waiting", "running", "stopping", "stopped", "failed", "done"]
KIND_NAMES: Mapping[JobKind, str] = {
    "train": "training",
    "generate": "generation",
    "inspect": "file",
    "convert": "conversion",
    "compare": "comparison",
    "texts": "texts and tokens",
    "drift": "images without the token",
    "damaged": "damaged job",
}
# A job whose process died this many times without any progress is not started again.
MAX_ATTEMPTS = 5
_OPTIONS, _LOG, _RESULT = "job.json", "journal.jsonl", "result.json"
_STOP, _PREVIEW, _ATTEMPTS, _TITLE = "stop", "preview", "attempts", "title"
_MAX_TITLE, _MAX_NUMBER = 60, 999_999


@dataclass(frozen=True)
class Job:
    """A job in its folder. `options` never change; the state is what is in the folder.

    `problem` is what is wrong with the stored options of a damaged job, and `is_own` is whether the
    studio may change it.
    """

    is_own: ClassVar = True

    folder: Path
    kind: JobKind
    options: Mapping[str, Any] = field(repr=False)
    problem: str = field(default="", kw_only=True)

    @property
    def id(self) -> str:
        """The number of the job, which is the name of its folder."""
        return self.folder.name

    @property
    def label(self) -> str:
        """What people call the job."""
        return f"job {int(self.id)}"

    @property
    def title(self) -> str:
        """The name that the user has given it; empty if there is none."""
        file = self.folder / _TITLE
        return file.read_text("utf-8", "replace") if file.is_file() else ""

    def rename(self, title: str) -> None:
        """Give it a name, or none."""
        write_text(self.folder / _TITLE, title.strip()[:_MAX_TITLE])

    @property
    def created(self) -> float:
        """When the job was queued, in seconds since 1970."""
        return (self.folder / _OPTIONS).stat().st_mtime

    @property
    def log(self) -> "TrainingLog":
        """The progress and the notices of the job."""
        from pinxit.runs.journal import TrainingLog

        return TrainingLog(self.folder / _LOG)

    @property
    def result(self) -> Mapping[str, str] | None:
        """How the job ended: its state, and message and hint of an error; None if it has not."""
        if self.problem:
            return _damaged(self.problem, f"mend its file in the folder {self.folder.name}")
        result = read_json(self.folder / _RESULT, damaged={})
        if result is None:
            return None
        problem = problem_of(result, RESULT, _RESULT)
        return _damaged(problem, "try again") if problem else {"message": "", "hint": "", **result}

    @property
    def state(self) -> JobState:
        """What the job does now, from the files and the lock in its folder."""
        result, stop = self.result, self.stop_requested
        if result:
            return cast("JobState", result["state"])
        if is_locked(self.folder):
            return "stopping" if stop else "running"
        return "stopped" if stop else "waiting"

    @property
    def is_active(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in ("waiting", "running", "stopping")

    @property
    def stop_requested(self) -> bool:
        """Whether the job is to stop."""
        return (self.folder / _STOP).exists()

    def read_log(self) -> tuple[Progress | None, list[str]]:
        """The last progress in the log, and all notices without repetitions."""
        events = self.log.events()
        progress = [event for event in events if isinstance(event, Progress)]
        notices = [event.message for event in events if isinstance(event, Notice)]
        return progress[-1] if progress else None, list(dict.fromkeys(notices))

    def request_stop(self) -> None:
        """Ask the worker to stop the job, or leave it out if it waits."""
        write_text(self.folder / _STOP, "")

    @property
    def preview_requested(self) -> bool:
        """Whether a training is to make previews after its next step."""
        return (self.folder / _PREVIEW).exists()

    def request_preview(self) -> None:
        """Ask a training for previews after its next step."""
        write_text(self.folder / _PREVIEW, "")

    def drop_preview_request(self) -> None:
        """Remove the request for previews, which have been generated."""
        remove(self.folder / _PREVIEW)

    def requeue(self) -> None:
        """Let the job wait again after it was stopped or has failed."""
        remove(self.folder / _ATTEMPTS, self.folder / _RESULT, self.folder / _STOP)

    def finish(self, error: PinxitError | None = None) -> None:
        """Record that the job is done, or that it has failed."""
        result = {"state": "done"}
        if error:
            result = {"state": "failed", "message": error.message, "hint": error.hint}
        write_text(self.folder / _RESULT, json.dumps(result))

    def count_attempt(self, progress: object) -> None:
        """Log that a process starts the job; RunError if the last ones all died at this progress.

        `progress` is whatever grows while the job makes progress, such as the saved step.
        """
        file = self.folder / _ATTEMPTS
        attempts = file.read_text("utf-8", "replace").splitlines() if file.is_file() else []
        if attempts[-MAX_ATTEMPTS:] == [str(progress)] * MAX_ATTEMPTS:
            raise RunError(
                f"the worker ended {MAX_ATTEMPTS} times while it did this job",
                "it may need more memory than there is: choose a smaller size, batch or base "
                "model; the log of the worker is on the page Queue",
            )
        append(file, f"{progress}\n")

    def reset_attempts(self) -> None:
        """Count the attempts from 0 again, since a process has left the job on purpose."""
        remove(self.folder / _ATTEMPTS)


class JobQueue:
    """The folder of all jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: dict[str, Job] = {}

    def add(self, kind: JobKind, options: Mapping[str, Any]) -> Job:
        """Queue a new job. It is there completely or not at all, even if the process is killed."""
        trash = self.folder.parent / "trash" / self.folder.name  # its numbers are not free
        folder = new_numbered_folder(self.folder, trash)
        text = json.dumps({"kind": kind, "options": dict(options)}, indent=1)
        write_text(folder / _OPTIONS, text)
        return self.get(folder.name)

    def get(self, number: str) -> Job:
        """The job with this number; RequestError if there is none."""
        if number in self._jobs and (self._jobs[number].folder / _OPTIONS).is_file():
            return self._jobs[number]
        file = self.folder / number / _OPTIONS
        if not is_number(number) or not file.is_file():
            raise RequestError(f"there is no job {number[:20]!r}", "see the page Queue")
        kind, options, problem = job_of(read_json(file))
        job = Job(self.folder / number, kind, options, problem=problem)
        if not problem:
            self._jobs[number] = job
        return job

    def all(self) -> list[Job]:
        """All jobs, oldest first."""
        folders = numbered_folders(self.folder)
        return [self.get(path.name) for path in folders if (path / _OPTIONS).is_file()]

    def next_waiting(self, *, short: bool = False) -> Job | None:
        """The job to do next: trainings come last. With `short`, no training at all."""
        waiting = [
            job
            for job in self.all()
            if not (short and job.kind == "train") and job.state == "waiting"
        ]
        return min(waiting, key=lambda job: (job.kind == "train", job.id), default=None)

    @contextmanager
    def claim(self) -> Generator[Job | None]:
        """Lock the next job; None if there is none. The lock ends with the process."""
        with ExitStack() as lock:
            job = self.next_waiting()
            try:
                if job:
                    lock.enter_context(exclusive_lock(job.folder))
            except RunError:  # another worker was faster
                job = None
            yield job if job and job.result is None and not job.stop_requested else None


def _damaged(problem: str, hint: str) -> Mapping[str, str]:
    message = f"what is stored of it is damaged: {problem}"
    return {"state": "failed", "message": message, "hint": hint}


def is_number(text: str) -> bool:
    """Whether a text is the number of a folder: six digits."""
    return len(text) == 6 and text.isascii() and text.isdecimal()


def numbered_folders(parent: Path) -> list[Path]:
    """The folders whose names are numbers, in order."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if is_number(path.name))


def new_numbered_folder(parent: Path, *others: Path) -> Path:
    """Make a folder with the next number that is free here and in other folders."""
    make_folder(parent)
    taken = {int(path.name) for place in (parent, *others) for path in numbered_folders(place)}
    number = max(taken, default=0)
    while True:
        number = number % _MAX_NUMBER + 1  # a folder of another program may have the last one
        with suppress(FileExistsError):  # another process has just taken the number
            folder = parent / f"{number:06}"
            if number not in taken:
                folder.mkdir()
                return folder


def read_json(file: Path, damaged: object = None) -> Any:
    """The content of a JSON file; None if there is no such file, and `damaged` if it has none."""
    try:
        return json.loads(read_untrusted_text(file)) if os.path.lexists(file) else None
    except (FileError, ValueError, RecursionError):
        return damaged


def safe_stem(name: str) -> str:
    """A file name without its folder, suffix and everything but letters, digits and hyphens."""
    stem = Path(name.replace("\\", "/")).name.rpartition(".")[0] or name
    return re.sub(r"[^\w-]+", " ", stem).strip(" -_")[:60] or "image"


def stamp_of(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file changes."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
