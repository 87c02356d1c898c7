"""Safetensors files: reading as views of the file, writing in chunks, and a checksum."""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pinxit.errors import FileError
from pinxit.files.atomic_write import write_bytes
from pinxit.files.mapped import map_file
from pinxit.files.safetensors_header import parse_header, unreadable_error

# Name of the last tensor of a file with a checksum: the SHA-256 of every byte before it.
CHECKSUM = "pinxit.sha256"
_CHECKSUM_BYTES = 32
_READ_BYTES = 2**22

_DTYPE_NAMES = {
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file, by name, and its metadata.

    The tensors are views of the file: memory fills when they are used. If the file has a checksum,
    it is verified and the metadata has the key CHECKSUM. Raises FileError.
    """
    try:
        with path.open("rb") as file:
            length, entries = parse_header(file)
            with safe_open(path, framework="pt") as reader:  # checks the header
                data = map_file(file)
                tensors = {
                    name: _view(data, 8 + length, entries[name])
                    if entries[name]["dtype"] in _DTYPES
                    else reader.get_tensor(name)
                    for name in reader.keys()  # noqa: SIM118  # not a mapping
                }
                metadata = reader.metadata() or {}
        checksum = tensors.pop(CHECKSUM, None)
        if checksum is None:
            return tensors, metadata
        if checksum_matches(path):
            return tensors, {**metadata, CHECKSUM: "intact"}
    # RuntimeError: from torch, for example if the product of a shape exceeds 64 bits.
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise unreadable_error(path, error) from error
    raise damaged_error(path)


def _view(data: mmap, begin: int, entry: dict[str, Any]) -> Tensor:
    """A tensor as a view of the file; `begin` is the offset of the first tensor's data."""
    start, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if start == end:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8, count=end - start, offset=begin + start)
    if (begin + start) % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(shape)


def damaged_error(path: Path) -> FileError:
    """The error for a file whose checksum does not match."""
    return FileError(
        f"{path} is damaged: its checksum does not match",
        "restore it from a copy; pinxit train --resume RUN writes a run's concept again",
    )


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    checksum: bool = False,
) -> None:
    """Write a safetensors file atomically.

    With `checksum`, the file is read back from the disk and verified before it replaces `path`;
    DiskError if it differs.
    """
    chunks = file_chunks(tensors, metadata, checksum=checksum)
    write_bytes(path, chunks, checksum_matches if checksum else None)


def checksum_matches(path: Path) -> bool:
    """Whether the last 32 bytes of a file are the SHA-256 of all bytes before them."""
    digest = sha256()
    with path.open("rb") as file:
        remaining = path.stat().st_size - _CHECKSUM_BYTES
        while remaining > 0 and (chunk := file.read(min(remaining, _READ_BYTES))):
            digest.update(chunk)
            remaining -= len(chunk)
        return remaining == 0 and file.read() == digest.digest()


def file_chunks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, checksum: bool
) -> Iterator[memoryview]:
    """The bytes of a safetensors file, one chunk per tensor; CPU tensors are not copied."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = _entry(
            _DTYPE_NAMES[tensors[name].dtype], list(tensors[name].shape), begin, end
        )
    if checksum:
        header[CHECKSUM] = _entry("U8", [_CHECKSUM_BYTES], end, end + _CHECKSUM_BYTES)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = sha256()
    for chunk in (len(text).to_bytes(8, "little"), text, *names):
        data = memoryview(_bytes(tensors[chunk]) if isinstance(chunk, str) else chunk)
        if checksum:
            digest.update(data)
        yield data
    if checksum:
        yield memoryview(digest.digest())


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
