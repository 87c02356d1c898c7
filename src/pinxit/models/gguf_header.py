"""Walks the header of a GGUF file, whose lengths the library `gguf` believes, however large."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pinxit.files.untrusted import open_untrusted

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Bytes of each type of value; strings and arrays have their own length.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_ELEMENTS = 4_000_000  # of all arrays; the vocabulary of a language model has 250,000
_MAX_DIMENSIONS = 8


def check_gguf_header(path: Path) -> None:
    """Raise ValueError if the header's lengths exceed the file, or are unusually large."""
    size = path.stat().st_size
    with open_untrusted(path, max_bytes=size) as file:
        _Header(file, size).check()


@dataclass
class _Header:
    file: BinaryIO
    left: int
    elements: int = 0

    def check(self) -> None:
        """Walk the whole header."""
        if self._read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported")
        tensors, values = self._number("Q"), self._number("Q")
        for _ in range(values):
            self._string()
            self._value(self._number("I"))
        for _ in range(tensors):
            self._string()
            dimensions = self._number("I")
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            self._read(8 * dimensions + 4 + 8)

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY:
            self._array(self._number("I"), self._number("Q"))
        elif kind in _SIZES:
            self._read(_SIZES[kind])
        else:
            raise ValueError(f"a value has the unknown type {kind}")

    def _array(self, kind: int, length: int) -> None:
        self.elements += length
        if self.elements > _MAX_ELEMENTS:
            raise ValueError(f"its arrays have more than {_MAX_ELEMENTS} values")
        if kind in _SIZES:
            self._read(length * _SIZES[kind])
        elif kind == _STRING:
            for _ in range(length):
                self._string()
        else:
            raise ValueError(f"an array has values of type {kind}")

    def _string(self) -> None:
        self._read(self._number("Q"))

    def _number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self._read(struct.calcsize(kind)))[0]

    def _read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise ValueError("it ends too early")
        return self.file.read(size)
