"""Hostile safetensors headers are refused, by the library or by our own checks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pinxit.errors import FileError
from pinxit.files.safetensors_file import read_safetensors
from pinxit.files.safetensors_header import MAX_HEADER_BYTES

FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
A = json.dumps(FOUR)


def write(path: Path, header: str | bytes, data: int = 0, length: int | None = None) -> Path:
    raw = header.encode() if isinstance(header, str) else header
    length = len(raw) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + raw + bytes(data))
    return path


def test_tensors_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(2, 3).bfloat16(), "b": torch.arange(3), "none": torch.empty(0, 4)}
    save_file(tensors, path, {"modelspec.title": "熊"})
    read, metadata = read_safetensors(path)
    assert metadata == {"modelspec.title": "熊"}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


HOSTILE = {
    "empty": b"",
    "not an object": "[1]",
    "deep": "[" * 100_000,
    "deep metadata": '{"__metadata__":' + '{"a":' * 1000 + "1" + "}" * 1001,
    "metadata that is not text": '{"__metadata__":{"a":1}}',
    "metadata twice": '{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}',
    "a name twice, with a hole": f'{{"a":{A},"a":{A.replace("[0, 4]", "[4, 8]")}}}',
    "a field twice": f'{{"a":{A[:-1]},"dtype":"I32"}}}}',
    "overlap": f'{{"a":{A},"b":{A}}}',
    "beyond the end": f'{{"a":{A.replace("4]", "8]")}}}',
    "negative": f'{{"a":{A.replace("[1]", "[-1]")}}}',
    "a product over 64 bits": f'{{"a":{A.replace("[1]", "[4611686018427387904, 4]")}}}',
    "an unknown type": f'{{"a":{A.replace("F32", "O")}}}',
    "not UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused(tmp_path: Path, header: str | bytes) -> None:
    with pytest.raises(FileError, match=r"x\.safetensors cannot be read"):
        read_safetensors(write(tmp_path / "x.safetensors", header, 4))


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1, 3])
def test_a_wrong_header_length_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(FileError):
        read_safetensors(write(tmp_path / "x.safetensors", "{}", length=length))


@pytest.mark.parametrize("data", [0, 3, 5])
def test_bytes_without_a_tensor_and_tensors_without_bytes(tmp_path: Path, data: int) -> None:
    with pytest.raises(FileError):
        read_safetensors(write(tmp_path / "x.safetensors", f'{{"a":{A}}}', data))


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError):
        read_safetensors(tmp_path / name)
