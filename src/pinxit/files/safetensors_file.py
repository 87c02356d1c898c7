"""Safetensors files: the library's reader with a lower limit, a writer in pieces, and a seal."""

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
from pinxit.files.mapped import mapped

HEADER_BYTES = 32 * 2**20

# The name of the last tensor of a sealed file: the SHA-256 of every byte before it.
SEAL = "pinxit.sha256"
_SEAL_BYTES = 32
_PIECE = 2**22

_KINDS = {
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
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
_DTYPES = {name: dtype for dtype, name in _KINDS.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; FileError if it is not one.

    The tensors are views of the file: memory fills when they are used. A sealed file is read
    through and held against its seal, which then stands in the metadata.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"its header says it has {length} bytes, over {HEADER_BYTES}")
            # Bytes would be tried as other encodings too, whose modules are found by the header.
            entries: dict[str, Any] = json.loads(file.read(length).decode("utf-8"))
            with safe_open(path, framework="pt") as opened:  # which checks all that it says
                data = mapped(file)
                tensors = {
                    name: _view(data, 8 + length, entries[name])
                    if entries[name]["dtype"] in _DTYPES
                    else opened.get_tensor(name)
                    for name in opened.keys()  # noqa: SIM118  # it is no mapping
                }
                metadata = opened.metadata() or {}
        seal = tensors.pop(SEAL, None)
        if seal is None:
            return tensors, metadata
        if sealed(path):
            return tensors, {**metadata, SEAL: "intact"}
    # The library passes on errors of torch, as for sides that multiply beyond 64 bits.
    except (SafetensorError, OSError, ValueError, RuntimeError) as trouble:
        raise FileError(
            f"{path} cannot be read as safetensors: {trouble}",
            "download it again; if that does not help, it was not written as it should be",
        ) from trouble
    raise damaged(path)


def _view(data: mmap, begin: int, entry: dict[str, Any]) -> Tensor:
    """One tensor of a file whose numbers begin at a byte of it."""
    start, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
    if start == end:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(data, dtype=torch.uint8, count=end - start, offset=begin + start)
    if (begin + start) % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(shape)


def damaged(path: Path) -> FileError:
    """The complaint about a file of ours that is not as it was written."""
    return FileError(
        f"{path} is damaged: it is not as pinxit wrote it",
        "take it from a copy; pinxit train --resume RUN writes a run's concept anew",
    )


def sealed(path: Path) -> bool:
    """Whether a file ends with the fingerprint of all that is before."""
    fingerprint = sha256()
    with path.open("rb") as file:
        left = path.stat().st_size - _SEAL_BYTES
        while left > 0 and (piece := file.read(min(left, _PIECE))):
            fingerprint.update(piece)
            left -= len(piece)
        return left == 0 and file.read() == fingerprint.digest()


def in_pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, seal: bool
) -> Iterator[memoryview]:
    """A safetensors file from its first byte to its last, no tensor of the CPU copied."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = _entry(_KINDS[tensors[name].dtype], list(tensors[name].shape), begin, end)
    if seal:
        header[SEAL] = _entry("U8", [_SEAL_BYTES], end, end + _SEAL_BYTES)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    fingerprint = sha256()
    for piece in (len(text).to_bytes(8, "little"), text, *names):
        data = memoryview(_bytes(tensors[piece]) if isinstance(piece, str) else piece)
        if seal:
            fingerprint.update(data)
        yield data
    if seal:
        yield memoryview(fingerprint.digest())


def _entry(kind: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
