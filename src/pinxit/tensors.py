"""Safetensors files of others: the library's promises, a lower limit, and errors in our words."""

import json
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pinxit.errors import FileError
from pinxit.mapped import mapped

HEADER_BYTES = 32 * 2**20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; FileError if it is not one.

    The tensors are views of the file: memory fills when they are used.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"its header says it has {length} bytes, over {HEADER_BYTES}")
            header = file.read(length)
            with safe_open(path, framework="pt") as opened:  # which checks all that it says
                names, metadata = opened.keys(), opened.metadata() or {}
                entries: dict[str, Any] = json.loads(header)
                data = mapped(file)
                tensors = {
                    name: _view(data, 8 + length, entries[name])
                    if entries[name]["dtype"] in _DTYPES
                    else opened.get_tensor(name)
                    for name in names
                }
                return tensors, metadata
    # The library passes on errors of torch, as for sides that multiply beyond 64 bits.
    except (SafetensorError, OSError, ValueError, RuntimeError) as trouble:
        raise FileError(
            f"{path} cannot be read as safetensors: {trouble}",
            "download it again; if that does not help, it was not written as it should be",
        ) from trouble


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
