"""diffusers' own pipelines as the oracle: same weights, prompt, noise, solver; same latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from pinxit.generation.generate import Request, paint
from pinxit.generation.schedulers import _CLASSES
from pinxit.images.tensors import to_pixels
from pinxit.models.model import Model, open_base
from pinxit.training.batches import Batch
from pinxit.training.train import objective

SCHEDULERS = _CLASSES["diffusion"]
PROMPT = "a photo of a red dog on the beach"
GUIDANCE = 5.0
CLOSE = 1e-4


@pytest.fixture(scope="module")
def pipeline(nano: Path) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(nano, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators(seeds: tuple[int, ...]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def theirs(pipeline: Any, scheduler: str, seeds: tuple[int, ...], **changed: Any) -> torch.Tensor:
    kind = getattr(diffusers, SCHEDULERS[scheduler])
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    asked: dict[str, Any] = {
        "prompt": [PROMPT] * len(seeds),
        "negative_prompt": ["a clean cat"] * len(seeds),
        "guidance_scale": GUIDANCE,
        "num_inference_steps": 12,
        "generator": generators(seeds),
        "output_type": "latent",
    }
    return pipeline(**{**asked, **changed}).images


def ours(model: Model, scheduler: str, seeds: tuple[int, ...], **changed: Any) -> torch.Tensor:
    asked = Request(
        prompt=PROMPT,
        negative="a clean cat",
        guidance=GUIDANCE,
        steps=12,
        scheduler=scheduler,
        seed=seeds[0],
        count=len(seeds),
    )
    painted = paint(model, asked.model_copy(update=changed))
    return torch.stack([picture.latents for picture in painted])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


QUICK = ("ddim", "dpm++", "euler-a")
REST = [pytest.param(name, marks=pytest.mark.long) for name in SCHEDULERS if name not in QUICK]


@pytest.mark.parametrize("scheduler", [*QUICK, *REST])
def test_latents_are_the_pipelines(model: Model, pipeline: Any, scheduler: str) -> None:
    seeds = (3, 4)
    mine = ours(model, scheduler, seeds)
    assert apart(mine, theirs(pipeline, scheduler, seeds)) <= CLOSE
    # The controls: the comparison is sharp enough to see a tenth more guidance, or one word.
    assert apart(mine, theirs(pipeline, scheduler, seeds, guidance_scale=1.1 * GUIDANCE)) > CLOSE
    other = [PROMPT.replace("red", "blue")] * 2
    assert apart(mine, theirs(pipeline, scheduler, seeds, prompt=other)) > CLOSE


def test_without_guidance_too(model: Model, pipeline: Any) -> None:
    mine = ours(model, "ddim", (7,), guidance=1.0)
    assert apart(mine, theirs(pipeline, "ddim", (7,), guidance_scale=1.0)) <= CLOSE


@pytest.mark.parametrize("scheduler", QUICK)
def test_from_a_picture_too(model: Model, tmp_path: Path, scheduler: str, pipeline: Any) -> None:
    picture = tmp_path / "start.png"
    gradient = torch.linspace(0, 255, 32).repeat(32, 1).byte().numpy()
    Image.fromarray(gradient).convert("RGB").save(picture)
    theirs_too = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components)
    theirs_too.set_progress_bar_config(disable=True)
    pixels = to_pixels(Image.open(picture), 32, 32)
    image = (pixels.repeat(2, 1, 1, 1) + 1) / 2
    given = theirs(theirs_too, scheduler, (3, 4), image=image, strength=0.6)
    assert apart(ours(model, scheduler, (3, 4), init=picture, strength=0.6), given) <= CLOSE
    assert apart(ours(model, scheduler, (3, 4), init=picture, strength=0.7), given) > CLOSE


def test_conditioning_is_the_pipelines(model: Model, pipeline: Any) -> None:
    for prompt in ("", PROMPT, "a zebra, half-known (and spelt)", " ".join(["a red dog"] * 30)):
        told, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        assert apart(model.condition([prompt]).states, told) <= 1e-5
    other, _ = pipeline.encode_prompt(PROMPT.replace("red", "blue"), "cpu", 1, False)
    assert apart(model.condition([PROMPT]).states, other) > 1e-5


def test_pixels_are_the_pipelines(model: Model, pipeline: Any) -> None:
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert apart(model.decode(latents), decoded) <= CLOSE
    pixels = decoded.clamp(-1, 1)
    encoded = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert apart(model.encode(pixels).mean, encoded) <= CLOSE


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_is_what_diffusers_parts_give(
    nano: Path, pipeline: Any, prediction: str, copied: Callable[[Path], Path]
) -> None:
    base = copied(nano)
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', f'"{prediction}"'))
    model = open_base(base)
    noise_maker = diffusers.DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    draw = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 3, 16, 4, 4, generator=draw)
    times = torch.tensor([3, 500, 998])
    weights = torch.tensor([1.0, 0.5, 0.0])
    prompts = (PROMPT, "a toy", "")
    batch = Batch(latents, noise, times, weights, torch.zeros(3, dtype=torch.long), prompts)

    noisy = noise_maker.add_noise(latents, noise, times)
    told = torch.cat([pipeline.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in prompts])
    answer = pipeline.unet(noisy, times, told).sample
    velocity = noise_maker.get_velocity(latents, noise, times)
    target = noise if prediction == "epsilon" else velocity
    wanted = torch.nn.functional.mse_loss(answer, target, reduction="none").mean((1, 2, 3))
    assert apart(objective(model, batch, model.condition), wanted * weights) <= 1e-5
