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

import pinxit
from pinxit.errors import PinxitError
from pinxit.images.decode import UnreadableError
from pinxit.studio.unzip import ZipFileError

SECONDS = 2.0  # processor time per file; more is a hang
# Where inputs are written: in memory if the system has such a folder, because disks are slower.
FOLDER = "/dev/shm" if Path("/dev/shm").is_dir() else None
PACKAGE = str(Path(pinxit.__file__).parent)
MEMORY = 2**30  # bytes in addition to those used at the start; more is a crash

# Reading a file may open it for reading and map it. Any other audit event means that code ran:
# imports, compile, exec, sockets, processes, other files and so on.
_HARMLESS = {"mmap.__new__"}
# What the reader of a folder may do: use the files in it, look up plug-ins, and describe errors.
_ON_FILES = ("open", "os.", "glob.", "pathlib.", "shutil.")
_LISTED = ("os.listdir", "os.scandir", "pathlib.Path.glob")
_DESCRIBED = ("array.__new__", "builtins.id", "object.__getattr__", "sys._getframe")
_PLAIN_TYPES = (str, bytes, int, float, bool, type(None))


class HangError(Exception):
    """Reading a file took too long."""


class Watch:
    """An audit hook, which a process cannot remove; it counts events only during `outcome`."""

    def __init__(self) -> None:
        self.active = False
        self.path = ""
        self.folder = ""  # with a folder, its files may be opened and replaced
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
            value = read(path)
            if not self.folder:
                read_all_tensors(value)
            outcome = "read"
        except (PinxitError, UnreadableError, ZipFileError):
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
        if self.folder and self._is_harmless_in_folder(event, str(next(iter(arguments), ""))):
            return
        self.events[event] += 1

    def _is_harmless_in_folder(self, event: str, target: str) -> bool:
        """Whether an event belongs to reading the files of the folder; a handle has no path."""
        if event == "open" and target.isdigit():
            return True
        inside = event.startswith(_ON_FILES) and target.startswith(self.folder)
        plugins = event in _LISTED and target.startswith(PACKAGE)
        return inside or plugins or event in _DESCRIBED

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
