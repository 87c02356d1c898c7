"""Files that somebody else may have made: only regular files of limited size are opened."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pinxit.errors import FileError
from pinxit.files.untrusted import open_untrusted, read_untrusted_text

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links, pipes and devices")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the path of a socket has at most 107 bytes
        server.bind(path.name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "No such file"),
        (Path.mkdir, "not a regular file"),
        pytest.param(lambda path: os.mkfifo(path), "not a regular file", id="mkfifo"),
        (_socket, "cannot be read"),
        (lambda path: path.symlink_to("/dev/zero"), "leads out of"),
        (lambda path: path.symlink_to("../outside.txt"), "leads out of"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.write_bytes(bytes(101)), "101 bytes, which is too many"),
    ],
)
def test_what_is_not_a_regular_file_inside_the_folder_is_refused(
    make: Callable[[Path], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # restored afterwards
    (tmp_path / "outside.txt").write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / "file")
    with pytest.raises(FileError, match=message):
        open_untrusted(folder / "file", max_bytes=100, inside=folder)


def test_devices_are_refused_everywhere() -> None:
    with pytest.raises(FileError, match="not a regular file"):
        open_untrusted(Path("/dev/zero"))


def test_files_and_links_inside_the_folder_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("ä\r\nb\n".encode())
    (tmp_path / "link").symlink_to("file")
    assert read_untrusted_text(tmp_path / "link", inside=tmp_path) == "ä\nb\n"


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000])
def test_impossible_paths_are_errors(path: str) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        open_untrusted(Path(path))


def test_text_must_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"caf\xe9")
    with pytest.raises(FileError, match="UTF-8"):
        read_untrusted_text(tmp_path / "file")
