"""Every family against diffusers' own pipeline: what prompts mean, latents, pictures, the loss."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from pinxit import registry
from pinxit.generation.generate import Request, paint
from pinxit.generation.schedulers import _CLASSES as SCHEDULERS
from pinxit.models.model import Model, open_base
from pinxit.models.text_encoder import Reading
from pinxit.training.batches import Batch
from pinxit.training.train import objective

PROMPT = "a photo of a red dog on the beach"
OTHER = PROMPT.replace("red", "blue")
GUIDANCE = 5.0
CLOSE = 1e-4
PIPELINES = {
    "stable-diffusion-1": "StableDiffusion{}Pipeline",
    "stable-diffusion-2": "StableDiffusion{}Pipeline",
    "stable-diffusion-xl": "StableDiffusionXL{}Pipeline",
    "stable-diffusion-3": "StableDiffusion3{}Pipeline",
}
every_family = pytest.mark.parametrize("family", registry.names("families"))
Opened = Callable[[str], Model]
Pipelines = Callable[[str], Any]


@pytest.fixture(scope="module")
def pipelines(bases: Callable[[str], Path]) -> Pipelines:
    return cache(lambda family: _pipeline(family, bases(family)))


def _pipeline(family: str, folder: Path, kind: str = "", **without: None) -> Any:
    pipe = getattr(diffusers, PIPELINES[family].format(kind)).from_pretrained(folder, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def said(pipe: Any, prompt: str, **changed: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states and the pooled state of a prompt, by the pipeline."""
    more: dict[str, Any] = {"prompt_2": None} if hasattr(pipe, "text_encoder_2") else {}
    more |= {"prompt_3": None} if hasattr(pipe, "text_encoder_3") else {}
    given = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    found = pipe.encode_prompt(prompt=prompt, **given, **more, **changed)
    return found[0], found[2] if more else None


def theirs(pipe: Any, scheduler: str, kind: str = "diffusion", **changed: Any) -> torch.Tensor:
    solver = getattr(diffusers, SCHEDULERS[kind][scheduler])
    pipe.scheduler = solver.from_config(pipe.scheduler.config)
    asked: dict[str, Any] = {
        "prompt": PROMPT,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": 6,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    return pipe(**asked | changed).images


def ours(model: Model, scheduler: str | None = None, **changed: Any) -> torch.Tensor:
    asked = Request(prompt=PROMPT, guidance=GUIDANCE, steps=6, scheduler=scheduler, seed=3)
    return paint(model, asked.model_copy(update=changed))[0].latents[None]


@every_family
def test_prompts_mean_the_same(family: str, opened: Opened, pipelines: Pipelines) -> None:
    model, pipe = opened(family), pipelines(family)
    for prompt in (PROMPT, "a zebra, half-known (and spelt)", " ".join(["a red dog"] * 80)):
        states, pooled = said(pipe, prompt)
        told = model.condition([prompt])
        assert apart(told.states, states) <= 1e-5
        assert (told.pooled is None) == (pooled is None)
        if pooled is not None and told.pooled is not None:
            assert apart(told.pooled, pooled) <= 1e-5
            assert apart(told.pooled, said(pipe, OTHER)[1]) > 1e-5
    assert apart(model.condition([PROMPT]).states, said(pipe, OTHER)[0]) > 1e-5


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "stable-diffusion-3"])
def test_clip_skip_is_theirs_but_for_the_counting(
    family: str, opened: Opened, bases: Callable[[str], Path]
) -> None:
    pipe = _pipeline(family, bases(family))
    states, pooled = said(pipe, PROMPT, clip_skip=0)
    assert apart(opened(family).condition([PROMPT], Reading(clip_skip=2)).states, states) <= 1e-5
    deeper, pooled = said(pipe, PROMPT, clip_skip=-1)
    told = opened(family).condition([PROMPT], Reading(clip_skip=1))
    assert apart(told.states, deeper) <= 1e-5
    assert apart(told.states, states) > 1e-5
    assert told.pooled is not None
    assert apart(told.pooled, pooled) <= 1e-5


@every_family
@pytest.mark.parametrize("negative", ["", "a clean cat"])
def test_latents_are_the_pipelines(
    family: str, negative: str, opened: Opened, pipelines: Pipelines
) -> None:
    model, pipe = opened(family), pipelines(family)
    scheduler = "dpm++" if model.schedule.kind == "diffusion" else "euler"
    _same(model, pipe, scheduler, negative)


MORE = [(family, name) for family in PIPELINES for name in ("euler", "heun", "pndm")]


@pytest.mark.long
@pytest.mark.parametrize(("family", "scheduler"), MORE)
def test_with_other_solvers(
    family: str, scheduler: str, opened: Opened, pipelines: Pipelines
) -> None:
    model = opened(family)
    if scheduler in SCHEDULERS[model.schedule.kind]:
        _same(model, pipelines(family), scheduler, "a clean cat")


