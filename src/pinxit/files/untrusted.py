"""Opening files that somebody else may have made: only regular files, of limited size."""

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pinxit.errors import FileError

MAX_TEXT_BYTES = 32 * 2**20
RECIPE = "recipe.toml"
_MAX_NAMED_RUNS = 5
# Opening a pipe must not wait until another process writes to it; Windows must not change bytes.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_untrusted(
    path: Path, max_bytes: int = MAX_TEXT_BYTES, inside: Path | None = None
) -> BinaryIO:
    """Open a regular file for reading.

    Raises FileError if it is missing, a folder, a pipe or a device, if it has more than `max_bytes`
    bytes, or if it is a link that leads out of the folder `inside`.
    """
    if inside is not None:
        check_inside(path, inside)
    with read_errors(path):
        handle = os.open(path, _READ)
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        os.close(handle)
        raise FileError(f"{path} is not a regular file", "replace it with a file, or remove it")
    if state.st_size > max_bytes:
        os.close(handle)
        raise FileError(
            f"{path} has {state.st_size:,} bytes, which is too many: the limit is {max_bytes:,}",
            "check that it is the right file",
        )
    return os.fdopen(handle, "rb")


@contextmanager
def read_errors(path: Path) -> Generator[None]:
    """Raise an error of the system in the block, or of a path with a NUL, as a FileError."""
    try:
        yield
    except OSError as error:
        hint = "check its path and permissions"
        if error.errno == errno.EIO:
            hint = "the disk, or the connection to it, may be failing: copy the file from elsewhere"
        raise FileError(f"{path} cannot be read: {error.strerror or error}", hint) from error
    except ValueError as error:
        raise FileError(f"{path} cannot be read: {error}", "check its path") from error


def read_untrusted_text(
    path: Path, max_bytes: int = MAX_TEXT_BYTES, inside: Path | None = None
) -> str:
    """The text of a file, with "\\n" line ends; FileError as `open_untrusted`, or if not UTF-8."""
    with open_untrusted(path, max_bytes, inside) as file, read_errors(path):
        data = file.read()
    try:
        return data.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} cannot be read: {error}", "save it as UTF-8 text") from error


def expanded(path: Path | str) -> Path:
    """The path with the user's folder for "~"; the same path where there is no such folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises RuntimeError)


def exists(path: Path | str) -> bool:
    """Whether a path exists; False for a text that cannot be a path: too long, or with a NUL."""
    return os.path.exists(path)  # noqa: PTH110 (pathlib's raises OSError)


def check_inside(path: Path, folder: Path) -> None:
    """Raise FileError if a link leads from a path inside a folder to a place outside it."""
    if not Path(os.path.realpath(path)).is_relative_to(_root(folder)):
        raise FileError(
            f"{path} is a link that leads out of {folder}", "replace it with the file itself"
        )


def _root(folder: Path) -> Path:
    """The folder that links may lead to.

    In the cache of the hub's library, the files of a model are links to files next to them.
    """
    real = Path(os.path.realpath(folder))
    for parent in real.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return real


def run_hint(folder: Path) -> str:
    """A hint for a folder that is no run: the runs in it, if there are some."""
    runs = sorted(str(path.parent) for path in folder.glob(f"*/{RECIPE}"))
    shown = ", ".join(runs[:_MAX_NAMED_RUNS]) + (", ..." if runs[_MAX_NAMED_RUNS:] else "")
    return f"it contains the runs {shown}" if runs else f"give a run folder, which has a {RECIPE}"
