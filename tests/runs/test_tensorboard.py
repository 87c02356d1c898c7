"""Event files for TensorBoard, read by the rules of the formats: TFRecord and Protocol Buffers."""

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from pinxit.cli import main
from pinxit.models.model import Model
from pinxit.runs.reader import read_run
from pinxit.runs.run import train_run
from pinxit.runs.tensorboard import crc32c
from pinxit.training.recipe import Recipe

Fields = list[tuple[int, "int | bytes"]]


def records(data: bytes) -> Iterator[bytes]:
    while data:
        length = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + length]
        data = data[16 + length :]


def number_at(data: bytes) -> tuple[int, bytes]:
    number = shift = 0
    for count, byte in enumerate(data, 1):
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, data[count:]
    raise AssertionError("a number without an end")


def fields(data: bytes) -> Fields:
    content: Fields = []
    while data:
        key, data = number_at(data)
        if key & 7 == 0:
            value, data = number_at(data)
        else:
            size, data = number_at(data) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], data)
            value, data = data[:size], data[size:]
        content.append((key >> 3, value))
    return content


def content(data: bytes) -> bytes:
    """The first field of a message that holds bytes and is not its name."""
    return next(v for _, v in fields(data) if isinstance(v, bytes))


def test_the_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the definition


def test_a_run_is_written_with_scalars_and_images(
    model: Model, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"images": pictures, "token": "<my>", "class_noun": "toy", "base": model.name}
    method = {"method": "textual-inversion", "steps": 3, "preview_every": 3, "early_stop": 0.01}
    recipe = Recipe.model_validate({**options, **method, "validate_every": 1})
    run = train_run(model, recipe, tmp_path / "runs" / "toys" / "one")
    out = tmp_path / "logs"
    for _ in range(2):  # a second call replaces the files
        assert main(["tensorboard", str(tmp_path / "runs"), "--out", str(out)]) == 0
    (line, _) = capsys.readouterr().out.splitlines()
    assert Path(line).parent == out / "toys" / "one"
    first, *events = map(fields, records(Path(line).read_bytes()))
    assert (3, b"brain.Event:2") in first
    values: dict[str, dict[int, object]] = {}
    for event in events:
        (summary,) = (value for number, value in event if number == 5)
        assert isinstance(summary, bytes)
        parts = dict(fields(content(summary)))
        tag, step = parts[1], dict(event)[2]
        assert isinstance(tag, bytes) and isinstance(step, int)
        values.setdefault(tag.decode(), {})[step] = parts.get(2, parts.get(4))
    state = read_run(run.folder)
    losses = {step.number: struct.pack("<f", step.loss) for step in state.steps}
    assert values["train/loss"] == losses
    assert values["validation/loss"].keys() == state.validation_losses.keys() != set()
    (image,) = values["previews/images"].values()
    assert isinstance(image, bytes)
    opened = Image.open(BytesIO(dict(fields(image))[4]))  # pyright: ignore[reportArgumentType]
    assert opened.size == Image.open(state.previews[3]).size
    assert main(["tensorboard", str(pictures), "--out", str(out)]) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text.txt").touch()
    assert main(["tensorboard", str(tmp_path / "runs"), "--out", str(tmp_path / "mine")]) == 2
