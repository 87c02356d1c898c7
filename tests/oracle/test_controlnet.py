"""diffusers' ControlNet pipeline as reference: the same weights and noise give the same latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.model import Model

TOLERANCE = 1e-4
PROMPT = "a red dog"


def test_latents_equal_the_pipelines(
    bases: Callable[[str], Path], opened: Callable[[str], Model], tmp_path: Path
) -> None:
    folder, model = bases("stable-diffusion-1"), opened("stable-diffusion-1")
    torch.manual_seed(5)
    unet: Any = model.networks["denoiser"]
    net = diffusers.ControlNetModel.from_unet(unet)
    for name, weight in net.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(weight, std=0.1)
    net.save_pretrained(tmp_path / "net")
    image = Image.radial_gradient("L").resize((32, 32)).convert("RGB")
    image.save(tmp_path / "depth.png")
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        folder, controlnet=net, safety_checker=None
    )
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def expected(scale: float) -> torch.Tensor:
        return pipe(
            PROMPT,
            image=image,
            num_inference_steps=6,
            guidance_scale=4.0,
            controlnet_conditioning_scale=scale,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        ).images[0]

    def actual(weights: Path) -> torch.Tensor:
        control = {"name": "controlnet", "image": tmp_path / "depth.png", "weights": str(weights)}
        options = {
            "prompt": PROMPT,
            "steps": 6,
            "guidance_scale": 4.0,
            "seed": 3,
            "controls": [control],
        }
        return generate_images(
            model, GenerationRequest.model_validate({**options, "scheduler": "ddim"})
        )[0].latents

    latents = actual(tmp_path / "net")
    assert relative_error(latents, expected(1.0)) <= TOLERANCE
    # The comparison detects a 10% smaller scale, and a missing ControlNet.
    assert relative_error(latents, expected(0.9)) > TOLERANCE
    assert relative_error(latents, expected(0.0)) > 100 * TOLERANCE
    (file,) = (tmp_path / "net").glob("*.safetensors")
    single_file = file.rename(tmp_path / "single.safetensors")
    assert torch.equal(actual(single_file), latents)
    assert torch.equal(*map(actual, with_and_without_scales(single_file)))


def with_and_without_scales(file: Path) -> tuple[Path, Path]:
    """The weights of a file in 8 bits with a scale each, and the same values as numbers."""
    stored = load_file(file)
    plain = dict(stored)
    for name, weight in plain.items():
        if weight.ndim > 1:
            scale = weight.abs().max().clamp(min=1e-4) / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "scale_weight")] = scale
            plain[name] = (stored[name].float() * scale).bfloat16()
    save_file(stored, file.with_name("scales.safetensors"))
    save_file(plain, file.with_name("plain.safetensors"))
    return file.with_name("scales.safetensors"), file.with_name("plain.safetensors")


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_weights_of_another_family_raise_an_error(
    opened: Callable[[str], Model], tmp_path: Path
) -> None:
    from pinxit.errors import PinxitError

    model = opened("stable-diffusion-1")
    other: Any = opened("stable-diffusion-xl").networks["denoiser"]
    diffusers.ControlNetModel.from_unet(other).save_pretrained(tmp_path / "net")
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    weights = str(tmp_path / "net")
    control = {"name": "controlnet", "image": tmp_path / "p.png", "weights": weights}
    with pytest.raises(PinxitError, match="does not fit"):
        generate_images(
            model, GenerationRequest.model_validate({"prompt": "a dog", "controls": [control]})
        )
