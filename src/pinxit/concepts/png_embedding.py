"""Embeddings that AUTOMATIC1111 hides in pictures: in a text chunk, and in the pixels' low bits."""

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

_CHUNK = "sd-ti-embedding"
_LONGEST = 16_000_000  # bytes of JSON; 75 vectors of 2048 numbers are 4 million
_WIDEST = 16_000_000  # pixels that are searched


def hidden_in(path: Path) -> Mapping[str, Any]:
    """The table in a picture's text chunk or else in its pixels, empty if there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            chunk: object = image.info.get(_CHUNK)
            if isinstance(chunk, str):
                written = base64.b64decode(chunk[:_LONGEST], validate=True)
            elif image.width * image.height <= _WIDEST:
                written = _in_pixels(np.asarray(image.convert("RGB")))
            else:
                return {}
        found = json.loads(written or b"{}", object_hook=_with_tensors)
    except (OSError, SyntaxError, ValueError, TypeError, RecursionError) as trouble:
        raise ConceptError(
            f"picture {path} cannot be read: {trouble}", "it is damaged; take it from a copy"
        ) from trouble
    return found if isinstance(found, dict) else {}


def _with_tensors(table: dict[str, Any]) -> object:
    """A table, or the tensor that it stands for: numbers of fp32, written out in full."""
    return torch.tensor(table["TORCHTENSOR"]) if "TORCHTENSOR" in table else table


def _in_pixels(pixels: NDArray[np.uint8]) -> bytes | None:
    """What stands in the low bits left (low halves) and right (high halves) of the picture.

    Both blocks are parted from the picture by a column whose low bits are all zero.
    """
    lit = (pixels > 0).all(2)
    rows, columns = np.flatnonzero(np.any(lit, 1)), np.flatnonzero(np.any(lit, 0))
    if not len(rows):
        return None
    inside = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    low_bits = inside & np.uint8(15)
    gaps = np.flatnonzero(low_bits.max((0, 2)) == 0)
    if len(gaps) < 2:
        return None
    low, high = _plain(low_bits[:, : gaps[0]]), _plain(low_bits[:, gaps[-1] + 1 :])
    if low.shape != high.shape:
        return None
    try:
        return zlib.decompressobj().decompress((high << np.uint8(4) | low).tobytes(), _LONGEST)
    except zlib.error:
        return None


def _plain(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A block of low bits without the noise that was laid over it."""
    noise = np.fromiter(islice(_noise(), block.size), np.uint8, block.size)
    return block ^ noise.reshape(block.shape)


def _noise() -> Iterator[int]:
    """Low bits of the linear congruential generator of Numerical Recipes, from zero, mod 255."""
    state = 0
    while True:
        state = (1664525 * state + 1013904223) % 2**32
        yield state % 255 & 15
