"""A disk that keeps a log of all that is done to it, fails when told to, and loses its power.

`Disk` stands in for `os` in `pinxit.files.atomic_write`. `after_power_loss` makes from its log
what a disk may hold if everything stops before the n-th call: names and bytes that were not
flushed are there, or not, or torn, in any combination that a file system may leave.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

# Beyond so many names in suspense only runs of them and single gaps are tried.
_ALL_SUBSETS = 4

Fault = Callable[[int, str], OSError | int | None]


@dataclass(frozen=True)
class Call:
    """Something that was done to the disk."""

    kind: str
    path: Path
    data: bytes = b""
    new: Path = Path()


class Disk:
    """The real `os`, but for the calls that change files: these are noted, and may fail.

    `fault` is told each call's number and name: an OSError is raised instead of the call, and a
    number is how many bytes a write takes.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.log: list[Call] = []
        self.calls = 0
        self._fault = fault
        self._open: dict[int, Path] = {}

    def dies(self, crash: type[BaseException]) -> None:
        """Nothing is done to it any more: it was the last moment of the process."""

        def stopped(*_: object) -> OSError:
            raise crash

        self._fault = stopped

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Open, and make if it is to be made."""
        self._begin("open")
        new = not Path(path).exists()
        handle = os.open(path, flags, mode)
        self._open[handle] = Path(path)
        if new or flags & os.O_TRUNC:
            self.log.append(Call("create", Path(path)))
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        """Write, perhaps less than all."""
        short = self._begin("write")
        done = os.write(handle, data if short is None else data[:short])
        self.log.append(Call("write", self._open[handle], bytes(data[:done])))
        return done

    def fsync(self, handle: int) -> None:
        """Flush a file or a folder."""
        self._begin("fsync")
        os.fsync(handle)
        self.log.append(Call("flush", self._open[handle]))

    def close(self, handle: int) -> None:
        """Close; the system does so even if it complains."""
        os.close(handle)
        if handle in self._open:
            del self._open[handle]
            self._begin("close")

    def replace(self, old: Path, new: Path) -> None:
        """Rename."""
        self._begin("replace")
        os.replace(old, new)  # noqa: PTH105
        self.log.append(Call("rename", Path(old), new=Path(new)))

    def unlink(self, path: Path) -> None:
        """Take a name away."""
        self._begin("unlink")
        os.unlink(path)  # noqa: PTH108
        self.log.append(Call("unlink", Path(path)))

    def mkdir(self, path: Path) -> None:
        """Make a folder."""
        self._begin("mkdir")
        os.mkdir(path)  # noqa: PTH102
        self.log.append(Call("mkdir", Path(path)))

    def _begin(self, kind: str) -> int | None:
        self.calls += 1
        said = self._fault(self.calls, kind) if self._fault else None
        if isinstance(said, OSError):
            raise said
        return said


@dataclass
class _File:
    """A file's bytes, and those that the disk surely has."""

    held: bytearray = field(default_factory=bytearray)
    sure: bytes = b""


@dataclass
class _Volume:
    """What programs see, what the disk surely has, and names in suspense."""

    names: dict[Path, _File | None] = field(default_factory=dict)
    sure: dict[Path, _File | None] = field(default_factory=dict)
    suspense: list[tuple[Call, _File | None]] = field(default_factory=list)

    def do(self, call: Call) -> None:
        """What a call changes."""
        if call.kind == "write":
            file = self.names[call.path]
            assert file is not None
            file.held += call.data
        elif call.kind == "flush":
            self._flush(call.path)
        else:
            about = _File() if call.kind == "create" else self.names.get(call.path)
            self.suspense.append((call, about))
            _name(self.names, call, about)

    def _flush(self, path: Path) -> None:
        file = self.names.get(path)
        if file is not None:
            file.sure = bytes(file.held)
            return
        for call, about in self.suspense:
            if call.path.parent == path:
                _name(self.sure, call, about)
        self.suspense = [(call, about) for call, about in self.suspense if call.path.parent != path]


def _name(names: dict[Path, _File | None], call: Call, file: _File | None) -> None:
    if call.kind in ("create", "mkdir"):
        names[call.path] = file
    elif names.get(call.path) is file:
        names.pop(call.path, None)
        if call.kind == "rename":
            names[call.new] = file


def after_power_loss(log: list[Call], calls: int) -> Iterator[dict[Path, bytes | None]]:
    """What a disk may hold after so many calls: files' bytes, None for folders; no state twice.

    The first is what a process that was killed leaves, for then the system lives on.
    """
    volume = _Volume()
    for call in log[:calls]:
        volume.do(call)
    told: set[int] = set()
    for chosen, torn in product(_subsets(len(volume.suspense)), _TORN):
        names = dict(volume.sure)
        for at in chosen:
            _name(names, *volume.suspense[at])
        state = {path: None if file is None else torn(file) for path, file in names.items()}
        mark = hash(frozenset(state.items()))
        if mark not in told:
            told.add(mark)
            yield state


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    """Which of so many names in suspense reached the disk; all of them first."""
    if count <= _ALL_SUBSETS:
        for size in range(count, -1, -1):
            yield from combinations(range(count), size)
        return
    for end in range(count, -1, -1):
        yield tuple(range(end))
        yield tuple(at for at in range(count) if at != end)


def _garbage(file: _File) -> bytes:
    lost = len(file.held) - len(file.sure)
    return file.sure + random.Random(lost).randbytes(lost)


# What becomes of bytes that were written and not flushed.
_TORN: tuple[Callable[[_File], bytes], ...] = (
    lambda file: bytes(file.held),
    lambda file: file.sure,
    lambda file: bytes(file.held[: (len(file.sure) + len(file.held)) // 2]),
    lambda file: file.sure + bytes(len(file.held) - len(file.sure)),
    _garbage,
)


def laid_out(state: dict[Path, bytes | None], root: Path, target: Path) -> None:
    """Make a state real: what was in `root` is in `target`; what has no folder is lost."""
    target.mkdir()
    inside = [path for path in state if path.is_relative_to(root)]
    for path in sorted(inside, key=lambda path: len(path.parts)):
        place = target / path.relative_to(root)
        content = state[path]
        if place.parent.is_dir():
            if content is None:
                place.mkdir()
            else:
                place.write_bytes(content)
