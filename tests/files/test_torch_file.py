"""PyTorch files are read exactly as torch reads them, without running code in them."""

import gc
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pinxit.errors import FileError
from pinxit.files.pickle.torch_file import is_pickle, read_torch_file

SOURCE = Path(__file__).parents[2] / "src" / "pinxit"
SEED = Path(__file__).parents[3] / "shared" / "seed" / "embeddings"
LAYOUTS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "zip, protocol 4": {"pickle_protocol": 4},
    "legacy, protocol 5": {"_use_new_zipfile_serialization": False, "pickle_protocol": 5},
}
TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool),
)

Save = Any


@pytest.fixture(params=LAYOUTS)
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Save:
    def saved(value: object) -> Path:
        path = tmp_path / "file.pt"
        torch.save(value, path, **LAYOUTS[request.param])
        return path

    return saved


def same(read: object, saved: object) -> bool:
    """Whether two values are equal to the last bit, and the one read has plain types."""
    if isinstance(saved, Tensor):
        assert type(read) is Tensor
        assert not read.requires_grad
        assert (read.dtype, read.shape, read.stride()) == (saved.dtype, saved.shape, saved.stride())
        plain = [
            part.detach().contiguous().clone().reshape(-1).view(torch.uint8)
            for part in (read, saved)
        ]
        return torch.equal(*plain)
    if isinstance(saved, dict):
        assert type(read) is dict
        return list(read) == list(saved) and all(same(read[key], saved[key]) for key in saved)
    if isinstance(saved, list | tuple):
        return len(read) == len(saved) and all(map(same, read, saved))
    return type(read) is type(saved) and read == saved


def test_containers_and_numbers(save: Save) -> None:
    value = {
        "text": "ein Bär 熊",
        "numbers": [0, 255, 256, -1, 2**31, -(2**62), 1.5, True, False, None],
        "deep": {1: ({"two": (3, [4, (5, 6, 7, 8)])},)},
        "bytes": b"\x00\xff" * 200,
        "empty": [(), [], {}, "", OrderedDict()],
        "long": "x" * 70_000,
        "many": list(range(3000)),
    }
    assert same(read_torch_file(save(value)), value)


def test_state_dict_of_a_real_network(save: Save) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4))
    value = {"state_dict": network.state_dict(), "global_step": 470_000}
    read = read_torch_file(save(value))
    assert same(read, value)
    network.load_state_dict(read["state_dict"])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types(save: Save, dtype: torch.dtype) -> None:
    value = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    assert same(read_torch_file(save(value)), value)


def test_shapes_and_views(save: Save) -> None:
    whole = torch.randn(6, 8)
    value = {
        "whole": whole,
        "transposed": whole.t(),
        "corner": whole[2:5, 1::2],
        "row": whole[3],
        "one": whole[1, 1],
        "none": torch.empty(0, 768),
        "scalar": torch.tensor(265),
        "last": nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).weight.detach(),
    }
    read = read_torch_file(save(value))
    assert same(read, value)
    read["whole"][2, 1] = 7.0  # storages are still shared
    assert read["corner"][0, 0] == 7.0


def test_writing_to_a_tensor_does_not_change_the_file(save: Save) -> None:
    path = save(torch.zeros(64))
    before = path.read_bytes()
    read_torch_file(path).fill_(1.0)
    assert path.read_bytes() == before
    assert read_torch_file(path).sum() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mapped files")
def test_mapped_memory_is_freed_with_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(torch.zeros(1000), path)
    gc.disable()
    try:
        read = read_torch_file(path)
        assert str(path) in Path("/proc/self/maps").read_text()
        del read
        assert str(path) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()


def test_parameters_are_plain_tensors(save: Save) -> None:
    marked = nn.Parameter(torch.randn(2))
    marked.note = "not saved"
    value = {"plain": nn.Parameter(torch.randn(3)), "marked": marked}
    assert same(read_torch_file(save(value)), value)


def test_embedding_as_compvis_writes_it(save: Save) -> None:
    vectors = {"*": torch.randn(2, 768), "cat": torch.randn(1, 768)}
    parameters = nn.ParameterDict({key: nn.Parameter(value) for key, value in vectors.items()})
    tokens = {key: torch.tensor(265) for key in vectors}
    path = save({"string_to_token": tokens, "string_to_param": parameters})
    assert same(read_torch_file(path), {"string_to_token": tokens, "string_to_param": vectors})


def test_states_of_optimizers_and_lightning(save: Save) -> None:
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 2), "max": None}
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1]}
    states = {"state": {0: moments, 1: moments}, "param_groups": [group]}
    value = {"optimizer_states": [states], "lr": float("inf"), "set": {1}}
    extra = {"score": np.float64(0.25), "best": np.float32(0.5), "step": np.int64(7)}
    read = read_torch_file(save({**value, **extra}))
    assert same(read["optimizer_states"], value["optimizer_states"])
    assert (read["score"], read["best"], read["step"], read["set"]) == (0.25, 0.5, 7, [1])


