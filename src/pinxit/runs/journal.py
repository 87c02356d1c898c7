"""The journal of a run: a line of JSON for each step, and for each choice that was made."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pinxit.files.atomic_write import append, flush, replace_text


class Journal:
    """A run's journal; lines after the last checkpoint may be lost with the power.

    An entry with a `number` is of that step and goes if the run goes back before it, for then it
    comes again; an entry without one is of the whole run and stays.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def entries(self) -> list[dict[str, Any]]:
        """All that was noted; a line that was torn is left out."""
        there = self._file.is_file()
        text = self._file.read_text(encoding="utf-8", errors="replace") if there else ""
        return list(_entries(text))

    def steps(self) -> list[dict[str, Any]]:
        """The steps among the entries."""
        return [entry for entry in self.entries() if "losses" in entry]

    def looks(self) -> dict[int, float]:
        """What the loss of the fixed samples was after which steps."""
        found = ((_number(entry), entry.get("fixed")) for entry in self.entries())
        return {step: loss for step, loss in found if isinstance(loss, float)}

    def note(self, entry: Mapping[str, object]) -> None:
        """Add an entry."""
        append(self._file, _line(entry))

    def flush(self) -> None:
        """Make the disk have all that was noted."""
        flush(self._file)

    def go_back(self, done: int) -> None:
        """Forget what is of later steps than this one."""
        kept = [entry for entry in self.entries() if _number(entry) <= done]
        replace_text(self._file, "".join(map(_line, kept)))


def _entries(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            continue


def _line(entry: Mapping[str, object]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _number(entry: Mapping[str, object]) -> int:
    """The step that an entry is of; 0 for one that is of the whole run."""
    number = entry.get("number", 0)
    return number if isinstance(number, int) else 0
