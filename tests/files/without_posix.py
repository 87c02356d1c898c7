"""A pytest plugin: takes away what Windows does not have, before pinxit is imported.

There is no fcntl, SIGHUP, O_NOFOLLOW and posix_fadvise; folders cannot be opened, and a file that
is open elsewhere can be locked once (msvcrt).
"""

import errno
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

_open, _close = os.open, os.close
_locked: dict[int, tuple[int, int]] = {}


def _identity(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_dev, status.st_ino


def _locking(handle: int, _mode: int, _count: int) -> None:
    if _identity(handle) in _locked.values():
        raise OSError(errno.EACCES, "locked")
    _locked[handle] = _identity(handle)


def _open_file(path: object, *arguments: object, **options: object) -> int:
    if isinstance(path, str | Path) and Path(path).is_dir():
        raise PermissionError(errno.EACCES, "a folder cannot be opened", str(path))
    return _open(path, *arguments, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]


def _close_file(handle: int) -> None:
    _locked.pop(handle, None)
    _close(handle)


msvcrt = ModuleType("msvcrt")
msvcrt.locking, msvcrt.LK_NBLCK = _locking, 2  # pyright: ignore[reportAttributeAccessIssue]
sys.modules["msvcrt"] = msvcrt
sys.modules["fcntl"] = None  # pyright: ignore[reportArgumentType]
for module, names in ((signal, ("SIGHUP",)), (os, ("O_NOFOLLOW", "O_NONBLOCK", "posix_fadvise"))):
    for name in names:
        delattr(module, name)
os.open, os.close = _open_file, _close_file

from pinxit.files import atomic_write  # noqa: E402

atomic_write._WINDOWS = True
