"""Numbers that are infinite or NaN, in every kind of file: an error that names what holds them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pinxit.cli import main
from pinxit.errors import ModelError
from pinxit.images.folder import check_images
from pinxit.models.noise_schedule import Diffusion, Flow, TokenShift
from pinxit.models.open_base import open_base

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("stable-diffusion-3", {"shift": NAN}),
        ("stable-diffusion-3", {"shift": INF}),
        ("stable-diffusion-3", {"shift": 0}),
        ("flux-1", {"max_shift": NAN}),
        ("flux-1", {"base_shift": INF}),
        ("flux-1", {"base_image_seq_len": 4096}),
        ("z-image", {"shift": -1.0}),
        ("stable-diffusion-1", {"beta_end": NAN}),
        ("stable-diffusion-1", {"beta_start": 2.0}),
        ("stable-diffusion-1", {"beta_start": -INF}),
        ("stable-diffusion-1", {"trained_betas": [NAN] * 1000}),
    ],
)
def test_numbers_of_a_scheduler(
    family: str,
    changes: dict[str, object],
    bases: Callable[[str], Path],
    copied: Callable[[Path], Path],
) -> None:
    folder = copied(bases(family))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match=r"scheduler is invalid|cannot be opened"):
        open_base(folder)


def test_schedules_of_valid_numbers() -> None:
    Flow(3.0)
    Flow(TokenShift(1e-4, 0.5, 2))
    Diffusion(torch.tensor([0.9, 0.0]))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["lora_down.weight", "lora_up.weight", "scalar", "dora_scale"])
def test_tools_do_not_compute_with_a_lora(
    name: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {"lora_down.weight": torch.ones(2, 16), "lora_up.weight": torch.ones(16, 2)}
    tensors[name] = torch.full_like(
        tensors.get(name, torch.ones(16 if "dora" in name else 1)), value
    )
    file, out = tmp_path / "x.safetensors", str(tmp_path / "out.safetensors")
    save_file({f"{layer}.{key}": tensor for key, tensor in tensors.items()}, file)
    for command in (
        ["convert", str(file), out],
        ["lora", "merge", str(file), str(file), "--out", out],
        ["lora", "resize", str(file), "--rank", "1", "--out", out],
        ["lora", "fuse", str(file), "--base", "none", "--out", out],
    ):
        assert main(command) == 2
        assert "are infinite or NaN, in the part `denoiser." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_training_names_weights_of_the_base_model(
    part: str,
    nano: Path,
    pictures: Path,
    copied: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(nano)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    names = (name for name in weights if not name.startswith("decoder."))
    name = next(name for name in names if name.endswith(("conv_in.weight", "fc1.weight")))
    weights[name].view(-1)[0] = NAN
    save_file(weights, file)
    subject = [str(pictures), "--token", "<t>", "--class-noun", "toy", "--base", str(folder)]
    sizes = ["--steps", "2", "--preview-every", "0", "--out", str(tmp_path / "run")]
    assert main(["train", "textual-inversion", *subject, *sizes]) == 2
    error = capsys.readouterr().err
    assert f"weights are infinite or NaN: `{name}` of the " in error
    assert "hint: the base model is damaged" in error


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_pixels_of_an_image(value: float, tmp_path: Path) -> None:
    pixels = np.full((8, 8), 0.5, dtype=np.float32)
    Image.fromarray(pixels).save(tmp_path / "right.tif")
    pixels[2, 3] = value
    Image.fromarray(pixels).save(tmp_path / "wrong.tif")
    right, wrong = check_images(tmp_path)
    assert right.image
    assert wrong.rejected
    assert wrong.notes == ("has pixels that are infinite or NaN",)
