"""Server-sent events: the log of a job line by line, and the state of the whole studio."""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path

from pinxit.errors import FileError
from pinxit.files.untrusted import open_untrusted
from pinxit.runs.file_names import JOURNAL
from pinxit.studio.jobs import KIND_NAMES, Job
from pinxit.studio.views import TrainingView
from pinxit.studio.workspace import Workspace

_POLL = 0.25  # seconds between looks at a log
_BEAT = 15.0  # seconds after which a silent stream says that it is alive
_MAX_LINE = 2**16  # bytes
_STATUS_AGE = 0.4  # seconds for which all streams use the same status


class LogTail:
    """The new lines of a log file since the last call; it starts after the event `last_id`.

    An event's id is the inode of the file and the offset behind the line. A run that continues
    from a checkpoint replaces its log: then the inode differs, and reading starts over.
    """

    def __init__(self, file: Path, last_id: str = "") -> None:
        self._file = file
        inode, _, offset = last_id.partition("-")
        valid = inode.isdecimal() and offset.isdecimal()
        self._inode, self._offset = (int(inode), int(offset)) if valid else (0, 0)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Ids and lines; first an empty line if the log was replaced."""
        try:
            file = open_untrusted(self._file, sys.maxsize)
        except FileError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                if self._inode:
                    yield f"{status.st_ino}-0", ""
                self._inode, self._offset = status.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._offset += len(line)
                text = line.decode(errors="replace").strip()
                if text:
                    yield f"{self._inode}-{self._offset}", text


@dataclass
class StatusWatch:
    """The state of the studio, read once for all streams and pages."""

    workspace: Workspace
    _time: float = 0.0
    _status: str = ""

    def status(self) -> str:
        """As JSON: `now` for the header, and `version`, which changes with any state."""
        if time.monotonic() - self._time > _STATUS_AGE:
            jobs = self.workspace.jobs()
            active = [job for job in jobs if job.is_active]
            parts = [(job.id, job.state, str(job.read_log()[0])) for job in active]
            parts += [(job.id, "ended", "") for job in jobs if job not in active]
            text = json.dumps([parts, self.workspace.workers(), self.workspace.cost_stamps()])
            version = hashlib.sha256(text.encode()).hexdigest()[:16]
            self._status = json.dumps({"version": version, "now": self.now(active)})
            self._time = time.monotonic()
        return self._status

    def now(self, active: list[Job]) -> str:
        """What the studio does, in one line; empty if it does nothing."""
        if not active:
            return ""
        running = [job for job in active if job.state != "waiting"]
        job = (running or active)[0]
        waiting = len(active) - 1
        more = f", {waiting} more waiting" if waiting else ""
        if job.kind == "train":
            view = TrainingView(job, self.workspace.run(job))
            return f"training {self.workspace.token(job)}: {view.summary}{more}"
        return f"{job.label}, {KIND_NAMES[job.kind]}: {job.state}{more}"


def log_file(workspace: Workspace, job: Job) -> Path:
    """The file with the events of a job."""
    folder = workspace.run_folder(job) if job.kind == "train" else job.folder
    return folder / JOURNAL


def log_end(workspace: Workspace, job: Job) -> str:
    """The id of the last event of a job; empty if it has none."""
    try:
        with open_untrusted(log_file(workspace, job), sys.maxsize) as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - _MAX_LINE))
            unfinished = len(file.read().rpartition(b"\n")[2])  # a line that is being written
    except FileError:
        return ""
    return f"{status.st_ino}-{status.st_size - unfinished}"


async def stream_events(
    watch: StatusWatch, tail: LogTail | None = None, job: Job | None = None
) -> AsyncGenerator[str]:
    """The `status` events of the whole studio, and all lines of a log, as text of a stream.

    With a job the stream ends with it; browsers would open it again.
    """
    status, last_time = "", time.monotonic()
    yield "retry: 1000\n\n"
    while True:
        has_ended = job is not None and not job.is_active  # before its last lines are read
        texts = [
            f"id: {number}\ndata: {line}\n\n" if line else f"id: {number}\nevent: reset\ndata:\n\n"
            for number, line in (tail.lines() if tail else ())
        ]
        if watch.status() != status:
            status = watch.status()
            texts.append(f"event: status\ndata: {status}\n\n")
        if not texts and time.monotonic() - last_time > _BEAT:
            texts.append(": alive\n\n")
        if texts:
            last_time = time.monotonic()
            yield "".join(texts)
        if job and has_ended:
            yield f"event: end\ndata: {json.dumps({'state': job.state})}\n\n"
            return
        await asyncio.sleep(_POLL)
