"""Embeddings that AUTOMATIC1111 hides in PNG images: in a text chunk and in the low pixel bits."""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pinxit.errors import ConceptError
from pinxit.images.decode import UnreadableError, open_image

_CHUNK = "sd-ti-embedding"
_MAX_JSON_BYTES = 16_000_000  # 75 vectors of width 2048 take about 4 million
_MAX_PIXELS = 16_000_000  # larger images are not searched


def read_hidden_embedding(path: Path) -> Mapping[str, Any]:
    """The embedding in an image's text chunk, or in its pixels; empty if there is none."""
    try:
        with open_image(path) as image:
            chunk: object = image.info.get(_CHUNK)
            if isinstance(chunk, str):
                data = base64.b64decode(chunk[:_MAX_JSON_BYTES], validate=True)
            elif image.width * image.height <= _MAX_PIXELS:
                data = _read_pixels(np.asarray(image.convert("RGB")))
            else:
                return {}
        content = json.loads(data or b"{}", object_hook=_with_tensors)
    except (UnreadableError, ValueError, TypeError, RecursionError, RuntimeError) as error:
        raise ConceptError(
            f"cannot read image {path}: {error}", "the image is damaged; use a copy"
        ) from error
    return content if isinstance(content, dict) else {}


def _with_tensors(table: dict[str, Any]) -> object:
    """Convert a JSON table that stands for a tensor; return other tables unchanged."""
    return torch.tensor(table["TORCHTENSOR"]) if "TORCHTENSOR" in table else table


def _read_pixels(pixels: NDArray[np.uint8]) -> bytes | None:
    """The data in the low bits of two blocks at the left and right edges of the image; or None.

    The left block has the low half of each byte, the right block the high half. A column whose
    low bits are all zero separates each block from the image.
    """
    bright = (pixels > 0).all(2)
    rows, columns = np.flatnonzero(np.any(bright, 1)), np.flatnonzero(np.any(bright, 0))
    if not len(rows):
        return None
    cropped = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    low_bits = cropped & np.uint8(15)
    separators = np.flatnonzero(low_bits.max((0, 2)) == 0)
    if len(separators) < 2:
        return None
    low = _without_noise(low_bits[:, : separators[0]])
    high = _without_noise(low_bits[:, separators[-1] + 1 :])
    if low.shape != high.shape:
        return None
    try:
        compressed = (high << np.uint8(4) | low).tobytes()
        return zlib.decompressobj().decompress(compressed, _MAX_JSON_BYTES)
    except zlib.error:
        return None


def _without_noise(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A block of low bits without the noise that AUTOMATIC1111 combines with it."""
    noise = np.fromiter(islice(_noise_values(), block.size), np.uint8, block.size)
    return block ^ noise.reshape(block.shape)


def _noise_values() -> Iterator[int]:
    """Low bits of the linear congruential generator of Numerical Recipes with seed 0, mod 255."""
    state = 0
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255 & 15
