"""Every family against diffusers' pipeline: conditioning, latents, pixels and loss."""

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
from pinxit.errors import RecipeError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.generation.schedulers import _CLASSES as SCHEDULERS
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.models.text_encoder import PromptParsing
from pinxit.training.batches import Batch
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import denoising_losses

PROMPT = "a photo of a red dog on the beach"
OTHER_PROMPT = PROMPT.replace("red", "toy")
GUIDANCE = 5.0
TOLERANCE = 1e-4
PIPELINES = {
    "stable-diffusion-1": "StableDiffusion{}Pipeline",
    "stable-diffusion-2": "StableDiffusion{}Pipeline",
    "stable-diffusion-xl": "StableDiffusionXL{}Pipeline",
    "stable-diffusion-3": "StableDiffusion3{}Pipeline",
    "chroma": "Chroma{}Pipeline",
    "flux-1": "Flux{}Pipeline",
    "z-image": "ZImage{}Pipeline",
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
    return with_masked_padding(pipe) if family == "chroma" else pipe


def with_masked_padding(pipe: Any) -> Any:
    """The pipeline of Chroma, which then masks padding as the authors' code does.

    diffusers adds the mask of 0 and 1 to the scores of the attention, so that padding is read
    (huggingface/diffusers#12116); a mask of booleans prevents it.
    """
    original = pipe._prepare_attention_mask
    pipe._prepare_attention_mask = lambda **inputs: (
        original(**inputs).bool() if inputs["attention_mask"] is not None else None
    )
    return pipe


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def encode(pipe: Any, prompt: str, **changes: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states and pooled states of a prompt, computed by the pipeline."""
    prompts: dict[str, Any] = {"prompt_2": None} if hasattr(pipe, "text_encoder_2") else {}
    prompts |= {"prompt_3": None} if hasattr(pipe, "text_encoder_3") else {}
    arguments = {"device": "cpu", "num_images_per_prompt": 1, **prompts, **changes}
    if isinstance(pipe, diffusers.FluxPipeline):
        return pipe.encode_prompt(prompt=prompt, **arguments)[:2]
    if type(pipe).__name__.startswith("Chroma"):
        del arguments["num_images_per_prompt"]
        outputs = pipe.encode_prompt(prompt=prompt, do_classifier_free_guidance=False, **arguments)
        return outputs[0][:, : int(outputs[2].sum())], None
    if isinstance(pipe, diffusers.ZImagePipeline):
        return pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0][0][None], None
    outputs = pipe.encode_prompt(prompt=prompt, do_classifier_free_guidance=False, **arguments)
    return outputs[0], outputs[2] if prompts else None


def expected(pipe: Any, scheduler: str, kind: str = "diffusion", **changes: Any) -> torch.Tensor:
    scheduler_class = getattr(diffusers, SCHEDULERS[kind][scheduler])
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": 6,
        "height": 32,
        "width": 32,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    arguments |= changes
    if type(pipe).__name__.startswith("ZImage"):  # it counts guidance from 0
        arguments["guidance_scale"] -= 1
    latents = pipe(**arguments).images
    return pipe._unpack_latents(latents, 32, 32, 8) if latents.ndim == 3 else latents


def actual(model: Model, scheduler: str | None = None, **changes: Any) -> torch.Tensor:
    request = GenerationRequest(
        prompt=PROMPT, guidance_scale=GUIDANCE, steps=6, scheduler=scheduler, seed=3
    )
    return generate_images(model, request.model_copy(update=changes))[0].latents[None]


@every_family
def test_conditioning_equals_the_pipelines(
    family: str, opened: Opened, pipelines: Pipelines
) -> None:
    model, pipe = opened(family), pipelines(family)
    for prompt in (PROMPT, "a zebra, half-known (and spelt)", " ".join(["a red dog"] * 80)):
        states, pooled = encode(pipe, prompt)
        conditioning = model.condition([prompt])
        assert relative_error(conditioning.states, states) <= 1e-5
        assert (conditioning.pooled is None) == (pooled is None)
        if pooled is not None and conditioning.pooled is not None:
            assert relative_error(conditioning.pooled, pooled) <= 1e-5
            assert relative_error(conditioning.pooled, encode(pipe, OTHER_PROMPT)[1]) > 1e-5
    assert relative_error(model.condition([PROMPT]).states, encode(pipe, OTHER_PROMPT)[0]) > 1e-5


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "stable-diffusion-3"])
def test_clip_skip_equals_the_pipelines_with_another_count(
    family: str, opened: Opened, bases: Callable[[str], Path]
) -> None:
    pipe = _pipeline(family, bases(family))
    states, pooled = encode(pipe, PROMPT, clip_skip=0)
    assert (
        relative_error(
            opened(family).condition([PROMPT], PromptParsing(clip_skip=2)).states, states
        )
        <= 1e-5
    )
    deeper, pooled = encode(pipe, PROMPT, clip_skip=-1)
    conditioning = opened(family).condition([PROMPT], PromptParsing(clip_skip=1))
    assert relative_error(conditioning.states, deeper) <= 1e-5
    assert relative_error(conditioning.states, states) > 1e-5
    assert conditioning.pooled is not None
    assert relative_error(conditioning.pooled, pooled) <= 1e-5


@every_family
@pytest.mark.parametrize("negative", ["", "a clean cat"])
def test_latents_equal_the_pipelines(
    family: str, negative: str, opened: Opened, pipelines: Pipelines
) -> None:
    model, pipe = opened(family), pipelines(family)
    scheduler = "dpm++" if model.schedule.kind == "diffusion" else "euler"
    _check_latents(model, pipe, scheduler, negative)


FAMILY_SCHEDULERS = [(family, name) for family in PIPELINES for name in ("euler", "heun", "pndm")]
for refuses_heun in ("chroma", "flux-1", "z-image"):
    FAMILY_SCHEDULERS.remove((refuses_heun, "heun"))


@pytest.mark.long
@pytest.mark.parametrize(("family", "scheduler"), FAMILY_SCHEDULERS)
def test_other_schedulers(
    family: str, scheduler: str, opened: Opened, pipelines: Pipelines
) -> None:
    model = opened(family)
    if scheduler in SCHEDULERS[model.schedule.kind]:
        _check_latents(model, pipelines(family), scheduler, "a clean cat")


def _check_latents(model: Model, pipe: Any, scheduler: str, negative: str) -> None:
    """Check for equal latents; 10% more guidance or one changed word must make a difference."""
    arguments: dict[str, Any] = {"kind": model.schedule.kind, "negative_prompt": negative or None}
    latents = actual(model, scheduler, negative_prompt=negative)
    assert relative_error(latents, expected(pipe, scheduler, **arguments)) <= TOLERANCE
    assert (
        relative_error(
            latents, expected(pipe, scheduler, **arguments, guidance_scale=1.1 * GUIDANCE)
        )
        > TOLERANCE
    )
    assert (
        relative_error(latents, expected(pipe, scheduler, **arguments, prompt=OTHER_PROMPT))
        > TOLERANCE
    )


@pytest.mark.long
@every_family
def test_image_to_image(
    family: str, opened: Opened, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    model, pipe = opened(family), _pipeline(family, bases(family), "Img2Img")
    file = tmp_path / "start.png"
    gradient = torch.linspace(0, 255, 32).repeat(32, 1).byte().numpy()
    image = Image.fromarray(gradient).convert("RGB")
    image.save(file)
    pixels = torch.from_numpy(gradient)[None, None].expand(1, 3, 32, 32) / 255
    kind = model.schedule.kind
    latents = expected(pipe, "euler", kind, image=pixels, strength=0.5, negative_prompt="a cat")
    options: dict[str, Any] = {"init_image": file, "negative_prompt": "a cat"}
    assert (
        relative_error(actual(model, "euler", **options, denoising_strength=0.5), latents)
        <= TOLERANCE
    )
    assert (
        relative_error(actual(model, "euler", **options, denoising_strength=0.7), latents)
        > TOLERANCE
    )


@every_family
def test_pixels_equal_the_pipelines(family: str, opened: Opened, pipelines: Pipelines) -> None:
    model, pipe = opened(family), pipelines(family)
    shape = (2, model.latent_channels, 4, 4)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor or 0.0
    decoded = pipe.vae.decode(latents / scale + shift).sample
    assert relative_error(model.decode(latents), decoded) <= TOLERANCE
    encoded = (pipe.vae.encode(decoded.clamp(-1, 1)).latent_dist.mean - shift) * scale
    assert relative_error(model.encode(decoded.clamp(-1, 1)).mean, encoded) <= TOLERANCE


@every_family
def test_the_loss_equals_the_one_computed_with_diffusers(
    family: str, opened: Opened, bases: Callable[[str], Path], pipelines: Pipelines
) -> None:
    model, pipe = opened(family), pipelines(family)
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, 3, model.latent_channels, 4, 4, generator=generator)
    prompts, weights = (PROMPT, "a toy", OTHER_PROMPT), torch.tensor([1.0, 0.5, 0.0])
    flow = model.schedule.kind == "flow"
    reference = _flow_errors if flow else _diffusion_errors
    encodings = [encode(pipe, prompt) for prompt in prompts]
    states = [states for states, _ in encodings]
    pooled = [pooled for _, pooled in encodings if pooled is not None]
    timesteps, expected_losses = reference(pipe, bases(family), latents, noise, states, pooled)
    batch = Batch(latents, noise, timesteps, weights, torch.zeros(3, dtype=torch.long), prompts)
    losses = denoising_losses(model, batch, model.condition)
    assert relative_error(losses, expected_losses * weights) <= 1e-5
    assert relative_error(losses, expected_losses * weights * 1.001) > 1e-5


def _diffusion_errors(
    pipe: Any, base: Path, latents: Any, noise: Any, states: Any, pooled: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    scheduler = diffusers.DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    timesteps = torch.tensor([3, 500, 998])
    added = None
    if pooled:
        sizes = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 3)
        added = {"text_embeds": torch.cat(pooled), "time_ids": sizes}
    noisy = scheduler.add_noise(latents, noise, timesteps)
    prediction = pipe.unet(noisy, timesteps, torch.cat(states), added_cond_kwargs=added).sample
    target = noise
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    return timesteps, (prediction - target).square().mean((1, 2, 3))


def _flow_errors(
    pipe: Any, base: Path, latents: Any, noise: Any, states: Any, pooled: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
        base, subfolder="scheduler"
    )
    timesteps = scheduler.timesteps[torch.tensor([3, 500, 998])]
    noisy = scheduler.scale_noise(latents, timesteps, noise)
    if isinstance(pipe, diffusers.FluxPipeline):
        states = torch.cat(states)
        prediction = _packed_prediction(pipe, noisy, states, torch.cat(pooled), timesteps)
    elif isinstance(pipe, diffusers.ChromaPipeline):
        rows = zip(noisy.split(1), states, timesteps.split(1), strict=True)
        prediction = torch.cat([_packed_prediction(pipe, *row[:2], None, row[2]) for row in rows])
    elif isinstance(pipe, diffusers.ZImagePipeline):
        images, prompts = list(noisy.unsqueeze(2)), [rows[0] for rows in states]
        outputs = pipe.transformer(images, 1 - timesteps / 1000, prompts).sample
        prediction = -torch.stack(outputs).squeeze(2)
    else:
        prediction = pipe.transformer(noisy, torch.cat(states), torch.cat(pooled), timesteps).sample
    return timesteps, (prediction - (noise - latents)).square().mean((1, 2, 3))


def _packed_prediction(
    pipe: Any, noisy: Any, states: Any, pooled: Any, timesteps: Any
) -> torch.Tensor:
    """The prediction of FLUX.1, whose guidance scale in training is 1, or of Chroma."""
    count, channels, height, width = noisy.shape
    own = {"pooled_projections": pooled, "guidance": torch.ones(count)}
    tokens = pipe.transformer(
        pipe._pack_latents(noisy, count, channels, height, width),
        encoder_hidden_states=states,
        timestep=timesteps / 1000,
        img_ids=pipe._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", noisy.dtype),
        txt_ids=torch.zeros(states.shape[1], 3),
        **({} if pooled is None else own),
    ).sample
    return pipe._unpack_latents(tokens, height * 8, width * 8, 8)


def test_chroma_reads_one_position_of_padding(opened: Opened, bases: Callable[[str], Path]) -> None:
    """Prompts of different lengths in one batch are as alone, also with gradient checkpointing."""
    model = opened("chroma")
    prompts = ["a dog", PROMPT]
    batch = model.condition(prompts)
    assert batch.mask is not None
    lengths = [len(model.text_encoders["text"].ids(prompt)) + 2 for prompt in prompts]
    assert batch.mask.sum(dim=1).tolist() == lengths
    noise, half = torch.randn(2, 16, 4, 4), torch.tensor(500.0)
    one = model.denoise(noise[:1], half, model.condition(prompts[:1]))
    assert relative_error(model.denoise(noise, half, batch)[:1], one) <= 1e-5
    assert relative_error(model.denoise(noise, half, Conditioning(batch.states))[:1], one) > 1e-5
    model.enable_gradient_checkpointing(True)
    changed = noise.clone().requires_grad_()
    assert relative_error(model.denoise(changed, half, batch)[:1], one) <= 1e-5
    model.enable_gradient_checkpointing(False)
    pipe: Any = diffusers.ChromaPipeline.from_pretrained(bases("chroma"))
    latents = expected(pipe, "euler", "flow", negative_prompt="a cat")
    assert relative_error(actual(model, negative_prompt="a cat"), latents) > TOLERANCE


@pytest.mark.parametrize("schnell", [True, False])
def test_flux_1_without_guidance_as_an_input(
    schnell: bool, bases: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    """schnell has no guidance at all; for other checkpoints it is the one of two predictions."""
    folder = without_guidance(bases("flux-1"), tmp_path / "plain", schnell=schnell)
    pipe, model = _pipeline("flux-1", folder), open_base(folder)
    arguments = {"kind": "flow", "negative_prompt": "a cat", "true_cfg_scale": GUIDANCE}
    arguments |= {"max_sequence_length": 256 if schnell else 512}
    with_guidance = expected(pipe, "euler", **arguments)
    without = expected(pipe, "euler", **arguments | {"true_cfg_scale": 1.0})
    right, wrong = (without, with_guidance) if schnell else (with_guidance, without)
    latents = actual(model, negative_prompt="a cat")
    assert relative_error(latents, right) <= TOLERANCE
    assert relative_error(latents, wrong) > TOLERANCE
    recipe = {"method": "lora", "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    if schnell:
        with pytest.raises(RecipeError, match=r"distilled.*\nhint: train on .*FLUX.1-dev"):
            TrainingPlan.of(Recipe.model_validate(recipe), model, 3)
    else:
        TrainingPlan.of(Recipe.model_validate(recipe), model, 3)


def test_the_prompt_of_z_image_has_template_and_own_length(
    opened: Opened, pipelines: Pipelines
) -> None:
    model, pipe = opened("z-image"), pipelines("z-image")
    prompts = ["a dog", "a photo of a dog"]
    batch = model.condition(prompts)
    assert batch.mask is not None
    for row, prompt in enumerate(prompts):
        states, _ = encode(pipe, prompt)
        used = batch.mask[row].bool()
        assert relative_error(batch.states[row][used], states[0]) <= 1e-5
        assert not batch.states[row][~used].any()
    alone = encode(pipe, prompts[0])[0][0]
    pipe.tokenizer.chat_template = pipe.tokenizer.chat_template.replace("assistant", "assistent")
    assert relative_error(encode(pipe, prompts[0])[0][0], alone) > 1e-5
    noise, half = torch.randn(2, 16, 4, 4), torch.tensor(500.0)
    together = model.denoise(noise, half, batch)
    one = model.denoise(noise[:1], half, model.condition(prompts[:1]))
    assert relative_error(together[:1], one) <= 1e-5
    unmasked = Conditioning(batch.states)
    assert relative_error(model.denoise(noise, half, unmasked)[:1], one) > 1e-5


def test_z_image_turbo_is_distilled(
    bases: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases("z-image"), tmp_path / "turbo"))
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    pipe, model = _pipeline("z-image", folder), open_base(folder)
    latents = actual(model, negative_prompt="a cat")
    assert relative_error(latents, expected(pipe, "euler", "flow", guidance_scale=1)) <= TOLERANCE
    assert relative_error(latents, expected(pipe, "euler", "flow")) > TOLERANCE
    recipe = {"method": "lora", "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    with pytest.raises(RecipeError, match=r"distilled.*\nhint: train on Tongyi-MAI/Z-Image;"):
        TrainingPlan.of(Recipe.model_validate(recipe), model, 3)


def without_guidance(base: Path, folder: Path, *, schnell: bool) -> Path:
    """A copy of a FLUX.1 base model whose transformer does not take the guidance scale."""
    shutil.copytree(base, folder)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=not schnell)
    scheduler.save_pretrained(folder / "scheduler")
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer")
    config = {**transformer.config, "guidance_embeds": False}
    plain = diffusers.FluxTransformer2DModel.from_config(config)
    plain.load_state_dict(transformer.state_dict(), strict=False)
    plain.save_pretrained(folder / "transformer")
    return folder


def test_without_t5_its_states_are_zeros(bases: Callable[[str], Path], tmp_path: Path) -> None:
    family = "stable-diffusion-3"
    folder = Path(shutil.copytree(bases(family), tmp_path / "without"))
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    pipe = _pipeline(family, bases(family), text_encoder_3=None, tokenizer_3=None)
    model = open_base(folder)
    assert relative_error(model.condition([PROMPT]).states, encode(pipe, PROMPT)[0]) <= 1e-5
    _check_latents(model, pipe, "euler", "")
