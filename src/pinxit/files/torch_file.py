"""Torch's `.pt`, `.ckpt` and `.bin` files of others, read without running anything in them.

Both layouts: the zip archive of torch 1.6 and later, and the pickles with raw storages after them
of before. What is read, what is refused and why is in docs/security.md.
"""

import math
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import UnionType
from typing import Any

import torch
from torch import Tensor

from pinxit.errors import FileError
from pinxit.files.mapped import mapped
from pinxit.files.pickle_reader import Form, Name, Reading, RefusedError, Unfinished
from pinxit.files.torch_zip import Span, members, pickle_of

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_CONTENTS = 2**20  # bytes at the end of an archive that hold its list of contents
_DIMENSIONS = 16
_FAR = 2**48  # no size, stride or offset of a real tensor is as large
_COPIES = 8  # how often the file's size all its tensors may be, when they share storages

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_TYPES = {
    str(dtype): dtype
    for dtype in (
        *_STORAGES.values(),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
_NAMES = frozenset((*_STORAGES, *_TYPES))
# NumPy's scalars, which Lightning's callbacks keep, and their layout in bytes.
_SCALARS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "b1": "<?"}


def looks_pickled(path: Path) -> bool:
    """Whether a file is torch's, in either layout, by its first bytes and not by its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"PK\3\4":
            file.seek(max(0, path.stat().st_size - _CONTENTS))
            return b"data.pkl" in head + file.read()
    # A safetensors file may begin with the same two bytes: its header's length.
    return head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2]) <= 5 and head[4:9] != b"\0\0\0\0{"


def read_pickled(path: Path) -> object:
    """What a torch file holds: dictionaries, lists, tuples, text, numbers, bytes and tensors.

    Tensors are on the CPU, need no gradient, and are views of the file as far as that can be:
    memory fills when they are used. Names of classes are text, sets are lists, a ParameterDict is
    a dictionary. FileError if anything else is in the file, if it is damaged, or over a limit.
    """
    try:
        if not path.is_file() or not path.stat().st_size:
            raise RefusedError("there is no such file, or nothing in it")
        with path.open("rb") as file:
            return _File(file).value()
    except (RefusedError, OSError) as trouble:
        raise FileError(
            f"{path} cannot be read: {trouble}",
            "nothing in it was run; take it as .safetensors if there is one, or download it again",
        ) from trouble


@dataclass(frozen=True)
class _Storage(Unfinished):
    """The bytes of a storage, and the type that the file gives its numbers."""

    raw: Tensor
    dtype: torch.dtype


class _File:
    """An open file of torch's, and what was found in it so far."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        self.data = mapped(file)
        self.spans: Mapping[str, Span] = {}  # of storages in an archive, by key
        self.storages: dict[str, _Storage] = {}
        self.promised = 0  # bytes of storages that are still to come
        self.left = _COPIES * len(self.data)

    def value(self) -> object:
        """What the file holds."""
        if self.data[:4] == b"PK\3\4":
            return self._of_archive()
        if self.data[:1] == b"\x80":
            return self._of_pickles()
        raise RefusedError("it does not begin like a file of torch's")

    def _reading(self, start: int, end: int, stored: Form) -> Reading:
        # Made anew and not kept: a file that holds its own methods would outlive its tensors.
        tensors = [f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")]
        forms = {**_FORMS, **dict.fromkeys(tensors, self._tensor)}
        return Reading(self.data, start, end, forms, stored, _NAMES)

    def _of_archive(self) -> object:
        found = members(self.data)
        name = pickle_of(found)
        folder = name.removesuffix("data.pkl")
        order = found.get(f"{folder}byteorder")
        if order and self.data[slice(*order)] != sys.byteorder.encode():
            raise RefusedError("its numbers have the byte order of another kind of machine")
        inside = f"{folder}data/"
        self.spans = {
            key.removeprefix(inside): found[key] for key in found if key.startswith(inside)
        }
        start, end = found[name]
        return self._reading(start, end, self._mapped).value()

    def _of_pickles(self) -> object:
        magic, at = self._plain(0)
        protocol, at = self._plain(at)
        system, at = self._plain(at)
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise RefusedError("it is a pickle, but none that torch wrote")
        if type(system) is not dict or system.get("little_endian") != (sys.byteorder == "little"):
            raise RefusedError("its numbers have the byte order of another kind of machine")
        reading = self._reading(at, len(self.data), self._allotted)
        value = reading.value()
        keys, at = self._plain(reading.at)
        if type(keys) is not list or len(keys) != len(self.storages):
            raise RefusedError("its storages are not those that its tensors need")
        for key in keys:
            at = self._fill(self.storages.pop(key, None) if type(key) is str else None, at)
        return value

    def _plain(self, start: int) -> tuple[object, int]:
        """A pickle with no names in it, and where it ends."""
        reading = Reading(self.data, start, len(self.data))
        return reading.value(), reading.at

    def _mapped(self, described: tuple[object, ...]) -> object:
        """A storage in an archive, its bytes left in the file where their place allows it."""
        key, dtype, size = _described(described)
        start, end = self.spans.get(key, (0, -1))
        if end - start != size:
            raise RefusedError(f"it has no storage {key[:80]!r} of {size} bytes")
        if key not in self.storages:
            raw = torch.empty(size if start % 16 else 0, dtype=torch.uint8)
            if start % 16:
                self._read_into(raw, start)
            elif size:
                raw = torch.frombuffer(self.data, dtype=torch.uint8, count=size, offset=start)
            self.storages[key] = _Storage(raw, dtype)
        return _Storage(self.storages[key].raw, dtype)

    def _allotted(self, described: tuple[object, ...]) -> object:
        """A storage whose bytes follow after the pickles; a class and its source are a name."""
        match described:
            case ("module", Name() as name, *_):
                return name
            case _:
                key, dtype, size = _described(described)
        if key not in self.storages:
            self.promised += size
            if self.promised > len(self.data):
                raise RefusedError(f"it wants storages of {self.promised} bytes, more than it has")
            self.storages[key] = _Storage(torch.empty(size, dtype=torch.uint8), dtype)
        if (self.storages[key].raw.numel(), self.storages[key].dtype) != (size, dtype):
            raise RefusedError(f"it describes storage {key[:80]!r} in two ways")
        return self.storages[key]

    def _fill(self, storage: _Storage | None, at: int) -> int:
        """Read a storage's bytes, which follow after their count; where they end."""
        if storage is None:
            raise RefusedError("it has a storage that no tensor needs")
        size = storage.raw.numel()
        self.file.seek(at)
        head = self.file.read(8)
        if int.from_bytes(head, "little") * storage.dtype.itemsize != size or len(head) < 8:
            raise RefusedError("a storage has another size than its tensors say, or breaks off")
        self._read_into(storage.raw, at + 8)
        return at + 8 + size

    def _read_into(self, raw: Tensor, start: int) -> None:
        self.file.seek(start)
        if self.file.readinto(raw.numpy().data) != raw.numel():
            raise RefusedError("a storage breaks off")

    def _tensor(self, given: tuple[object, ...]) -> object:
        """A tensor over a storage, if all of it lies inside; its type may be given beside it."""
        match given:
            case (
                _Storage() as storage,
                int() as offset,
                tuple() as size,
                tuple() as stride,
                *more,
            ):
                named = more[2] if len(more) > 2 and type(more[2]) is Name else ""
                dtype = _TYPES.get(named, storage.dtype)
                return self._view(storage.raw, dtype, offset, size, stride)
            case _:
                raise RefusedError("it describes a tensor by other than its storage and shape")

    def _view(self, raw: Tensor, dtype: torch.dtype, offset: int, size: Any, stride: Any) -> Tensor:
        numbers = (offset, *size, *stride)
        if any(type(number) is not int or not 0 <= number < _FAR for number in numbers):
            raise RefusedError("a tensor has a size, stride or offset that is none")
        if len(size) != len(stride) or len(size) > _DIMENSIONS:
            raise RefusedError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
        if 0 in size and math.prod(max(side, 1) for side in size) < _FAR:
            return torch.empty(size, dtype=dtype)
        count, there = math.prod(size), raw.numel() // dtype.itemsize
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        self.left -= count * dtype.itemsize
        if max(count - 1, last) >= there or raw.numel() % dtype.itemsize or self.left < 0:
            raise RefusedError(f"a tensor of {size} does not fit into its storage of {there}")
        return raw.view(dtype).as_strided(size, stride, offset)


def _described(described: tuple[object, ...]) -> tuple[str, torch.dtype, int]:
    """A storage's key, type and size in bytes."""
    match described:
        case ("storage", Name() as kind, str() as key, str(), int() as count, *view) if (
            kind in _STORAGES and 0 <= count < _FAR and view in ([], [None])
        ):
            return key, _STORAGES[kind], count * _STORAGES[kind].itemsize
        case _:
            raise RefusedError("it describes a storage as torch does not")


def _taking(make: Callable[..., object], *kinds: type | UnionType, least: int = 0) -> Form:
    """A form made by our own function, of arguments of those types and no others."""

    def form(given: tuple[object, ...]) -> object:
        fits = least <= len(given) <= len(kinds)
        if not fits or not all(map(isinstance, given, kinds)):
            raise RefusedError("it has a value that is not made as torch makes it")
        return make(*given)

    return form


def _tensor_of(data: Tensor, *_rest: object) -> Tensor:
    return data


def _device(kind: str, number: int = 0) -> str:
    return f"{kind}:{number}"


def _scalar_type(code: str, *_rest: object) -> Name:
    return Name(code)


def _latin(text: str, _encoding: str) -> bytes:
    return text.encode("latin1", "replace")


def _scalar(kind: Name, raw: bytes) -> object:
    if len(raw) != struct.calcsize(_SCALARS.get(kind, "x")):
        raise RefusedError(f"it has a NumPy number of {len(raw)} bytes")
    return struct.unpack(_SCALARS[kind], raw)[0]


_PARAMETER = _taking(_tensor_of, Tensor, bool, dict, dict, least=3)
_SCALAR = _taking(_scalar, Name, bytes, least=2)
_FORMS: dict[str, Form] = {
    "collections.OrderedDict": _taking(dict),
    "torch.nn.modules.container.ParameterDict": _taking(dict),
    "torch._utils._rebuild_parameter": _PARAMETER,
    "torch._utils._rebuild_parameter_with_state": _PARAMETER,
    "torch.Size": _taking(tuple, list | tuple),
    "torch.device": _taking(_device, str, int, least=1),
    "builtins.set": _taking(list, list),
    "__builtin__.set": _taking(list, list),
    "numpy.dtype": _taking(_scalar_type, str, bool, bool, least=3),
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
    # Bytes, which pickles in the manner of Python 2 hold as text.
    "_codecs.encode": _taking(_latin, str, str, least=2),
}
