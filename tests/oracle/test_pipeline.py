"""diffusers' pipelines as reference: same weights, prompt, noise and scheduler, same latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.generation.schedulers import _CLASSES
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training.batches import Batch
from pinxit.training.train import denoising_losses

SCHEDULERS = _CLASSES["diffusion"]
PROMPT = "a photo of a red dog on the beach"
GUIDANCE = 5.0
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pipeline(nano: Path) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(nano, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(seeds: tuple[int, ...]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def expected(pipeline: Any, scheduler: str, seeds: tuple[int, ...], **changes: Any) -> torch.Tensor:
    kind = getattr(diffusers, SCHEDULERS[scheduler])
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    arguments: dict[str, Any] = {
        "prompt": [PROMPT] * len(seeds),
        "negative_prompt": ["a clean cat"] * len(seeds),
        "guidance_scale": GUIDANCE,
        "num_inference_steps": 12,
        "generator": generators(seeds),
        "output_type": "latent",
    }
    return pipeline(**{**arguments, **changes}).images


def actual(model: Model, scheduler: str, seeds: tuple[int, ...], **changes: Any) -> torch.Tensor:
    request = GenerationRequest(
        prompt=PROMPT,
        negative_prompt="a clean cat",
        guidance_scale=GUIDANCE,
        steps=12,
        scheduler=scheduler,
        seed=seeds[0],
        num_images=len(seeds),
    )
    images = generate_images(model, request.model_copy(update=changes))
    return torch.stack([image.latents for image in images])


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


FAST = ("ddim", "dpm++", "euler-a")
OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in SCHEDULERS if name not in FAST]


@pytest.mark.parametrize("scheduler", [*FAST, *OTHERS])
def test_latents_equal_the_pipelines(model: Model, pipeline: Any, scheduler: str) -> None:
    seeds = (3, 4)
    latents = actual(model, scheduler, seeds)
    assert relative_error(latents, expected(pipeline, scheduler, seeds)) <= TOLERANCE
    # The comparison detects 10% more guidance, or one changed word.
    assert (
        relative_error(latents, expected(pipeline, scheduler, seeds, guidance_scale=1.1 * GUIDANCE))
        > TOLERANCE
    )
    other = [PROMPT.replace("red", "blue")] * 2
    assert relative_error(latents, expected(pipeline, scheduler, seeds, prompt=other)) > TOLERANCE


def test_without_guidance(model: Model, pipeline: Any) -> None:
    latents = actual(model, "ddim", (7,), guidance_scale=1.0)
    assert (
        relative_error(latents, expected(pipeline, "ddim", (7,), guidance_scale=1.0)) <= TOLERANCE
    )


@pytest.mark.parametrize("scheduler", FAST)
def test_image_to_image(model: Model, tmp_path: Path, scheduler: str, pipeline: Any) -> None:
    file = tmp_path / "start.png"
    gradient = torch.linspace(0, 255, 32).repeat(32, 1).byte().numpy()
    Image.fromarray(gradient).convert("RGB").save(file)
    image_to_image = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components)
    image_to_image.set_progress_bar_config(disable=True)
    pixels = to_pixels(Image.open(file), 32, 32)
    image = (pixels.repeat(2, 1, 1, 1) + 1) / 2
    latents = expected(image_to_image, scheduler, (3, 4), image=image, strength=0.6)
    assert (
        relative_error(
            actual(model, scheduler, (3, 4), init_image=file, denoising_strength=0.6), latents
        )
        <= TOLERANCE
    )
    assert (
        relative_error(
            actual(model, scheduler, (3, 4), init_image=file, denoising_strength=0.7), latents
        )
        > TOLERANCE
    )


def test_conditioning_equals_the_pipelines(model: Model, pipeline: Any) -> None:
    for prompt in ("", PROMPT, "a zebra, half-known (and spelt)", " ".join(["a red dog"] * 30)):
        states, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        assert relative_error(model.condition([prompt]).states, states) <= 1e-5
    other, _ = pipeline.encode_prompt(PROMPT.replace("red", "blue"), "cpu", 1, False)
    assert relative_error(model.condition([PROMPT]).states, other) > 1e-5


def test_pixels_equal_the_pipelines(model: Model, pipeline: Any) -> None:
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert relative_error(model.decode(latents), decoded) <= TOLERANCE
    pixels = decoded.clamp(-1, 1)
    encoded = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert relative_error(model.encode(pixels).mean, encoded) <= TOLERANCE


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_equals_the_one_computed_with_diffusers(
    nano: Path, pipeline: Any, prediction: str, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', f'"{prediction}"'))
    model = open_base(base)
    scheduler = diffusers.DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 3, 16, 4, 4, generator=generator)
    timesteps = torch.tensor([3, 500, 998])
    weights = torch.tensor([1.0, 0.5, 0.0])
    prompts = (PROMPT, "a toy", "")
    batch = Batch(latents, noise, timesteps, weights, torch.zeros(3, dtype=torch.long), prompts)

    noisy = scheduler.add_noise(latents, noise, timesteps)
    states = torch.cat([pipeline.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])
    prediction_output = pipeline.unet(noisy, timesteps, states).sample
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    target = noise if prediction == "epsilon" else velocity
    losses = torch.nn.functional.mse_loss(prediction_output, target, reduction="none").mean(
        (1, 2, 3)
    )
    assert relative_error(denoising_losses(model, batch, model.condition), losses * weights) <= 1e-5
