"""`--compile`: the same results up to rounding, from compiled blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from pinxit.cli import main
from pinxit.errors import ModelError
from pinxit.models.model import Model
from pinxit.models.open_base import compile_denoiser, open_base
from pinxit.runs.reader import read_run


@pytest.mark.long
@pytest.mark.usefixtures("every_trial")  # a trial must not keep blocks from being compiled
def test_compiled_blocks_give_the_same_results(nano: Path, pictures: Path, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    images: list[np.ndarray] = []
    for flags in ((), ("--compile",)):
        run = tmp_path / f"run{len(flags)}"
        words = ["--token", "<my>", "--class-noun", "toy", "--base", str(nano), "--rank", "2"]
        words += ["--steps", "3", "--preview-every", "0", "--class-images", "0", "--out", str(run)]
        assert main(["train", "lora", str(pictures), *words, *flags]) == 0
        losses.append([step.loss for step in read_run(run).steps])
        out = str(run / "image.png")
        words = ["--concept", str(run), "--base", str(nano), "--steps", "2", "--num-images", "1"]
        assert main(["generate", "a photo of <my>", *words, "--out", out, *flags]) == 0
        images.append(np.asarray(Image.open(out), dtype=float))
    assert counters["stats"]["unique_graphs"] >= 2
    assert np.allclose(losses[0], losses[1], rtol=1e-5, atol=0)
    assert np.abs(images[0] - images[1]).max() <= 1


def test_what_cannot_be_compiled_is_an_error(
    model: Model, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_base(nano)
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 8)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ModelError, match="there is no C"):
        compile_denoiser(other)
    monkeypatch.setattr(type(other.networks["denoiser"]), "_repeated_blocks", None)
    with pytest.raises(ModelError, match="no blocks to compile"):
        compile_denoiser(model)


@pytest.mark.long
def test_cuda_graphs_give_the_same_images(nano: Path, tmp_path: Path) -> None:
    """Without a CUDA device, the denoiser is compiled as one graph and nothing is replayed."""
    counters.clear()
    images: list[np.ndarray] = []
    for flags in ((), ("--cuda-graphs",)):
        out = tmp_path / f"{len(flags)}.png"
        words = ["--base", str(nano), "--steps", "2", "--num-images", "1", "--out", str(out)]
        assert main(["generate", "a photo of a dog", *words, *flags]) == 0
        images.append(np.asarray(Image.open(out), dtype=float))
    assert counters["stats"]["unique_graphs"] >= 1
    assert np.abs(images[0] - images[1]).max() <= 1
