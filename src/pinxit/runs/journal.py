"""The training log of a run: one line of JSON for each step, score and decision."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pinxit.files.atomic_write import append, flush, write_text


class TrainingLog:
    """The log file of a run. Lines after the last checkpoint may be lost at a power failure.

    An entry with a `number` belongs to that step and is dropped when the run goes back before
    it, since the step is repeated. An entry without a number belongs to the whole run and stays.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def entries(self) -> list[dict[str, Any]]:
        """All entries; an incomplete line is skipped."""
        if not self._file.is_file():
            return []
        return list(_entries(self._file.read_text(encoding="utf-8", errors="replace")))

    def steps(self) -> list[dict[str, Any]]:
        """The entries of training steps."""
        return [entry for entry in self.entries() if "losses" in entry]

    def validation_losses(self) -> dict[int, float]:
        """The validation loss by step."""
        losses = ((_step(entry), entry.get("fixed")) for entry in self.entries())
        return {step: loss for step, loss in losses if isinstance(loss, float)}

    def append(self, entry: Mapping[str, object]) -> None:
        """Append an entry to the file."""
        append(self._file, _line(entry))

    def flush(self) -> None:
        """Write all entries through to the disk."""
        flush(self._file)

    def drop_after(self, step: int) -> None:
        """Remove the entries of steps after `step`."""
        entries = [entry for entry in self.entries() if _step(entry) <= step]
        write_text(self._file, "".join(map(_line, entries)))


def _entries(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            continue


def _line(entry: Mapping[str, object]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _step(entry: Mapping[str, object]) -> int:
    """The step that an entry belongs to; 0 if it belongs to the whole run."""
    number = entry.get("number", 0)
    return number if isinstance(number, int) else 0
