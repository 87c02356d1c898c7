"""The log of a run as an event file of TensorBoard: losses, scores and previews. Without torch."""

import struct
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from pinxit.files.atomic_write import make_folder, write_bytes
from pinxit.images.decode import UnreadableError, open_image
from pinxit.runs.events import PreviewScores
from pinxit.runs.reader import RunState

_MASK_DELTA = 0xA282EAD8  # of the checksums in such files
_MAX_VARINT_BYTE = 0x80


def write_event_file(state: RunState, folder: Path) -> Path:
    """Write the log of a run to the event file in a folder, or replace it; returns the file."""
    make_folder(folder)
    # TensorBoard finds files by the word `tfevents`.
    file = folder / "events.out.tfevents.0000000000.pinxit"
    records = [_event(0, _bytes_field(3, b"brain.Event:2"))]
    records += [_event(step, _bytes_field(5, value)) for step, value in _values(state)]
    write_bytes(file, map(_record, records))
    return file


def _values(state: RunState) -> Iterator[tuple[int, bytes]]:
    """The step of each value, and the value as a summary."""
    for step in state.steps:
        yield step.number, _scalar("train/loss", step.loss)
        yield step.number, _scalar("train/learning_rate", step.learning_rate)
        yield step.number, _scalar("train/gradient_norm", max(step.norms))
        yield step.number, _scalar("train/seconds", step.seconds)
    for number, loss in state.validation_losses.items():
        yield number, _scalar("validation/loss", loss)
    for scores in state.of_kind(PreviewScores):
        values = {"likeness": scores.likeness, "prompts": scores.prompt, "score": scores.score}
        for name, value in values.items():
            if value is not None:
                yield scores.step, _scalar(f"previews/{name}", value)
    for number, path in state.previews.items():
        try:
            with open_image(path) as image:
                yield number, _image("previews/images", image)
        except UnreadableError:  # removed by the user
            continue


def _scalar(tag: str, value: float) -> bytes:
    # Field 1 of a summary is a value: its field 1 is the tag, 2 the number, 4 an image.
    number = _key(2, 5) + struct.pack("<f", value)
    return _bytes_field(1, _bytes_field(1, tag.encode()) + number)


def _image(tag: str, image: Image.Image) -> bytes:
    encoded = BytesIO()
    image.convert("RGB").save(encoded, "PNG")
    sizes = ((1, image.height), (2, image.width), (3, 3))
    fields = b"".join(_key(field, 0) + _varint(size) for field, size in sizes)
    content = fields + _bytes_field(4, encoded.getvalue())
    return _bytes_field(1, _bytes_field(1, tag.encode()) + _bytes_field(4, content))


def _event(step: int, content: bytes) -> bytes:
    """An event without a time: field 1 is its time, 2 the step."""
    return _key(1, 1) + struct.pack("<d", 0.0) + _key(2, 0) + _varint(step) + content


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _bytes_field(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """A number as Protocol Buffers write it: 7 bits in a byte, the lowest first."""
    encoded = bytearray()
    while number >= _MAX_VARINT_BYTE:
        encoded.append(number & 0x7F | _MAX_VARINT_BYTE)
        number >>= 7
    return bytes([*encoded, number])


def _record(data: bytes) -> bytes:
    """A record of a TFRecord file: length, data, and a checksum of each."""
    length = struct.pack("<Q", len(data))
    return length + _masked_checksum(length) + data + _masked_checksum(data)


def _masked_checksum(data: bytes) -> bytes:
    checksum = crc32c(data)
    rotated = checksum >> 15 | checksum << 17 & 0xFFFFFFFF
    return struct.pack("<I", (rotated + _MASK_DELTA) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of data."""
    table, checksum = _table(), 0xFFFFFFFF
    for byte in data:
        checksum = checksum >> 8 ^ table[(checksum ^ byte) & 0xFF]
    return checksum ^ 0xFFFFFFFF


@cache
def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [number >> 1 ^ (0x82F63B78 if number & 1 else 0) for number in table]
    return table
