"""Read PyTorch files (`.pt`, `.ckpt`, `.bin`) of other programs without running code in them.

Both layouts are supported: the zip archive of torch 1.6 and later, and the older sequence of
pickles followed by raw storages. docs/results/security.md says what is read and what is refused.
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
from pinxit.files.mapped import map_file
from pinxit.files.pickle.machine import (
    Builder,
    GlobalName,
    Intermediate,
    PickleMachine,
    RefusedError,
)
from pinxit.files.pickle.torch_zip import ByteRange, members, pickle_member
from pinxit.files.untrusted import read_errors

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DIRECTORY_BYTES = 2**20  # at the end of an archive, where its directory is
_MAX_DIMENSIONS = 16
_MAX_SIZE = 2**48  # larger than any size, stride or offset of a real tensor
_MAX_COPIES = 8  # tensors that share storages may be this many times the file's size

_STORAGE_DTYPES = {
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
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *_STORAGE_DTYPES.values(),
        *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
_KNOWN_NAMES = frozenset((*_STORAGE_DTYPES, *_DTYPES))
# NumPy scalars, which Lightning's callbacks store, and their format in the `struct` module.
_SCALAR_FORMATS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "b1": "?"}


def is_pickle(path: Path) -> bool:
    """Whether a file is a PyTorch file in either layout, judged by its content, not its name."""
    if not path.is_file():
        return False
    with read_errors(path), path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"PK\3\4":
            file.seek(max(0, path.stat().st_size - _DIRECTORY_BYTES))
            return b"data.pkl" in head + file.read()
    # A safetensors file may begin with the same two bytes: they are part of its header length.
    return head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2]) <= 5 and head[4:9] != b"\0\0\0\0{"


def read_torch_file(path: Path) -> object:
    """Return the content of a PyTorch file: dicts, lists, tuples, text, numbers, bytes, tensors.

    Tensors are on the CPU, without gradients, and views of the file where possible: memory fills
    when they are used. Class names become text, sets become lists, a ParameterDict becomes a dict.
    Raises FileError if the file contains anything else, is damaged or exceeds a limit.
    """
    try:
        if not path.is_file() or not path.stat().st_size:
            raise RefusedError("it does not exist or is empty")
        with path.open("rb") as file:
            return _TorchFile(file).load()
    except (RefusedError, OSError) as error:
        raise FileError(
            f"{path} cannot be read: {error}",
            "no code in it was run; use a .safetensors version, or download it again",
        ) from error


@dataclass(frozen=True)
class _Storage(Intermediate):
    """The bytes of a storage and the dtype that the file gives it."""

    raw: Tensor
    dtype: torch.dtype


class _TorchFile:
    """An open PyTorch file and the storages read from it so far."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file
        self.data = map_file(file)
        self.ranges: Mapping[str, ByteRange] = {}  # of storages in an archive, by key
        self.storages: dict[str, _Storage] = {}
        self.allocated = 0  # bytes of storages that follow the pickles
        self.budget = _MAX_COPIES * len(self.data)  # bytes that further tensors may have

    def load(self) -> object:
        """Return the content of the file."""
        if self.data[:4] == b"PK\3\4":
            return self._load_archive()
        if self.data[:1] == b"\x80":
            return self._load_legacy()
        raise RefusedError("it does not begin like a PyTorch file")

    def _machine(self, start: int, end: int, build_storage: Builder) -> PickleMachine:
        # Not stored on self: an object that refers to its own methods would outlive its tensors.
        tensor_names = [f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")]
        builders = {**_BUILDERS, **dict.fromkeys(tensor_names, self._build_tensor)}
        return PickleMachine(self.data, start, end, builders, build_storage, _KNOWN_NAMES)

    def _load_archive(self) -> object:
        ranges = members(self.data)
        name = pickle_member(ranges)
        folder = name.removesuffix("data.pkl")
        byte_order = ranges.get(f"{folder}byteorder")
        if byte_order and self.data[slice(*byte_order)] != sys.byteorder.encode():
            raise RefusedError("its byte order is not that of this machine")
        prefix = f"{folder}data/"
        self.ranges = {
            key.removeprefix(prefix): ranges[key] for key in ranges if key.startswith(prefix)
        }
        start, end = ranges[name]
        return self._machine(start, end, self._archive_storage).load()

    def _load_legacy(self) -> object:
        magic, position = self._load_plain(0)
        protocol, position = self._load_plain(position)
        system, position = self._load_plain(position)
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise RefusedError("it is a pickle, but not a PyTorch file")
        if type(system) is not dict or system.get("little_endian") != (sys.byteorder == "little"):
            raise RefusedError("its byte order is not that of this machine")
        machine = self._machine(position, len(self.data), self._legacy_storage)
        value = machine.load()
        keys, position = self._load_plain(machine.position)
        if type(keys) is not list or len(keys) != len(self.storages):
            raise RefusedError("its list of storages does not match its tensors")
        for key in keys:
            storage = self.storages.pop(key, None) if type(key) is str else None
            position = self._fill(storage, position)
        return value

    def _load_plain(self, start: int) -> tuple[object, int]:
        """The value of a pickle without names, and the offset where it ends."""
        machine = PickleMachine(self.data, start, len(self.data))
        return machine.load(), machine.position

    def _archive_storage(self, description: tuple[object, ...]) -> object:
        """A storage in an archive: a view of the file if its alignment allows it, else a copy."""
        key, dtype, size = _parse_storage(description)
        start, end = self.ranges.get(key, (0, -1))
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

    def _legacy_storage(self, description: tuple[object, ...]) -> object:
        """An empty storage, filled after the pickles; a class with its source becomes its name."""
        match description:
            case ("module", GlobalName() as name, *_):
                return name
            case _:
                key, dtype, size = _parse_storage(description)
        if key not in self.storages:
            self.allocated += size
            if self.allocated > len(self.data):
                raise RefusedError(
                    f"it describes storages of {self.allocated} bytes, more than it contains"
                )
            self.storages[key] = _Storage(torch.empty(size, dtype=torch.uint8), dtype)
        if (self.storages[key].raw.numel(), self.storages[key].dtype) != (size, dtype):
            raise RefusedError(f"it describes storage {key[:80]!r} in two ways")
        return self.storages[key]

    def _fill(self, storage: _Storage | None, position: int) -> int:
        """Read a storage, an element count and then the bytes; return the offset of the end."""
        if storage is None:
            raise RefusedError("it has a storage that no tensor uses")
        size = storage.raw.numel()
        self.file.seek(position)
        header = self.file.read(8)
        if int.from_bytes(header, "little") * storage.dtype.itemsize != size or len(header) < 8:
            raise RefusedError(
                "a storage does not have the size that its tensors give, or is cut off"
            )
        self._read_into(storage.raw, position + 8)
        return position + 8 + size

    def _read_into(self, raw: Tensor, start: int) -> None:
        self.file.seek(start)
        if self.file.readinto(raw.numpy().data) != raw.numel():
            raise RefusedError("a storage is cut off")

    def _build_tensor(self, arguments: tuple[object, ...]) -> object:
        """A view of a storage as a tensor; version 3 of the call gives the dtype as well."""
        match arguments:
            case (
                _Storage() as storage,
                int() as offset,
                tuple() as size,
                tuple() as stride,
                *more,
            ):
                dtype_name = more[2] if len(more) > 2 and type(more[2]) is GlobalName else ""
                dtype = _DTYPES.get(dtype_name, storage.dtype)
                return self._view(storage.raw, dtype, offset, size, stride)
            case _:
                raise RefusedError(
                    "it describes a tensor by something else than its storage and shape"
                )

    def _view(self, raw: Tensor, dtype: torch.dtype, offset: int, size: Any, stride: Any) -> Tensor:
        values = (offset, *size, *stride)
        if any(type(value) is not int or not 0 <= value < _MAX_SIZE for value in values):
            raise RefusedError("a tensor has an invalid size, stride or offset")
        if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
            raise RefusedError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
        if 0 in size and math.prod(max(side, 1) for side in size) < _MAX_SIZE:
            return torch.empty(size, dtype=dtype)
        count, capacity = math.prod(size), raw.numel() // dtype.itemsize
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        self.budget -= count * dtype.itemsize
        if max(count - 1, last) >= capacity or raw.numel() % dtype.itemsize or self.budget < 0:
            raise RefusedError(f"a tensor of {size} does not fit into its storage of {capacity}")
        return raw.view(dtype).as_strided(size, stride, offset)


def _parse_storage(description: tuple[object, ...]) -> tuple[str, torch.dtype, int]:
    """Key, dtype and size in bytes of a storage, from its description in the pickle data."""
    match description:
        case ("storage", GlobalName() as kind, str() as key, str(), int() as count, *view) if (
            kind in _STORAGE_DTYPES and 0 <= count < _MAX_SIZE and view in ([], [None])
        ):
            return key, _STORAGE_DTYPES[kind], count * _STORAGE_DTYPES[kind].itemsize
        case _:
            raise RefusedError("the description of a storage is not as torch writes it")


def _checked(function: Callable[..., object], *types: type | UnionType, least: int = 0) -> Builder:
    """A builder that calls `function` if the arguments have these types; `least` are required."""

    def build(arguments: tuple[object, ...]) -> object:
        count_fits = least <= len(arguments) <= len(types)
        if not count_fits or not all(map(isinstance, arguments, types)):
            raise RefusedError("it builds a value from arguments that torch does not use")
        return function(*arguments)

    return build


def _parameter(data: Tensor, *_rest: object) -> Tensor:
    return data


def _device(kind: str, index: int = 0) -> str:
    return f"{kind}:{index}"


def _scalar_type(code: str, *_rest: object) -> GlobalName:
    return GlobalName(code)


def _latin1_bytes(text: str, _encoding: str) -> bytes:
    return text.encode("latin1", "replace")


def _scalar(kind: GlobalName, raw: bytes) -> object:
    if len(raw) != struct.calcsize(_SCALAR_FORMATS.get(kind, "x")):
        raise RefusedError(f"it has a NumPy scalar of {len(raw)} bytes")
    return struct.unpack("<" + _SCALAR_FORMATS[kind], raw)[0]


_PARAMETER = _checked(_parameter, Tensor, bool, dict, dict, least=3)
_SCALAR = _checked(_scalar, GlobalName, bytes, least=2)
_BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": _checked(dict),
    "torch.nn.modules.container.ParameterDict": _checked(dict),
    "torch._utils._rebuild_parameter": _PARAMETER,
    "torch._utils._rebuild_parameter_with_state": _PARAMETER,
    "torch.Size": _checked(tuple, list | tuple),
    "torch.device": _checked(_device, str, int, least=1),
    "builtins.set": _checked(list, list),
    "__builtin__.set": _checked(list, list),
    "numpy.dtype": _checked(_scalar_type, str, bool, bool, least=3),
    "numpy.core.multiarray.scalar": _SCALAR,
    "numpy._core.multiarray.scalar": _SCALAR,
    # Bytes, which pickles of protocol 2 store as text.
    "_codecs.encode": _checked(_latin1_bytes, str, str, least=2),
}
