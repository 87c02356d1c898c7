"""Read files while watching Python's audit events, to detect code that runs."""

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

SECONDS = 2.0  # processor time per file; more is a hang
# Where inputs are written: in memory if the system has such a folder, because disks are slower.
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
MEMORY = 2**30  # bytes in addition to those used at the start; more is a crash

# Reading a file may open it for reading and map it. Any other audit event means that code ran:
# imports, compile, exec, sockets, processes, other files and so on.
_HARMLESS = {"mmap.__new__"}
_PLAIN_TYPES = (str, bytes, int, float, bool, type(None))


class HangError(Exception):
    """Reading a file took too long."""


class Watch:
    """An audit hook, which a process cannot remove; it counts events only during `outcome`."""

    def __init__(self) -> None:
        self.active = False
        self.path = ""
        self.events: Counter[str] = Counter()
        sys.addaudithook(self._count)
        signal.signal(signal.SIGPROF, self._on_timeout)
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if _linux() else 0
        if pages:
            limit = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def outcome(self, read: Callable[[Path], object], path: Path) -> str:
        """Read one file; returns `read`, `refused`, `code run`, `crash` or `hang`."""
        before = self.events.total()
        self.path = str(path)
        self.active = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            read_all_tensors(read(path))
            outcome = "read"
        except FileError:
            outcome = "refused"
        except HangError:
            outcome = "hang"
        except BaseException as error:
            outcome = "crash"
            print(f"{type(error).__name__}: {error!s:.300}", file=sys.stderr)
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        return "code run" if self.events.total() > before else outcome

    def _count(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active or event in _HARMLESS:
            return
        if event == "open" and arguments[1] in ("r", "rb") and str(arguments[0]) == self.path:
            return
        self.events[event] += 1

    def _on_timeout(self, _number: int, _frame: FrameType | None) -> None:
        if self.active:
            raise HangError


def read_all_tensors(value: object) -> None:
    """Read every element of every tensor, so that one outside the file fails; check all types."""
    pending: list[Any] = [value]
    while pending:
        item: Any = pending.pop()
        if type(item) is torch.Tensor:
            item.clone()
        elif type(item) is dict:
            pending += [*item, *item.values()]
        elif type(item) in (list, tuple):
            pending += item
        elif not isinstance(item, _PLAIN_TYPES):
            raise TypeError(f"the reader returned a {type(item).__name__}")


def _linux() -> bool:
    return sys.platform == "linux"