def test_names_of_lightning_stay_names(tmp_path: Path) -> None:
    name = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    path = tmp_path / "sd.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "archive/data.pkl", b"\x80\x02}X\x09\x00\x00\x00callbacks}" + name + b"}ss."
        )
    read = read_torch_file(path)
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert read == {"callbacks": {name: {}}}


def test_repacked_archives_and_the_zip64_layout(tmp_path: Path) -> None:
    weights = {"a": torch.randn(5), "b": torch.randn(3).half()}
    path, again = tmp_path / "x.pt", tmp_path / "y.pt"
    torch.save(weights, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))  # no longer aligned to 64 bytes
    assert same(read_torch_file(again), weights)
    whole = again.read_bytes()
    at = whole.index(b"PK\1\2")
    lines, end = whole[at : whole.rindex(b"PK\5\6")], whole[whole.rindex(b"PK\5\6") :]
    wide = b"".join(
        line[:20]
        + b"\xff" * 8
        + line[28:30]
        + b"\x1c\0"
        + line[32:42]
        + b"\xff" * 4
        + line[46:]
        + struct.pack("<HHQQQ", 1, 24, *struct.unpack("<II", line[20:28])[::-1], place)
        for line, place in (
            (b"PK\1\2" + rest, int.from_bytes(rest[38:42], "little"))
            for rest in lines.split(b"PK\1\2")[1:]
        )
    )
    count = int.from_bytes(end[10:12], "little")
    last = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(wide), at)
    last += struct.pack("<4sIQI", b"PK\6\7", 0, at + len(wide), 1)
    again.write_bytes(whole[:at] + wide + last + end[:10] + b"\xff" * 10 + b"\0\0")
    assert same(read_torch_file(again), weights)


@pytest.mark.skipif(not SEED.exists(), reason="the embeddings are not available")
@pytest.mark.parametrize(("name", "vectors"), [("shifu", 5), ("hestia", 1)])
def test_embeddings_of_a1111(name: str, vectors: int) -> None:
    path = SEED / f"{name}.pt"
    read = read_torch_file(path)
    assert read["string_to_param"]["*"].shape == (vectors, 768)
    assert same(read, torch.load(path, map_location="cpu", weights_only=True))


def test_files_are_recognized_by_their_content(save: Save, tmp_path: Path) -> None:
    path = save({"a": torch.ones(3)})
    for name in ("x.safetensors", "x.png", "x"):
        renamed = tmp_path / name
        renamed.write_bytes(path.read_bytes())
        assert is_pickle(renamed)


def test_other_files_are_not_recognized_as_pickles(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    header = b"{}".ljust(0x280)
    others = (b"", b"\x80", b"PK\3\4 no such thing", b"\x89PNG\r\n", b"{}", pickle.dumps(1, 0))
    for content in (*others, len(header).to_bytes(8, "little") + header):
        path.write_bytes(content)
        assert not is_pickle(path)
    assert not is_pickle(tmp_path)
    assert not is_pickle(tmp_path / "absent")


def test_an_error_contains_the_name_and_the_position(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"weights": torch.ones(1), "f": print}, path)
    with pytest.raises(FileError, match=r"x\.pt .*names '_*builtin\w*\.print'.*byte \d+") as caught:
        read_torch_file(path)
    assert "no code in it was run" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x80\x02K\x01.", b"7z\xbc\xaf\x27\x1c"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(FileError):
        read_torch_file(path)


@pytest.mark.parametrize("name", ["absent.pt", "."])
def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="does not exist or is empty"):
        read_torch_file(tmp_path / name)


def test_a_file_cut_off_anywhere_is_refused(save: Save) -> None:
    path = save({"a": torch.randn(40), "b": [1, 2, "three"]})
    whole = path.read_bytes()
    for length in range(0, len(whole), 41):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError):
            read_torch_file(path)


def test_no_module_of_pinxit_unpickles() -> None:
    forbidden = re.compile(
        r"(?<!pinxit\.files\.)\bpickle\.|"
        r"\bimport (c?[pP]ickle|dill|joblib|shelve|marshal|pickletools)\b"
        r"|from (pickle|pickletools|marshal|shelve) |torch\.load\b|weights_only|allow_pickle=True"
        r"|\beval\(|\bexec\(|__import__"
    )
    for file in SOURCE.rglob("*.py"):
        match = forbidden.search(re.sub(r"\.eval\(", "", file.read_text(encoding="utf-8")))
        assert not match, f"{file}: {match}"
