"""The training log of a run: one line of JSON for each event. Without torch."""

from pathlib import Path

from pinxit.files.atomic_write import append, disk_errors, flush, write_text
from pinxit.files.untrusted import read_errors
from pinxit.runs.events import Event, from_line, step_of, to_line


class TrainingLog:
    """The log file of a run. Lines after the last checkpoint may be lost at a power failure."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ends_with_line: bool | None = None

    def events(self) -> list[Event]:
        """All events; a line that is not valid is skipped, as is one that is incomplete."""
        if not self._file.is_file():
            return []
        with read_errors(self._file):
            lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [event for event in map(from_line, lines) if event is not None]

    def append(self, event: Event) -> None:
        """Append an event to the file."""
        if self._ends_with_line is None:  # a process that was killed may have left half a line
            with disk_errors(self._file):
                content = self._file.read_bytes() if self._file.is_file() else b"\n"
            self._ends_with_line = content[-1:] == b"\n"
        append(self._file, ("" if self._ends_with_line else "\n") + to_line(event))
        self._ends_with_line = True

    def flush(self) -> None:
        """Write all events through to the disk."""
        flush(self._file)

    def drop_after(self, step: int) -> None:
        """Remove the events of steps after `step`."""
        write_text(self._file, "".join(to_line(e) for e in self.events() if step_of(e) <= step))
        self._ends_with_line = True
