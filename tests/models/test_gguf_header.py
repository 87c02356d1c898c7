"""Lengths in the header of a GGUF file that would make its reader run for hours."""

import struct
from pathlib import Path

import pytest

from pinxit.errors import FileError
from pinxit.models.gguf_file import read_gguf

KEY = struct.pack("<Q", 1) + b"k"


def header(rest: bytes, tensors: int = 0, values: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header(KEY + struct.pack("<IIQ", 9, 0, 2**62)), "more than 4000000 values"),
        (header(KEY + struct.pack("<IIQ", 9, 8, 3_000_000)), "ends too early"),
        (header(KEY + struct.pack("<IIQ", 9, 9, 3)), "values of type 9"),
        (header(KEY + struct.pack("<IQ", 8, 2**63)), "ends too early"),
        (header(KEY + struct.pack("<I", 77)), "unknown type 77"),
        (header(b"", values=2**63), "ends too early"),
        (header(b"", tensors=2**63, values=0), "ends too early"),
        (header(KEY + struct.pack("<I", 2**31), 1, 0), "2147483648 dimensions"),
        (header(b"", values=0, version=0x03000000), "version 50331648"),
        (b"GGUF", "ends too early"),
    ],
)
def test_unusual_lengths_are_refused_at_once(tmp_path: Path, content: bytes, reason: str) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    with pytest.raises(FileError, match=reason):
        read_gguf(file)
