# pyright: standard
"""GGUF files: weights that are quantized in blocks, read as bf16."""

from pathlib import Path

import torch
from torch import Tensor

from pinxit.errors import FileError
from pinxit.models.gguf_header import check_gguf_header

_HINT = "use the same checkpoint as a safetensors file in fp16, bf16 or fp8"


def read_gguf(path: Path) -> dict[str, Tensor]:
    """The tensors of a GGUF file: quantized ones in bf16, others in their dtype.

    Raises FileError if the library `gguf` is not installed, or if the file is damaged.
    """
    try:
        import gguf
    except ImportError as error:
        raise FileError(
            f"{path} is a GGUF file, and the library that reads it is not installed",
            f'pip install "pinxit[gguf]"; or {_HINT}',
        ) from error
    kinds = gguf.GGMLQuantizationType
    plain = {kinds.F32: torch.float32, kinds.F16: torch.float16}
    tensors: dict[str, Tensor] = {}
    try:
        check_gguf_header(path)
        for stored in gguf.GGUFReader(path).tensors:
            values = gguf.dequantize(stored.data, stored.tensor_type)
            # Values that are not quantized are a part of the file, which cannot be written to.
            own = values if values.flags.writeable else values.copy()
            dtype = plain.get(stored.tensor_type, torch.bfloat16)
            tensors[stored.name] = torch.from_numpy(own).to(dtype)
    except (ValueError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        raise FileError(f"{path} is a GGUF file that cannot be read: {error}", _HINT) from error
    return tensors
