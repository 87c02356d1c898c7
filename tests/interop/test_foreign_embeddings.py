"""Embeddings of other programs: several words, one text encoder of two, outputs, number formats."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pinxit.adapters.adapter import applied
from pinxit.cli import main
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError
from pinxit.models.model import Model

DRAW = torch.Generator().manual_seed(2)
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
FLOATS += [torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def table(model: Model, encoder: str, count: int = 2) -> Tensor:
    return torch.randn(count, model.text_encoders[encoder].width, generator=DRAW)


def states(model: Model, prompt: str, file: Path | None = None) -> Tensor:
    """What the denoiser sees of a prompt."""
    adapters = read_concept(file).adapters(model) if file else ()
    with torch.no_grad(), applied(model, adapters):
        return model.condition([prompt]).states


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_several_words_in_one_file(opened: Callable[[str], Model], tmp_path: Path) -> None:
    model = opened("stable-diffusion-1")
    for suffix in (".safetensors", ".bin"):
        tensors = {name: table(model, "text", n) for n, name in enumerate(("<a>", "<b>", "c.d"), 1)}
        file = tmp_path / f"words{suffix}"
        torch.save(tensors, file) if suffix == ".bin" else save(file, tensors)
        assert read_concept(file).tokens == sorted(tensors) or set(
            read_concept(file).tokens
        ) == set(tensors)
        for token, vectors in tensors.items():
            alone = save(tmp_path / "x.safetensors", {"emb_params": vectors})
            both = states(model, f"a photo of {token}", file)
            assert torch.equal(both, states(model, "a photo of x", alone))
            assert not torch.equal(both, states(model, f"a photo of {token}"))


@pytest.mark.parametrize("encoder", ["text", "text_2"])
def test_vectors_for_one_of_two_text_encoders(
    encoder: str, opened: Callable[[str], Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = opened("stable-diffusion-xl")
    key = {"text": "clip_l", "text_2": "clip_g"}[encoder]
    file = save(tmp_path / "x.safetensors", {key: table(model, encoder)})
    with_word, plain = states(model, "a photo of x", file), states(model, "a photo of")
    split = model.text_encoders["text"].width
    own, other = (slice(None, split), slice(split, None))[:: 1 if encoder == "text" else -1]
    assert not torch.equal(with_word[..., own], plain[..., own])
    assert torch.equal(with_word[..., other], plain[..., other])  # there it stands for nothing
    assert main(["inspect", str(file)]) == 0
    wide = save(tmp_path / "wide.safetensors", {key: torch.ones(2, 999)})
    with pytest.raises(ConceptError, match="are 999 wide"):
        read_concept(wide).adapters(model)
    real = save(tmp_path / "real.safetensors", {"clip_g": torch.ones(2, 1280)})
    capsys.readouterr()
    assert main(["inspect", str(real)]) == 0
    assert "; the token stands for nothing in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "keys", [("emp_params_out",), ("clip_l_out",), ("clip_g_out",), ("clip_l_out", "clip_g_out")]
)
def test_output_embeddings_are_named(keys: tuple[str, ...], tmp_path: Path) -> None:
    file = save(tmp_path / "x.safetensors", {key: torch.ones(2, 768) for key in keys})
    with pytest.raises(ConceptError, match="output embedding of OneTrainer"):
        read_concept(file)
    assert main(["inspect", str(file)]) == 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_output_vectors_beside_the_input(
    count: int, opened: Callable[[str], Model], tmp_path: Path
) -> None:
    model = opened("stable-diffusion-1")
    vectors, output = table(model, "text"), table(model, "text", count)
    both = save(tmp_path / "x.safetensors", {"emp_params": vectors, "emp_params_out": output})
    (part,) = read_concept(both).parts
    assert torch.equal(part.tensors["text"], vectors)
    assert torch.equal(part.tensors["text.out"], output)
    alone = save(tmp_path / "y.safetensors", {"emp_params": vectors})
    expected = states(model, "a photo of y", alone)
    assert torch.equal(states(model, "a photo of x", both), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_number_formats(dtype: torch.dtype, opened: Callable[[str], Model], tmp_path: Path) -> None:
    for family, keys in (
        ("stable-diffusion-1", ("emb_params",)),
        ("stable-diffusion-xl", ("clip_l", "clip_g")),
    ):
        model = opened(family)
        names = dict(zip(keys, model.text_encoders, strict=True))
        tables = {key: table(model, name).to(dtype) for key, name in names.items()}
        file = save(tmp_path / "x.safetensors", tables)
        full = save(tmp_path / "y.safetensors", {key: t.float() for key, t in tables.items()})
        expected = states(model, "a photo of y", full)
        assert torch.equal(states(model, "a photo of x", file), expected)
        assert main(["inspect", str(file)]) == 0
        again = tmp_path / f"again{len(keys)}.safetensors"
        assert main(["convert", str(file), str(again)]) == 0
        assert torch.equal(states(model, "a photo of x", again), expected)
