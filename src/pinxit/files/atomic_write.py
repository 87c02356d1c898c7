"""Write files atomically, lock folders, and delay signals during a step that must be complete.

Everything that changes the disk calls `os` here, so that tests can make each call fail.
"""

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from tempfile import mkdtemp

from pinxit.errors import DiskError, RunError

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# O_BINARY: otherwise Windows changes line ends.
# O_NONBLOCK: a pipe without a reader is an error at once, else opening it would wait for one.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0) | _NO_WAIT | _NO_LINK
_WINDOWS = os.name == "nt"
_WRITE_BYTES = 2**24

_NO_PERMISSION = "get write permission for its folder, or choose another folder"
_NOT_A_FOLDER = "a part of the path is a file, not a folder: choose another path"
_HINTS = {
    errno.EIO: "the disk may be failing: copy your data to another one",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space on that disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NO_PERMISSION),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _NOT_A_FOLDER),
}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LOCK_FILE, _PROBE_SECONDS = ".lock", 0.05
_MARKER = ".pinxit"  # a file with the name of the command that made the folder
_DRAFT = re.compile(r"\.(.+)\.\d+\.tmp")
_STOP_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
STOP_SIGNALS: list[int] = [getattr(signal, n) for n in _STOP_NAMES if hasattr(signal, n)]


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file atomically: `write` fills a draft, which replaces `path` once it is on disk."""
    with _draft(path) as draft:
        write(draft)
        flush(draft)


def write_bytes(
    path: Path,
    chunks: Iterable[bytes | memoryview],
    verify: Callable[[Path], bool] | None = None,
) -> None:
    """Write a file atomically from chunks of bytes.

    `verify` reads the file back from the disk before it replaces `path`; DiskError if it is wrong.
    """
    with _draft(path) as draft:
        _write(draft, chunks, os.O_TRUNC, sync=True)
        if verify and not verify(draft):
            raise DiskError(
                f"{path}: the disk returns other data than was written",
                "check the disk; the previous version of the file was not replaced",
            )


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, [text.encode()])


def append(path: Path, text: str) -> None:
    """Append to a text file; call `flush` to make sure that it is on the disk."""
    with disk_errors(path):
        _write(path, [text.encode()], os.O_APPEND, sync=False)


def flush(path: Path) -> None:
    """Write a file's data, or the names in a folder, from the system's cache to the disk."""
    if _WINDOWS and path.is_dir():  # which Windows cannot open
        return
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_claim(folder: Path, kind: str, *parts: str) -> None:
    """Raise RunError unless `claim_folder` may claim a folder; writes nothing.

    It may if the folder is missing, empty or already claimed by the same kind of command, such as
    "demo". `parts` are the names that the command writes there; none of them may be a link.
    """
    marker = folder / _MARKER
    check_regular(marker, *(folder / part for part in parts))
    if not folder.exists() or (marker.is_file() and marker.read_bytes() == kind.encode()):
        return
    if marker.exists() or not _is_new(folder):
        raise RunError(
            f"{folder} already exists and was not made by pinxit {kind}", "choose another folder"
        )


def claim_folder(folder: Path, kind: str) -> None:
    """Make a folder if it is missing, and mark it as made by this kind of command."""
    make_folder(folder)
    write_text(folder / _MARKER, kind)


def check_new(folder: Path, otherwise: str) -> None:
    """Raise RunError if a folder exists and is not empty, DiskError if it cannot be made.

    `otherwise` is what else one can do, empty for nothing.
    """
    if not _is_new(folder):
        hint = f"{otherwise}, or choose another --out" if otherwise else "choose another --out"
        raise RunError(f"{folder} exists already", hint)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise RunError(f"{folder} cannot be made: {parent} is a file", "choose another --out")
    with disk_errors(folder):
        # This says more than the permissions, which the system does not ask of root.
        os.rmdir(mkdtemp(prefix=".", dir=parent))


def _is_new(folder: Path) -> bool:
    """Whether a folder is missing, or empty but for hidden files."""
    return not folder.exists() or (folder.is_dir() and not any(folder.glob("[!.]*")))


def check_regular(*paths: Path) -> None:
    """Raise RunError if a path is a link, a pipe or a device; it may be a file, folder or missing.

    Otherwise a folder made by somebody else could redirect writes and deletions to other places.
    """
    for path in paths:
        if path.is_symlink():
            raise RunError(
                f"{path} is a link",
                "replace it with the file or folder itself: links are not followed",
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RunError(f"{path} is neither a file nor a folder", "remove it")


def in_the_way(path: Path) -> RunError:
    """The error for a file that would be overwritten and is not pinxit's."""
    return RunError(
        f"{path} is in the way: it cannot be read as a file that pinxit has made",
        "move it to another folder, then run the command again",
    )


