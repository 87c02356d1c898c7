"""Encoded images and prompts on disk: the same bits, read once, verified, limited in size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pinxit import registry
from pinxit.models import latent_model
from pinxit.models.loading import reload_weights
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.progress import Notice
from pinxit.runs.run import Run
from pinxit.training import encoding_cache
from pinxit.training.encoding_cache import encodings_folder
from pinxit.training.recipe import Recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PINXIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images that differ from their mirror images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((40 + number, 48), 60).save(folder / f"{number}.png")
    return folder


def trained(
    model: Model, pictures: Path, folder: Path, *, cached: bool, **options: Any
) -> tuple[list[float], list[str]]:
    """The losses of a run and its notices."""
    subject = {"images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    settings = {"steps": 3, "batch_size": 2, "preview_every": 0, "base": model.name}
    method = {"name": "lora", "placeholder": "rare-token", "class_images": 0}
    values = {"method": method, **subject, **settings, **options}
    run = Run.create(folder, Recipe.model_validate({**values, "cache_encodings": cached}))
    notices = [event.message for event in run.train(model) if isinstance(event, Notice)]
    return [step.loss for step in run.state.steps], notices


@pytest.mark.long
@pytest.mark.parametrize("family", registry.names("families"))
def test_a_second_run_encodes_nothing_and_has_the_same_bits(
    opened: Callable[[str], Model],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    model = opened(family)
    plain, _ = trained(model, pictures, tmp_path / "plain", cached=False)
    assert not encodings_folder().exists()
    first, notices = trained(model, pictures, tmp_path / "first", cached=True)
    assert not [one for one in notices if "cache" in one]

    def encodes(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(type(model), "encode", encodes)
    monkeypatch.setattr(type(model), "condition", encodes)
    second, notices = trained(model, pictures, tmp_path / "second", cached=True)
    assert [one for one in notices if "were read from the cache" in one]
    assert plain == first == second


@pytest.mark.parametrize("family", ["stable-diffusion-3", "z-image"])
def test_a_second_run_reads_no_encoder(
    bases: Callable[[str], Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    read: list[str] = []

    def reload(network: Any, source: Any, part: str) -> None:
        read.append(part)
        reload_weights(network, source, part)

    monkeypatch.setattr(latent_model, "reload_weights", reload)
    first, _ = trained(open_base(bases(family)), pictures, tmp_path / "first", cached=True)
    assert {"text_encoder", "vae"} <= set(read)
    read.clear()
    second, _ = trained(open_base(bases(family)), pictures, tmp_path / "second", cached=True)
    assert not read
    assert first == second


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", ["stable-diffusion-1", "z-image"])
def test_a_large_denoiser_is_never_in_memory_with_text_encoders(
    bases: Callable[[str], Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    cached: bool,
) -> None:
    """Neither is read before the other has left memory, and the losses are equal to the bit."""
    model = open_base(bases(family))
    usual, _ = trained(model, pictures, tmp_path / "usual", cached=False)
    model.offload()
    denoiser = model.all_networks["denoiser"]
    encoders = [one for name, one in model.all_networks.items() if name not in ("denoiser", "vae")]
    readings: list[nn.Module] = []

    def read(network: nn.Module, *arguments: Any) -> None:
        others = [denoiser] if network is not denoiser else encoders
        assert not any(weight.numel() for one in others for weight in one.parameters())
        readings.append(network)
        reload_weights(network, *arguments)

    monkeypatch.setattr(latent_model, "reload_weights", read)
    monkeypatch.setattr(encoding_cache, "SMALL", 0)
    first, _ = trained(model, pictures, tmp_path / "first", cached=cached)
    assert first == usual
    assert all(one in readings for one in (denoiser, *encoders))


@pytest.mark.long
def test_damaged_files_are_written_again(model: Model, pictures: Path, tmp_path: Path) -> None:
    first, _ = trained(model, pictures, tmp_path / "first", cached=True)
    files = {file: file.read_bytes() for file in encodings_folder().glob("*/*.safetensors")}
    for number, (file, data) in enumerate(files.items()):
        other = tmp_path / "other.safetensors"
        save_file({"x": torch.ones(2)}, other)
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        file.write_bytes([flipped, data[: len(data) // 2], other.read_bytes()][number % 3])
    second, notices = trained(model, pictures, tmp_path / "second", cached=True)
    assert first == second
    assert not [one for one in notices if "cache" in one]
    assert {file: file.read_bytes() for file in files} == files


@pytest.mark.long
def test_another_input_has_another_file(
    model: Model, pictures: Path, tmp_path: Path, opened: Callable[[str], Model]
) -> None:
    counts: list[int] = []
    runs = [
        (model, {}),
        (model, {"resolution": 64}),
        (model, {"clip_skip": 2}),
        (opened("stable-diffusion-1"), {}),
    ]
    for number, (base, options) in enumerate(runs):
        trained(base, pictures, tmp_path / str(number), cached=True, **options)
        counts.append(len(list(encodings_folder().glob("*/*"))))
    assert counts == sorted(set(counts))


@pytest.mark.long
def test_old_files_are_deleted_above_the_limit(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(model, pictures, tmp_path / "first", cached=True)
    old = set(encodings_folder().glob("*/*"))
    monkeypatch.setattr(encoding_cache, "MAX_BYTES", 1)
    trained(model, pictures, tmp_path / "second", cached=True, resolution=64)
    new = set(encodings_folder().glob("*/*"))
    assert new - old
    assert old - new


@pytest.mark.long
def test_a_full_disk_does_not_stop_training(
    model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(model, pictures, tmp_path / "first", cached=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PINXIT_CACHE", str(tmp_path / "file"))  # no folder can be made there
    assert trained(model, pictures, tmp_path / "second", cached=True)[0] == expected


def test_an_applied_embedding_is_not_cached(model: Model, pictures: Path, tmp_path: Path) -> None:
    method = "textual-inversion"
    first, _ = trained(model, pictures, tmp_path / "first", cached=False, method=method)
    second, _ = trained(model, pictures, tmp_path / "second", cached=True, method=method)
    assert first == second
    names = {name for file in encodings_folder().glob("*/*") for name in names_in(file)}
    assert names == {"mean", "std"}  # of images; prompts are encoded in every step


def names_in(file: Path) -> set[str]:
    tensors, _ = encoding_cache.read_safetensors(file)
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    return set(tensors)