def _same(model: Model, pipe: Any, scheduler: str, negative: str) -> None:
    """Same latents; not the same with a tenth more guidance, nor with one word changed."""
    given: dict[str, Any] = {"kind": model.schedule.kind, "negative_prompt": negative or None}
    mine = ours(model, scheduler, negative=negative)
    assert apart(mine, theirs(pipe, scheduler, **given)) <= CLOSE
    assert apart(mine, theirs(pipe, scheduler, **given, guidance_scale=1.1 * GUIDANCE)) > CLOSE
    assert apart(mine, theirs(pipe, scheduler, **given, prompt=OTHER)) > CLOSE


@pytest.mark.long
@every_family
def test_from_a_picture_too(
    family: str, opened: Opened, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    model, pipe = opened(family), _pipeline(family, bases(family), "Img2Img")
    picture = tmp_path / "start.png"
    gradient = torch.linspace(0, 255, 32).repeat(32, 1).byte().numpy()
    image = Image.fromarray(gradient).convert("RGB")
    image.save(picture)
    pixels = torch.from_numpy(gradient)[None, None].expand(1, 3, 32, 32) / 255
    kind = model.schedule.kind
    given = theirs(pipe, "euler", kind, image=pixels, strength=0.5, negative_prompt="a cat")
    start: dict[str, Any] = {"init": picture, "negative": "a cat"}
    assert apart(ours(model, "euler", **start, strength=0.5), given) <= CLOSE
    assert apart(ours(model, "euler", **start, strength=0.7), given) > CLOSE


@every_family
def test_pixels_are_the_pipelines(family: str, opened: Opened, pipelines: Pipelines) -> None:
    model, pipe = opened(family), pipelines(family)
    shape = (2, model.latent_channels, 4, 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor or 0.0
    decoded = pipe.vae.decode(latents / scale + shift).sample
    assert apart(model.decode(latents), decoded) <= CLOSE
    encoded = (pipe.vae.encode(decoded.clamp(-1, 1)).latent_dist.mean - shift) * scale
    assert apart(model.encode(decoded.clamp(-1, 1)).mean, encoded) <= CLOSE


@every_family
def test_the_loss_is_what_diffusers_parts_give(
    family: str, opened: Opened, bases: Callable[[str], Path], pipelines: Pipelines
) -> None:
    model, pipe = opened(family), pipelines(family)
    draw = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 3, model.latent_channels, 4, 4, generator=draw)
    prompts, weights = (PROMPT, "a toy", OTHER), torch.tensor([1.0, 0.5, 0.0])
    flow = model.schedule.kind == "flow"
    written_out = _flow_errors if flow else _diffusion_errors
    found = [said(pipe, prompt) for prompt in prompts]
    states = torch.cat([states for states, _ in found])
    pooled = [pooled for _, pooled in found if pooled is not None]
    times, wanted = written_out(pipe, bases(family), latents, noise, states, pooled)
    batch = Batch(latents, noise, times, weights, torch.zeros(3, dtype=torch.long), prompts)
    losses = objective(model, batch, model.condition)
    assert apart(losses, wanted * weights) <= 1e-5
    assert apart(losses, wanted * weights * 1.001) > 1e-5


def _diffusion_errors(
    pipe: Any, base: Path, latents: Any, noise: Any, states: Any, pooled: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    noise_maker = diffusers.DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    times = torch.tensor([3, 500, 998])
    added = None
    if pooled:
        sizes = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 3)
        added = {"text_embeds": torch.cat(pooled), "time_ids": sizes}
    noisy = noise_maker.add_noise(latents, noise, times)
    answer = pipe.unet(noisy, times, states, added_cond_kwargs=added).sample
    target = noise
    if noise_maker.config.prediction_type == "v_prediction":
        target = noise_maker.get_velocity(latents, noise, times)
    return times, (answer - target).square().mean((1, 2, 3))


def _flow_errors(
    pipe: Any, base: Path, latents: Any, noise: Any, states: Any, pooled: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    noise_maker = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        base, subfolder="scheduler"
    )
    times = noise_maker.timesteps[torch.tensor([3, 500, 998])]
    noisy = noise_maker.scale_noise(latents, times, noise)
    answer = pipe.transformer(noisy, states, torch.cat(pooled), times).sample
    return times, (answer - (noise - latents)).square().mean((1, 2, 3))


def test_without_t5_its_places_are_zeros(bases: Callable[[str], Path], tmp_path: Path) -> None:
    family = "stable-diffusion-3"
    folder = Path(shutil.copytree(bases(family), tmp_path / "without"))
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    pipe = _pipeline(family, bases(family), text_encoder_3=None, tokenizer_3=None)
    model = open_base(folder)
    assert apart(model.condition([PROMPT]).states, said(pipe, PROMPT)[0]) <= 1e-5
    _same(model, pipe, "euler", "")
