"""Files that are whole or not there, and steps that an interrupt does not tear."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from types import FrameType

from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and put it in its place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        write(beside)
        beside.chmod(mode)  # safetensors' writer makes files that only their owner reads
        _flush(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _flush(path.parent)


def replace_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    replace(path, lambda beside: _ignore(beside.write_text(text, encoding="utf-8")))


def replace_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace(path, lambda beside: save_file(packed, beside, dict(metadata)))


def sha256(path: Path) -> str:
    """The fingerprint of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@contextmanager
def undisturbed() -> Generator[None]:
    """Hold Ctrl-C back until the block is done, so that it is done whole or not begun."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        _ = signal.signal(signal.SIGINT, before)
        if held and callable(before):
            _ = before(*held[0])


def _flush(path: Path) -> None:
    """Make the disk have what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ignore(_result: object) -> None:
    """For calls whose result says nothing here."""
