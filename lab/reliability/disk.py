"""A simulated disk that logs all changes, can fail on request, and can lose power.

`Disk` replaces `os` in `pinxit.files.atomic_write`. `after_power_loss` computes from its log the
possible contents of the disk if everything stops before the n-th call: names and bytes that were
not flushed may be there, missing or incomplete, in any combination that a file system allows.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

# With more unflushed name changes than this, only prefixes and single gaps are tried.
_ALL_SUBSETS = 4

Fault = Callable[[int, str], OSError | int | None]


@dataclass(frozen=True)
class Call:
    """One change of the disk."""

    kind: str
    path: Path
    data: bytes = b""
    new: Path = Path()


class Disk:
    """The real `os`, except that calls that change files are logged and may fail.

    `fault` gets the number and the name of each call. If it returns an OSError, the call raises
    it; if it returns a number, a write writes only that many bytes.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.log: list[Call] = []
        self.calls = 0
        self._fault = fault
        self._open: dict[int, Path] = {}

    def stop(self, crash: type[BaseException]) -> None:
        """Make every further call raise `crash`, as if the process had died."""

        def fail(*_: object) -> OSError:
            raise crash

        self._fault = fail

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        """Open a file, and create it if the flags say so."""
        self._begin("open")
        new = not Path(path).exists()
        handle = os.open(path, flags, mode)
        self._open[handle] = Path(path)
        if new or flags & os.O_TRUNC:
            self.log.append(Call("create", Path(path)))
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        """Write the data, or only the first bytes if `fault` says so."""
        limit = self._begin("write")
        written = os.write(handle, data if limit is None else data[:limit])
        self.log.append(Call("write", self._open[handle], bytes(data[:written])))
        return written

    def fsync(self, handle: int) -> None:
        """Flush a file or a folder."""
        self._begin("fsync")
        os.fsync(handle)
        self.log.append(Call("flush", self._open[handle]))

    def close(self, handle: int) -> None:
        """Close a file, which happens even if the call raises an error."""
        os.close(handle)
        if handle in self._open:
            del self._open[handle]
            self._begin("close")

    def replace(self, old: Path, new: Path) -> None:
        """Rename a file."""
        self._begin("replace")
        os.replace(old, new)  # noqa: PTH105
        self.log.append(Call("rename", Path(old), new=Path(new)))

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        self._begin("unlink")
        os.unlink(path)  # noqa: PTH108
        self.log.append(Call("unlink", Path(path)))

    def mkdir(self, path: Path) -> None:
        """Create a folder."""
        self._begin("mkdir")
        os.mkdir(path)  # noqa: PTH102
        self.log.append(Call("mkdir", Path(path)))

    def _begin(self, kind: str) -> int | None:
        self.calls += 1
        result = self._fault(self.calls, kind) if self._fault else None
        if isinstance(result, OSError):
            raise result
        return result


@dataclass
class _File:
    """The bytes of a file, and those that are flushed to the disk."""

    content: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""


@dataclass
class _Volume:
    """The names that programs see, those flushed to the disk, and changes not flushed yet."""

    names: dict[Path, _File | None] = field(default_factory=dict)
    flushed: dict[Path, _File | None] = field(default_factory=dict)
    pending: list[tuple[Call, _File | None]] = field(default_factory=list)

    def apply(self, call: Call) -> None:
        """Apply a call."""
        if call.kind == "write":
            file = self.names[call.path]
            assert file is not None
            file.content += call.data
        elif call.kind == "flush":
            self._flush(call.path)
        else:
            target = _File() if call.kind == "create" else self.names.get(call.path)
            self.pending.append((call, target))
            _apply_name(self.names, call, target)

    def _flush(self, path: Path) -> None:
        file = self.names.get(path)
        if file is not None:
            file.flushed = bytes(file.content)
            return
        for call, target in self.pending:
            if call.path.parent == path:
                _apply_name(self.flushed, call, target)
        self.pending = [(call, target) for call, target in self.pending if call.path.parent != path]


def _apply_name(names: dict[Path, _File | None], call: Call, file: _File | None) -> None:
    if call.kind in ("create", "mkdir"):
        names[call.path] = file
    elif names.get(call.path) is file:
        names.pop(call.path, None)
        if call.kind == "rename":
            names[call.new] = file


def after_power_loss(log: list[Call], calls: int) -> Iterator[dict[Path, bytes | None]]:
    """The possible contents of the disk after that many calls; None stands for a folder.

    The first one is the state after a process was killed while the system kept running.
    """
    volume = _Volume()
    for call in log[:calls]:
        volume.apply(call)
    seen: set[int] = set()
    for indices, tear in product(_subsets(len(volume.pending)), _TEARS):
        names = dict(volume.flushed)
        for index in indices:
            _apply_name(names, *volume.pending[index])
        state = {path: None if file is None else tear(file) for path, file in names.items()}
        digest = hash(frozenset(state.items()))
        if digest not in seen:
            seen.add(digest)
            yield state


def _subsets(count: int) -> Iterator[tuple[int, ...]]:
    """The possible subsets of pending name changes that reached the disk; all of them first."""
    if count <= _ALL_SUBSETS:
        for size in range(count, -1, -1):
            yield from combinations(range(count), size)
        return
    for end in range(count, -1, -1):
        yield tuple(range(end))
        yield tuple(index for index in range(count) if index != end)


def _garbage(file: _File) -> bytes:
    lost = len(file.content) - len(file.flushed)
    return file.flushed + random.Random(lost).randbytes(lost)


# What a file may contain if its last bytes were written but not flushed.
_TEARS: tuple[Callable[[_File], bytes], ...] = (
    lambda file: bytes(file.content),
    lambda file: file.flushed,
    lambda file: bytes(file.content[: (len(file.flushed) + len(file.content)) // 2]),
    lambda file: file.flushed + bytes(len(file.content) - len(file.flushed)),
    _garbage,
)


def write_state(state: dict[Path, bytes | None], root: Path, target: Path) -> None:
    """Write the files of `root` in a state to `target`; files whose folder is missing are lost."""
    target.mkdir()
    paths = [path for path in state if path.is_relative_to(root)]
    for path in sorted(paths, key=lambda path: len(path.parts)):
        destination = target / path.relative_to(root)
        content = state[path]
        if destination.parent.is_dir():
            if content is None:
                destination.mkdir()
            else:
                destination.write_bytes(content)
