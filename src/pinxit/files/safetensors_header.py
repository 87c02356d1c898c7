"""The header of a safetensors file: metadata and tensor entries, read without torch."""

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from pinxit.errors import FileError
from pinxit.files.atomic_write import check_regular, in_the_way
from pinxit.files.other_kinds import START_BYTES, other_kind
from pinxit.files.untrusted import open_untrusted

MAX_HEADER_BYTES = 32 * 2**20
_READ_HINT = "download it again; if that does not help, the program that wrote it made a mistake"

# Errors that a header which is no valid header can raise.
_BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def parse_header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """The header's length in bytes and its entries, from the start of a file.

    Raises ValueError if it is too long or not JSON.
    """
    length = int.from_bytes(file.read(8), "little")
    if file.read(1) != b"{":
        file.seek(0)
        raise ValueError(f"it is {other_kind(file.read(START_BYTES))}")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, and the limit is {MAX_HEADER_BYTES}")
    # Decoded here: given bytes, json would try other encodings and import modules.
    return length, json.loads("{" + file.read(max(length - 1, 0)).decode("utf-8"))


def read_header_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header; no tensor is read and no checksum verified.

    Raises FileError if the file cannot be read or ends too early.
    """
    try:
        with open_untrusted(path, sys.maxsize) as file:
            length, entries = parse_header(file)
            metadata: dict[object, object] = dict(entries.pop("__metadata__", {}))
        ends = (entry["data_offsets"][1] for entry in entries.values())
        if path.stat().st_size < 8 + length + max(ends, default=0):
            raise ValueError("it ends too early")
    except _BROKEN as error:
        raise unreadable_error(path, error) from error
    return {str(name): text for name, text in metadata.items() if isinstance(text, str)}


def has_mark(path: Path, mark: str) -> bool:
    """Whether a file's header can be read and has this metadata; its tensors may be damaged."""
    try:
        with open_untrusted(path, sys.maxsize) as file:
            return mark in parse_header(file)[1]["__metadata__"]
    except (FileError, *_BROKEN):
        return False


def check_replaceable(path: Path, mark: str) -> None:
    """Raise RunError if there is something at `path` that pinxit has not made with this mark."""
    check_regular(path)
    if path.exists() and not has_mark(path, mark):
        raise in_the_way(path)


def unreadable_error(path: Path, error: Exception) -> FileError:
    """The error for a file that is not valid safetensors."""
    hint = _READ_HINT if str(path).isprintable() else "rename it: its name is not UTF-8 text"
    return FileError(f"{path} cannot be read as safetensors: {error}", hint)
