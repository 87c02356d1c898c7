"""Zip archives as torch writes them: no compression, no hidden data, no duplicate names."""

import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from mmap import mmap
from typing import Any

from pinxit.files.pickle.machine import RefusedError

MAX_MEMBERS = 100_000
_ALLOWED_FLAGS = 0x080E  # sizes after the data, names in UTF-8, compression level
_IN_ZIP64 = 0xFFFFFFFF  # the value is in a 64-bit field of the zip64 extension
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_MEMBER = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")

# Start and end offset of a member's bytes in the file.
ByteRange = tuple[int, int]


def members(data: mmap) -> dict[str, ByteRange]:
    """The byte range of each member by name; RefusedError if the archive is ambiguous."""
    position, end, count = _directory(data)
    ranges: dict[str, ByteRange] = {}
    with_headers: list[ByteRange] = []
    for _ in range(count):
        position, name, header, size = _directory_entry(data, position, end)
        start = _data_start(data, header, name)
        if name in ranges:
            raise RefusedError(f"its archive has {name[:80]!r} twice")
        ranges[name] = (start, start + size)
        with_headers.append((header, start + size))
    with_headers = [(0, 0), *sorted(with_headers), (position, end)]
    if position != end or any(before[1] > after[0] for before, after in pairwise(with_headers)):
        raise RefusedError("members of its archive overlap, or its directory is incomplete")
    return ranges


def pickle_member(names: Iterable[str]) -> str:
    """The name of the member with torch's pickle; RefusedError unless there is exactly one."""
    pickles = [name for name in names if f"/{name}".endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedError(f"its archive has {len(pickles)} members `data.pkl`; torch writes 1")
    return pickles[0]


def _directory(data: mmap) -> tuple[int, int, int]:
    """Start and end offset of the central directory, and its number of members."""
    tail = data.rfind(b"PK\5\6", max(0, len(data) - _END.size - 2**16))
    if tail < 0:
        raise RefusedError("its archive is cut off")
    _, disk, _, _, count, length, start, comment = _unpack(_END, data, tail)
    end = tail
    if data[max(0, tail - _LOCATOR.size) : tail][:4] == b"PK\6\7":
        end = _unpack(_LOCATOR, data, tail - _LOCATOR.size)[2]
        signature, _, _, _, disk, _, _, count, length, start = _unpack(_END_64, data, end)
        if signature != b"PK\6\6":
            raise RefusedError("its archive has no directory at the offset it gives")
    if disk or start + length != end or tail + _END.size + comment != len(data):
        raise RefusedError("its archive does not end with its directory")
    if count > MAX_MEMBERS:
        raise RefusedError(f"its archive has {count:,} members; the limit is {MAX_MEMBERS:,}")
    return start, end, count


def _directory_entry(data: mmap, position: int, end: int) -> tuple[int, str, int, int]:
    """One directory entry: offset of the next one, name, offset of its local header, size."""
    fields = _unpack(_MEMBER, data, position)
    signature, flags, method = fields[0], fields[3], fields[4]
    packed_size, size, name_size, extra_size, comment_size = fields[8:13]
    name_end = position + _MEMBER.size + name_size
    entry_end = name_end + extra_size + comment_size
    if signature != b"PK\1\2" or entry_end > end:
        raise RefusedError("its archive's directory is damaged")
    name = data[name_end - name_size : name_end].decode("utf-8", "backslashreplace")
    zip64 = _zip64_values(data[name_end : name_end + extra_size])
    size, packed_size, header = (
        next(zip64, _IN_ZIP64) if value == _IN_ZIP64 else value
        for value in (size, packed_size, fields[16])
    )
    if method or packed_size != size or flags & ~_ALLOWED_FLAGS:
        raise RefusedError(f"{name[:80]!r} in its archive is compressed, encrypted or patched")
    return entry_end, name, header, size


def _zip64_values(extra: bytes) -> Iterator[int]:
    """The 64-bit values in the extra field of an entry."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            body = extra[position + 4 : position + 4 + length]
            yield from (value for (value,) in struct.iter_unpack("<Q", body[: len(body) & ~7]))
        position += 4 + length


def _data_start(data: mmap, header: int, name: str) -> int:
    """Offset of a member's bytes; RefusedError if its local header contradicts the directory."""
    fields = _unpack(_LOCAL, data, header)
    name_end = header + _LOCAL.size + fields[9]
    local_name = data[header + _LOCAL.size : name_end].decode("utf-8", "backslashreplace")
    if fields[0] != b"PK\3\4" or local_name != name or fields[3] or fields[2] & ~_ALLOWED_FLAGS:
        raise RefusedError(f"{name[:80]!r} in its archive contradicts the directory")
    return name_end + fields[10]


def _unpack(layout: struct.Struct, data: mmap, position: int) -> tuple[Any, ...]:
    if not 0 <= position <= len(data) - layout.size:
        raise RefusedError("its archive is cut off")
    return layout.unpack_from(data, position)
