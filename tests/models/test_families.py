"""What differs between families: recognition, timesteps, precision and image sizes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.errors import ModelError, RecipeError, RequestError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.generation.schedulers import Sampler
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model, Precision
from pinxit.models.noise_schedule import Diffusion, Flow, Schedule
from pinxit.models.open_base import local_resolution, open_base
from pinxit.progress import Notice
from pinxit.runs.run import Run
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe

FAMILIES = registry.names("families")
Opened = Callable[[str], Model]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_base_model_matches_one_family(family: str, opened: Opened) -> None:
    source = opened(family).source
    assert [name for name in FAMILIES if registry.load("families", name).matches(source)] == [
        family
    ]
    assert registry.name_of(type(opened(family))) == family


def test_nano_is_stable_diffusion_1(model: Model) -> None:
    assert registry.name_of(type(model)) == "stable-diffusion-1"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_trained_in_every_text_encoder_not_frozen(family: str, opened: Opened) -> None:
    model = opened(family)
    text_encoders = model.text_encoders.items()
    if family == "z-image":
        with pytest.raises(
            RecipeError, match=r"language model.*\nhint: train a LoRA.*trigger word"
        ):
            EmbeddingAdapter.of(model, "<mytoy>", "dog", 1)
        return
    one = family in ("stable-diffusion-1", "stable-diffusion-2", "chroma")
    assert len(text_encoders) == (1 if one else 2)
    tables = {name: encoder.token_embeddings("dog") for name, encoder in text_encoders}
    added = EmbeddingAdapter("<mytoy>", "toy", tables)
    batch = torch.randn(1, model.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    with applied(model, [added]):
        conditioning = model.condition(["a photo of a <mytoy>"])
        model.denoise(batch, torch.tensor([500]), conditioning).square().sum().backward()
        assert model.placeholders
    for table in added.tables.values():
        assert table.grad is not None
        assert float(table.grad.abs().sum()) > 0
    dog, toy = (model.condition([f"a photo of a {noun}"]) for noun in ("dog", "toy"))
    # In Stable Diffusion 3 the rest is T5's, which receives the text of the placeholder token.
    clip = 77 if model.frozen_text_encoders else None
    assert torch.allclose(conditioning.states[:, :clip], dog.states[:, :clip], atol=1e-6)
    if clip:
        assert torch.equal(conditioning.states[:, clip:], toy.states[:, clip:])


def test_xl_encodes_an_empty_prompt_as_zeros(opened: Opened) -> None:
    encoded = opened("stable-diffusion-xl").condition(["", "a dog"])
    assert encoded.pooled is not None
    assert [bool(row.any()) for row in (*encoded.states, *encoded.pooled)] == [False, True] * 2


@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-xl"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_vae_runs_in_fp32_whatever_the_precision(
    family: str, precision: Precision, opened: Opened, bases: Callable[[str], Path]
) -> None:
    full, half = opened(family), open_base(bases(family), precision=precision)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(half.decode(latents), full.decode(latents))
    states = [model.condition(["a dog"]).states for model in (full, half)]
    assert not torch.equal(*states)


@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_networks_are_the_same_when_loaded_again(
    family: str, bases: Callable[[str], Path]
) -> None:
    model = open_base(bases(family))
    before = (
        model.hash,
        generate_images(model, GenerationRequest(prompt="a dog", steps=2))[0].latents,
    )
    states = {
        name: {key: tensor.clone() for key, tensor in network.state_dict().items()}
        for name, network in model.networks.items()
    }
    networks = dict(model.networks)
    model.offload(*networks, "vae")
    assert all(not w.numel() for network in networks.values() for w in network.parameters())
    for name, state in states.items():
        loaded = model.networks[name].state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    model.offload(*networks, "vae")
    assert model.hash == before[0]
    assert torch.equal(
        generate_images(model, GenerationRequest(prompt="a dog", steps=2))[0].latents, before[1]
    )


def test_t5_is_offloaded_and_loaded_again_for_a_prompt(
    bases: Callable[[str], Path],
) -> None:
    model = open_base(bases("stable-diffusion-3"))
    states = model.condition(["a dog"]).states
    t5 = model.frozen_text_encoders["text_3"].network
    dtype, sizes = t5.dtype, [weight.numel() for weight in t5.parameters()]
    model.offload()
    assert not any(weight.numel() for weight in t5.parameters())
    assert torch.equal(model.condition(["a dog"]).states, states)
    assert [weight.numel() for weight in t5.parameters()] == sizes
    assert t5.dtype == dtype


def test_missing_files_of_an_offloaded_network_raise_an_error(
    tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(bases("stable-diffusion-1"), tmp_path / "base")
    model = open_base(folder)
    model.offload("denoiser")
    shutil.rmtree(folder / "unet")
    with pytest.raises(ModelError, match=r"cannot read the weights of .* again"):
        generate_images(model, GenerationRequest(prompt="a dog", steps=2))


def test_flow_models_use_flow_schedulers(opened: Opened) -> None:
    model = opened("stable-diffusion-3")
    request = GenerationRequest(prompt="a dog", steps=2)
    image = generate_images(model, request)[0]
    assert image.request.scheduler == "euler"
    assert torch.equal(image.latents, generate_images(model, image.request)[0].latents)
    with pytest.raises(RequestError, match="`ddim` does not work with rectified-flow"):
        generate_images(model, request.model_copy(update={"scheduler": "ddim"}))


def test_sizes_must_be_multiples_of_the_patch_size(opened: Opened) -> None:
    model = opened("stable-diffusion-3")
    with pytest.raises(RequestError, match="cannot generate 40x24") as caught:
        generate_images(model, GenerationRequest(prompt="a dog", width=40, height=24))
    assert "multiples of 16" in caught.value.message
    with pytest.raises(RequestError, match="cannot generate 144x32") as caught:
        generate_images(model, GenerationRequest(prompt="a dog", width=144, height=32))
    assert "at most 128" in caught.value.hint
    assert generate_images(model, GenerationRequest(prompt="a", width=48, height=16, steps=1))[
        0
    ].image.size == (48, 16)


def test_min_snr_with_a_flow_model_raises_an_error(opened: Opened, pictures: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "method": "textual-inversion",
            "images": pictures,
            "token": "<mytoy>",
            "class_noun": "toy",
            "min_snr_gamma": 5.0,
        }
    )
    assert TrainingPlan.of(recipe, opened("stable-diffusion-2"), 3).recipe.min_snr_gamma == 5.0
    with pytest.raises(RecipeError, match=r"min-SNR loss weighting \(gamma 5\.0\)"):
        TrainingPlan.of(recipe, opened("stable-diffusion-3"), 3)


def test_timesteps_of_a_flow_are_logit_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    timesteps = (
        torch.tensor([Flow().sample_timestep(generator, (4, 8, 8)) for _ in range(4000)]) / 1000
    )
    assert float(timesteps.min()) > 0
    assert float(timesteps.max()) < 1
    logits = timesteps.logit()
    assert abs(float(logits.mean())) < 0.05
    assert abs(float(logits.std()) - 1) < 0.05
    shifted = (
        torch.tensor([Flow(3.0).sample_timestep(generator, (4, 8, 8)) for _ in range(4000)]) / 1000
    )
    assert abs(float((shifted / (3 - 2 * shifted)).median()) - 0.5) < 0.02


def test_timesteps_are_moved_to_the_device_of_the_latents(opened: Opened) -> None:
    """Schedulers keep their timesteps on the CPU; a GPU cannot compute with these."""
    devices: list[torch.device] = []

    def network(latents: Tensor, states: Tensor, pooled: Tensor, times: Tensor, **_: object):
        devices.extend(each.device for each in (latents, states, pooled, times))
        return (latents,)

    model: Any = opened("stable-diffusion-3")
    latents = torch.zeros(2, 4, 2, 2, device="meta")
    conditioning = Conditioning(
        torch.zeros(2, 3, 4, device="meta"), torch.zeros(2, 4, device="meta")
    )
    model._predict(network, latents, torch.tensor(500.0), conditioning)
    assert {device.type for device in devices} == {"meta"}


@pytest.mark.parametrize("shape", [(16, 32, 32), (16, 128, 96)])
def test_timesteps_of_training_and_sampling_have_the_same_shift(
    shape: tuple[int, int, int], opened: Opened
) -> None:
    model, tokens = opened("flux-1"), shape[1] * shape[2] // 4
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(model.scheduler_config)
    mu = calculate_shift(tokens)
    scheduler.set_timesteps(2, sigmas=[1.0, 0.5], mu=mu)
    sampler = Sampler(model.schedule, "euler", model.scheduler_config, 2, shape)
    assert torch.allclose(sampler.timesteps, scheduler.timesteps)
    rng = torch.Generator().manual_seed(0)
    draws = torch.tensor([model.schedule.sample_timestep(rng, shape) for _ in range(4000)])
    assert abs(float(draws.median() / scheduler.timesteps[1]) - 1) < 0.02
    other = (16, shape[1] * 2, shape[2])
    assert not torch.allclose(
        Sampler(model.schedule, "euler", model.scheduler_config, 2, other).timesteps,
        scheduler.timesteps,
    )


@pytest.mark.parametrize("schedule", [Flow(), Diffusion(torch.linspace(0.9, 0.1, 1000))])
def test_schedules_accept_timesteps_on_another_device(schedule: Schedule) -> None:
    latents, timesteps = torch.zeros(2, 4, 2, 2, device="meta"), torch.tensor([5, 900])
    outputs = [
        schedule.add_noise(latents, latents, timesteps),
        *schedule.predict_clean_and_noise(latents, latents, timesteps),
    ]
    outputs.append(schedule.target(latents, latents, timesteps))
    assert {tensor.device.type for tensor in outputs} == {"meta"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_resolution_is_known_without_weights(
    family: str, bases: Callable[[str], Path], opened: Callable[[str], Model]
) -> None:
    assert local_resolution(str(bases(family))) == opened(family).default_size
    assert local_resolution("nobody/has-this-base") is None


def _recipe(pictures: Path, method: object) -> Recipe:
    subject = {"images": pictures, "token": "<mytoy>", "class_noun": "toy", "method": method}
    return Recipe.model_validate({**subject, "steps": 1, "preview_every": 0})


@pytest.mark.parametrize(
    "method",
    ["textual-inversion", "custom-diffusion", {"name": "lora", "placeholder": "new-embedding"}],
    ids=["textual-inversion", "custom-diffusion", "lora"],
)
def test_an_embedding_without_a_text_encoder_is_refused_before_a_run_is_written(
    method: object, opened: Opened, pictures: Path, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", _recipe(pictures, method))
    with pytest.raises(RecipeError, match="a language model reads its prompts"):
        list(run.train(opened("z-image")))
    assert not run.folder.exists()


@pytest.mark.parametrize("trained", [True, False])
def test_a_text_encoder_that_cannot_be_trained_is_noticed(
    trained: bool, opened: Opened, pictures: Path, tmp_path: Path
) -> None:
    recipe = _recipe(pictures, {"name": "lora", "rank": 1, "train_text_encoder": trained})
    events = list(Run.create(tmp_path / "run", recipe).train(opened("z-image")))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any("--train-text-encoder has no effect" in text for text in notices) == trained


def test_a_vae_of_another_family_is_named(bases: Callable[[str], Path]) -> None:
    vae = bases("stable-diffusion-1")
    with pytest.raises(ModelError, match=rf"but the VAE {vae} has 4\nhint: give a VAE"):
        open_base(bases("z-image"), vae=vae)
