"""Every path that a command reads or writes becomes a link, a pipe, a device or a folder.

Nothing outside the folder of the command may change, nothing may hang, and no error is a traceback.
"""

import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from pinxit.cli import app
from tests.sweep_commands import (
    COMMANDS,
    OUTPUTS,
    SLOW_COMMANDS,
    WITHOUT_FILES,
    Workplace,
    workplace,
)

_SECONDS = 600  # far more than a command takes on a busy machine

Change = Callable[[Path, Path], object]
T = TypeVar("T")


def link_to(name: str) -> Change:
    """A change that replaces a path with a link to something outside."""
    return lambda path, outside: path.symlink_to(outside / name)


KINDS: dict[str, Change] = {
    "link to a file": link_to("precious.png"),
    "link to a folder": link_to("precious"),
    "link to nothing": link_to("new"),
    "link to a device": lambda path, _: path.symlink_to("/dev/zero"),
    "pipe": lambda path, _: os.mkfifo(path),
    "folder": lambda path, _: (path.mkdir(), (path / "mine.txt").write_text("mine")),
    "empty file": lambda path, _: path.touch(),
}

# Pairs of a path and a kind: fewer for commands that take seconds. The slow group tries many.
_FEW, _MANY, _SLOW = 8, 1000, 25


class Opened:
    """The paths under a folder that Python opens, lists or changes while it is active."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.paths: set[str] = set()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: Sequence[Any]) -> None:
        if self.folder is None or not event.startswith(("open", "os.")):
            return
        for path in arguments:
            if isinstance(path, str | os.PathLike):
                absolute = os.path.abspath(os.fspath(path))  # noqa: PTH100 (no links are followed)
                if isinstance(absolute, str) and absolute.startswith(self.folder + os.sep):
                    self.paths.add(absolute[len(self.folder) + 1 :])


_OPENED = Opened()


@pytest.fixture(scope="module")
def place(nano: Path) -> Iterator[Workplace]:
    with workplace(nano) as prepared:
        yield prepared


def test_every_command_is_in_the_sweep() -> None:
    names = {name for name in app if not name.startswith("-")}
    assert {words.split()[0] for words in COMMANDS.values()} == names - WITHOUT_FILES


@cache
def paths_of(command: str, place: Workplace) -> list[str]:
    """The paths that a command uses: those that are there before or after it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "observed"
        shutil.copytree(place.folder, folder)
        before = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        with chdir(folder):
            _OPENED.folder, _OPENED.paths = str(folder), set()
            try:
                assert place.run(command) == 0, command
            finally:
                _OPENED.folder = None
        after = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    parents = {str(parent) for path in _OPENED.paths for parent in Path(path).parents}
    return sorted((_OPENED.paths | parents | (after - before)) & (before | after) - {"."})


def choose_pairs(pairs: Sequence[T], limit: int, kinds: int) -> Sequence[T]:
    """At most `limit` of the pairs, evenly spread over the paths and over their kinds."""
    every = -(-len(pairs) // limit)
    return pairs[:: every + (every % kinds == 0)]


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about the files of a folder that a command could change."""
    files: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        data = sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        time = state.st_mtime_ns if path.is_file() else 0  # a folder's changes with its files
        files[str(path.relative_to(folder))] = (state.st_mode, time, data)
    return files


def outside_of(tmp_path: Path) -> Path:
    """A folder with files under names that a run has, too."""
    outside = tmp_path / "outside"
    for name in ("precious/0000001.safetensors", "precious/0.png", "precious/concept.safetensors"):
        path = outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), "green").save(path, "PNG")
    shutil.copy(outside / "precious" / "0.png", outside / "precious.png")
    return outside


def replaced(path: Path, change: Change, outside: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    change(path, outside)


def timed_out(*_: object) -> None:
    raise AssertionError(f"the command took over {_SECONDS} seconds")


@pytest.fixture
def limited() -> Iterator[None]:
    signal.signal(signal.SIGALRM, timed_out)
    yield
    signal.alarm(0)


def sweep(command: str, limit: int, place: Workplace, tmp_path: Path) -> int:
    """Try each path with each kind, or as many of these pairs as the limit; the number of tries."""
    paths = paths_of(command, place)
    assert paths, command
    chosen = choose_pairs([(path, kind) for path in paths for kind in KINDS], limit, len(KINDS))
    for number, (path, kind) in enumerate(chosen):
        folder = tmp_path / str(number) / "work"
        shutil.copytree(place.folder, folder)
        outside = outside_of(folder.parent)
        replaced(folder / path, KINDS[kind], outside)
        before = snapshot(outside)
        os.chdir(folder)
        signal.alarm(_SECONDS)
        status = place.run(command)
        signal.alarm(0)
        assert status in (0, 1, 2), (command, path, kind)
        after = snapshot(outside)
        if path == OUTPUTS.get(command):  # the user's own link: new files may be written there
            after = {name: state for name, state in after.items() if name in before}
        assert after == before, (command, path, kind)
        mine = folder / path / "mine.txt"
        assert kind != "folder" or mine.read_text() == "mine", (command, path, kind)
        shutil.rmtree(folder.parent)
    return len(chosen)


@pytest.mark.long
@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_outside_changes(
    command: str, place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep(command, _FEW // 4 if command in SLOW_COMMANDS else _FEW, place, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_outside_changes_for_any_pair(
    command: str,
    place: Workplace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tries = sweep(command, _SLOW if command in SLOW_COMMANDS else _MANY, place, tmp_path)
    assert "Traceback" not in capsys.readouterr().err
    print(f"{command}: {tries} tries")


NOBODY = 65534
FORBIDDEN = {"0600": 0o600, "0400": 0o400, "0000": 0}


def run_as_nobody(command: str, place: Workplace, folder: Path) -> tuple[int, str]:
    """The exit status and the error output of a command in a child that is another user."""
    errors = folder.parent / "errors.txt"
    child = os.fork()
    if not child:
        handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        status = 99
        try:
            os.chdir(folder)
            signal.alarm(_SECONDS)
            status = place.run(command)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, result = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(result), errors.read_text()


def give_to_nobody(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.slow if name == "demo" else ()) for name in COMMANDS],
)
def test_files_of_another_user_are_left_alone(
    command: str,
    place: Workplace,
    open_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = paths_of(command, place)
    monkeypatch.setenv("PINXIT_CACHE", str(open_folder / "all" / "cache"))

    def prepared(name: str) -> Path:
        folder = open_folder / name / "work"
        shutil.copytree(place.folder, folder)
        give_to_nobody(folder.parent)
        return folder

    status, errors = run_as_nobody(command, place, prepared("all"))
    assert status == 0, errors
    pairs = [(path, mode) for path in paths for mode in FORBIDDEN]
    every = max(7, -(-len(pairs) // (_FEW // 4))) if command in SLOW_COMMANDS else 7
    for number, (path, mode) in enumerate(pairs[::every]):
        folder = prepared(str(number))
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.write_text("root's")
        os.chown(target, 0, 0)
        # A folder can be read, and nothing can be written into it.
        target.chmod(0o755 if target.is_dir() else FORBIDDEN[mode])
        before = os.listdir(target) if target.is_dir() else target.read_bytes()  # noqa: PTH208
        status, errors = run_as_nobody(command, place, folder)
        assert status in (0, 1, 2), (command, path, mode, errors)
        assert "Traceback" not in errors, (command, path, mode)
        after = os.listdir(target) if target.is_dir() else target.read_bytes()  # noqa: PTH208
        assert after == before, (command, path, mode)
