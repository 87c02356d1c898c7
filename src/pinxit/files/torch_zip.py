"""Zip archives as torch writes them: nothing compressed, nothing hidden, nothing twice."""

import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise
from mmap import mmap
from typing import Any

from pinxit.files.pickle_reader import RefusedError

MEMBERS = 100_000
_HARMLESS = 0x080E  # sizes behind the data, names in UTF-8, hints on compression
_LARGE = 0xFFFFFFFF  # the number is in a field of 64 bits elsewhere
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_MEMBER = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")

# Where the bytes of one member lie in the file: from, to.
Span = tuple[int, int]


def members(data: mmap) -> dict[str, Span]:
    """The members of an archive by their names; RefusedError if anything about it is ambiguous."""
    at, end, count = _contents(data)
    found: dict[str, Span] = {}
    whole: list[Span] = []
    for _ in range(count):
        at, name, header, size = _entry(data, at, end)
        begin = _begin(data, header, name)
        if name in found:
            raise RefusedError(f"its archive has {name[:80]!r} twice")
        found[name] = (begin, begin + size)
        whole.append((header, begin + size))
    whole = [(0, 0), *sorted(whole), (at, end)]
    if at != end or any(before[1] > after[0] for before, after in pairwise(whole)):
        raise RefusedError("members of its archive overlap, or its list of contents is not whole")
    return found


def pickle_of(names: Iterable[str]) -> str:
    """Which member is torch's pickle; RefusedError if none is, or more than one."""
    pickles = [name for name in names if f"/{name}".endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedError(f"its archive has {len(pickles)} members `data.pkl`, and torch writes 1")
    return pickles[0]


def _contents(data: mmap) -> tuple[int, int, int]:
    """Where the list of contents begins and ends, and how many members it has."""
    tail = data.rfind(b"PK\5\6", max(0, len(data) - _END.size - 2**16))
    if tail < 0:
        raise RefusedError("its archive breaks off")
    _, disk, _, _, count, length, at, comment = _unpack(_END, data, tail)
    end = tail
    if data[max(0, tail - _LOCATOR.size) : tail][:4] == b"PK\6\7":
        end = _unpack(_LOCATOR, data, tail - _LOCATOR.size)[2]
        sign, _, _, _, disk, _, _, count, length, at = _unpack(_END_64, data, end)
        if sign != b"PK\6\6":
            raise RefusedError("its archive has no list of contents where it says")
    if disk or at + length != end or tail + _END.size + comment != len(data):
        raise RefusedError("its archive's list of contents is not at its end")
    if count > MEMBERS:
        raise RefusedError(f"its archive has {count:,} members, and {MEMBERS:,} are allowed")
    return at, end, count


def _entry(data: mmap, at: int, end: int) -> tuple[int, str, int, int]:
    """One line of the list of contents: where the next is, name, where its header is, size."""
    fields = _unpack(_MEMBER, data, at)
    sign, flags, method = fields[0], fields[3], fields[4]
    packed, size, name_size, extra_size, comment_size = fields[8:13]
    after_name = at + _MEMBER.size + name_size
    after = after_name + extra_size + comment_size
    if sign != b"PK\1\2" or after > end:
        raise RefusedError("its archive's list of contents is damaged")
    name = data[after_name - name_size : after_name].decode("utf-8", "backslashreplace")
    wide = _wide(data[after_name : after_name + extra_size])
    size, packed, header = (
        next(wide, _LARGE) if number == _LARGE else number for number in (size, packed, fields[16])
    )
    if method or packed != size or flags & ~_HARMLESS:
        raise RefusedError(f"{name[:80]!r} in its archive is compressed, encrypted or patched")
    return after, name, header, size


def _wide(extra: bytes) -> Iterator[int]:
    """The numbers of 64 bits that an entry brings along."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            yield from (number for (number,) in struct.iter_unpack("<Q", body[: len(body) & ~7]))
        at += 4 + length


def _begin(data: mmap, header: int, name: str) -> int:
    """Where a member's bytes begin, if its own header agrees with the list of contents."""
    fields = _unpack(_LOCAL, data, header)
    after_name = header + _LOCAL.size + fields[9]
    own = data[header + _LOCAL.size : after_name].decode("utf-8", "backslashreplace")
    if fields[0] != b"PK\3\4" or own != name or fields[3] or fields[2] & ~_HARMLESS:
        raise RefusedError(f"{name[:80]!r} in its archive is not what the list of contents says")
    return after_name + fields[10]


def _unpack(form: struct.Struct, data: mmap, at: int) -> tuple[Any, ...]:
    if not 0 <= at <= len(data) - form.size:
        raise RefusedError("its archive breaks off")
    return form.unpack_from(data, at)
