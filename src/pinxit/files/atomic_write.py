"""Files that are whole or not there, and steps that an interrupt does not tear.

All that changes the disk goes through `os` here, so that tests can let any call of it fail.
"""

import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path

from torch import Tensor

from pinxit.errors import DiskError, RunError
from pinxit.files.safetensors_file import in_pieces, sealed

# Windows would change line ends, and cannot open folders.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | _NO_LINK
_WINDOWS = os.name == "nt"
_PIECE = 2**24

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCK = ".lock"
_MARK = ".pinxit"  # a file that says what made a folder
_DRAFT = re.compile(r"\.(.+)\.\d+\.tmp")
_STOPS = [signal.SIGINT, signal.SIGTERM, *([] if _WINDOWS else [signal.SIGHUP])]


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and put it in its place."""
    with _beside(path) as beside:
        write(beside)
        flush(beside)


def replace_bytes(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """A file of these pieces, whole or not at all."""
    with _beside(path) as beside:
        _fill(beside, pieces, os.O_TRUNC, last=True)


def replace_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    replace_bytes(path, [text.encode()])


def replace_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, seal: bool = False
) -> None:
    """A safetensors file, whole or not at all.

    With a seal it is proven before it takes its place, by reading it back from the disk.
    """
    with _beside(path) as beside:
        _fill(beside, in_pieces(tensors, metadata, seal=seal), os.O_TRUNC, last=True)
        if seal and not sealed(beside):
            raise DiskError(
                f"{path} reads back otherwise than it was written",
                "the disk is not to be trusted; what was there before was kept",
            )


def append(path: Path, text: str) -> None:
    """Add to a file; it is on the disk once `flush` is called."""
    with _in_words(path):
        _fill(path, [text.encode()], os.O_APPEND, last=False)


def flush(path: Path) -> None:
    """Make the disk have what was written to a file, or the names in a folder."""
    if _WINDOWS and path.is_dir():
        return
    with _in_words(path):
        handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def must_be_ours(folder: Path, kind: str, *parts: str) -> None:
    """RunError unless a folder is new, empty or marked by `mark_ours`; nothing is written.

    `kind` is what makes the folder, such as "demo"; `parts` are the names it writes there, none of
    which may be a link.
    """
    mark = folder / _MARK
    must_be_regular(mark, *(folder / part for part in parts))
    if not folder.exists() or (mark.is_file() and mark.read_bytes() == kind.encode()):
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise RunError(
            f"{folder} exists already and is no {kind}'s folder", "give another one with --out"
        )


def mark_ours(folder: Path, kind: str) -> None:
    """Make a folder that `must_be_ours` recognizes as one of this kind."""
    make_folder(folder)
    replace_text(folder / _MARK, kind)


def must_be_regular(*paths: Path) -> None:
    """RunError if a path is a link, a pipe or a device; it may be a file, a folder or missing.

    A folder that somebody else made could otherwise lead writes and deletes out of itself.
    """
    for path in paths:
        if path.is_symlink():
            raise RunError(
                f"{path} is a link", "replace it by the file or folder itself: links are refused"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RunError(f"{path} is neither a file nor a folder", "remove it")


def make_folder(path: Path) -> None:
    """A folder and those above it, whose names are on the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with _in_words(path), suppress(FileExistsError):
        os.mkdir(path)
    flush(path.parent)


def remove(*paths: Path) -> None:
    """Take files away."""
    for path in paths:
        with _in_words(path), suppress(FileNotFoundError):
            os.unlink(path)


def own_files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """The regular files of a folder with such names, in the order of their names."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    named = (path for path in folder.iterdir() if names.fullmatch(path.name))
    return sorted(path for path in named if path.is_file() and not path.is_symlink())


def sweep(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the drafts of files with such names that a killed process left in a folder."""
    for path in own_files(folder, _DRAFT):
        draft = _DRAFT.fullmatch(path.name)
        if draft and names.fullmatch(draft[1]):
            remove(path)


def sha256(path: Path) -> str:
    """The fingerprint of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Keep other processes out of a folder; RunError if one is in it. Dies with the process."""
    file = folder / _LOCK
    must_be_regular(file)
    with _in_words(file):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    try:
        _lock(handle)
    except OSError as trouble:
        if trouble.errno not in _NO_LOCKS:  # some network drives have none
            os.close(handle)
            raise RunError(
                f"another process is at work in {folder}", "wait for it, or stop it first"
            ) from trouble
    try:
        yield
    finally:
        with suppress(OSError):  # nothing was written
            os.close(handle)


@contextmanager
def undisturbed() -> Generator[None]:
    """Hold Ctrl-C and the like back until the block is done, so that it is whole or not begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = [signal.signal(number, lambda got, _: held.append(got)) for number in _STOPS]
    try:
        yield
    finally:
        for number, handler in zip(_STOPS, before, strict=True):
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A file to be filled and flushed; it is put in the place of `path`, or goes again."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    must_be_regular(beside)
    with _in_words(path):
        try:
            yield beside
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
        flush(path.parent)


def _fill(path: Path, pieces: Iterable[bytes | memoryview], mode: int, *, last: bool) -> None:
    """Write to a file; after the last piece the disk has it, and reading it asks the disk."""
    handle = os.open(path, _WRITE | mode, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(handle, rest[:_PIECE]) :]
        if last:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextmanager
def _in_words(path: Path) -> Generator[None]:
    """The system's complaint as a DiskError."""
    try:
        yield
    except OSError as trouble:
        hint = "the disk may be failing: bring what is on it to safety"
        if trouble.errno in _FULL:
            hint = "free some space on that disk"
        if trouble.errno in _FORBIDDEN:
            hint = "make its folder one that you may write to"
        said = trouble.strerror or str(trouble)
        raise DiskError(f"{path} cannot be written: {said}", hint) from trouble


def _lock(handle: int) -> None:
    """Lock a file, for as long as it is open; OSError if another has done so."""
    if _WINDOWS:
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
