"""Opens files while Python's audit events are watched: what comes of each, and what it tried."""

import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pinxit.errors import FileError

SECONDS = 2.0  # of processor time for a file; more is a hang
# Where inputs are written: in memory if the system has such a folder, as a disk takes far longer.
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
MEMORY = 2**30  # bytes beyond what the process has at the start; more is a crash

# What reading a file may do: open it to read, and map it. Anything else that Python reports is
# code that ran: imports, compile, exec, sockets, processes, other files, and all the rest.
_HARMLESS = {"mmap.__new__"}
_PLAIN = (str, bytes, int, float, bool, type(None))


class HangError(Exception):
    """A file took longer than it may."""


class Watch:
    """Python's audit hook, of which a process has one for good; it looks only while asked to."""

    def __init__(self) -> None:
        self.looking = False
        self.path = ""
        self.events: Counter[str] = Counter()
        sys.addaudithook(self._see)
        signal.signal(signal.SIGPROF, self._late)
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if _linux() else 0
        if pages:
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def outcome(self, read: Callable[[Path], object], path: Path) -> str:
        """What comes of one file: `read`, `refused`, `code run`, `crash` or `hang`."""
        before = self.events.total()
        self.path = str(path)
        self.looking = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            touch(read(path))
            found = "read"
        except FileError:
            found = "refused"
        except HangError:
            found = "hang"
        except BaseException as trouble:
            found = "crash"
            print(f"{type(trouble).__name__}: {trouble!s:.300}", file=sys.stderr)
        finally:
            self.looking = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        return "code run" if self.events.total() > before else found

    def _see(self, event: str, given: tuple[object, ...]) -> None:
        if not self.looking or event in _HARMLESS:
            return
        if event == "open" and given[1] in ("r", "rb") and str(given[0]) == self.path:
            return
        self.events[event] += 1

    def _late(self, _number: int, _frame: FrameType | None) -> None:
        if self.looking:
            raise HangError


def touch(value: object) -> None:
    """Read every number of every tensor, so that one outside its file shows; refuse odd kinds."""
    waiting: list[Any] = [value]
    while waiting:
        item: Any = waiting.pop()
        if type(item) is torch.Tensor:
            item.clone()
        elif type(item) is dict:
            waiting += [*item, *item.values()]
        elif type(item) in (list, tuple):
            waiting += item
        elif not isinstance(item, _PLAIN):
            raise TypeError(f"the reader made a {type(item).__name__}")


def _linux() -> bool:
    return sys.platform == "linux"
