"""Safetensors files of others: the library's promises, a lower limit, and errors in our words."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pinxit.errors import FileError

HEADER_BYTES = 32 * 2**20


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata; FileError if it is not one.

    The tensors are views of the file: memory fills when they are used.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > HEADER_BYTES:
            raise ValueError(f"its header says it has {length} bytes, over {HEADER_BYTES}")
        with safe_open(path, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    # The library passes on errors of torch, as for sides that multiply beyond 64 bits.
    except (SafetensorError, OSError, ValueError, RuntimeError) as trouble:
        raise FileError(
            f"{path} cannot be read as safetensors: {trouble}",
            "download it again; if that does not help, it was not written as it should be",
        ) from trouble