def make_folder(path: Path, *, writable: bool = False) -> None:
    """Make a folder and its parents, and flush their names to the disk.

    With `writable`, DiskError if there is such a folder and nothing can be made in it.
    """
    with disk_errors(path):
        _make_folder(path)
        if writable:
            os.rmdir(mkdtemp(prefix=".", dir=path))


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:  # made by another process, or a file or link with this name
        if not path.is_dir():
            raise
    flush(path.parent)


def remove(*paths: Path) -> None:
    """Delete files; missing ones are ignored."""
    for path in paths:
        with disk_errors(path), suppress(FileNotFoundError):
            os.unlink(path)


def regular_files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """The regular files of a folder whose names match the pattern, sorted by name."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    matches = (path for path in folder.iterdir() if names.fullmatch(path.name))
    return sorted(path for path in matches if path.is_file() and not path.is_symlink())


def remove_drafts(folder: Path, names: re.Pattern[str]) -> None:
    """Delete the drafts that a killed process left of files whose names match the pattern."""
    for path in regular_files(folder, _DRAFT):
        draft = _DRAFT.fullmatch(path.name)
        if draft and names.fullmatch(draft[1]):
            remove(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive_lock(folder: Path) -> Generator[None]:
    """Hold the lock of a folder, which ends with the process; RunError if another holds it."""
    file = folder / _LOCK_FILE
    check_regular(file)
    with disk_errors(file):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
    try:
        _lock_unless_probed(handle)
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # some network drives do not support locks
            os.close(handle)
            raise RunError(
                f"another process is using {folder}", "wait until it ends, or stop it"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # nothing was written to it
            os.close(handle)


@contextmanager
def waiting_lock(folder: Path) -> Generator[None]:
    """Hold the lock of a folder; wait as long as another process holds it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive_lock(folder))
                break
            except RunError:
                check_regular(folder / _LOCK_FILE)
                time.sleep(_PROBE_SECONDS)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder; writes nothing."""
    try:
        handle = os.open(folder / _LOCK_FILE, os.O_RDWR | _NO_LINK)
    except OSError:
        return False
    try:
        _lock(handle, shared=True)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        with suppress(OSError):  # nothing was written to it
            os.close(handle)
    return False


@contextmanager
def defer_signals(react: Callable[[], object] = lambda: None) -> Generator[None]:
    """Delay Ctrl-C and other stop signals until the block is done; `react` is called at once."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda caught, _: (received.append(caught), react()))
        for number in (STOP_SIGNALS if in_main_thread else ())
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextmanager
def _draft(path: Path) -> Generator[Path]:
    """A temporary file, to be filled and flushed; it then replaces `path`, or is deleted."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    check_regular(draft)
    with disk_errors(path):
        try:
            yield draft
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        flush(path.parent)


def _write(path: Path, chunks: Iterable[bytes | memoryview], mode: int, *, sync: bool) -> None:
    """Write chunks to a file; with `sync` also to the disk, and later reads come from the disk."""
    if not _NO_LINK and path.is_symlink():  # Windows
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    handle = os.open(path, _WRITE | mode, 0o666)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(handle, rest[:_WRITE_BYTES]) :]
        if sync:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Raise an OSError of the block as a DiskError."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose another path")
        raise DiskError(f"cannot write {path}: {error.strerror or error}", hint) from error


def _lock_unless_probed(handle: int) -> None:
    """Lock an open file; a second attempt follows in case `is_locked` has locked it right now."""
    try:
        _lock(handle)
    except OSError:
        time.sleep(_PROBE_SECONDS)
        _lock(handle)


def _lock(handle: int, *, shared: bool = False) -> None:
    """Lock an open file until it is closed; OSError if another process has locked it.

    Shared locks do not exclude each other, but they exclude the others.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
