"""What families have of their own: how they are told apart, which times, numbers and sizes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import NewWord, injected
from pinxit.errors import ModelError, RecipeError, RequestError
from pinxit.generation.generate import Request, paint
from pinxit.models.model import Conditioning, Model, Precision, open_base
from pinxit.models.noise_schedule import Diffusion, Flow, Schedule
from pinxit.training.recipe import Recipe

FAMILIES = registry.names("families")
Opened = Callable[[str], Model]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_base_is_of_one_family(family: str, opened: Opened) -> None:
    source = opened(family).source
    assert [name for name in FAMILIES if registry.load("families", name).suits(source)] == [family]
    assert registry.name_of(type(opened(family))) == family


def test_the_embedded_base_is_of_the_first_family(model: Model) -> None:
    assert registry.name_of(type(model)) == "stable-diffusion-1"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_word_is_learned_in_every_clip_tower(family: str, opened: Opened) -> None:
    model = opened(family)
    towers = model.towers.items()
    assert len(towers) == (1 if family[-1] in "12" else 2)
    added = NewWord("<mytoy>", "toy", {key: tower.word_vectors("dog") for key, tower in towers})
    batch = torch.randn(1, model.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    with injected(model, [added]):
        told = model.condition(["a photo of a <mytoy>"])
        model.denoise(batch, torch.tensor([500]), told).square().sum().backward()
        assert model.words
    for table in added.tables.values():
        assert table.grad is not None
        assert float(table.grad.abs().sum()) > 0
    dog, toy = (model.condition([f"a photo of a {noun}"]) for noun in ("dog", "toy"))
    clip = 77  # what comes after is T5's, which reads what the word stands for
    assert torch.allclose(told.states[:, :clip], dog.states[:, :clip], atol=1e-6)
    assert torch.equal(told.states[:, clip:], toy.states[:, clip:])


def test_nothing_said_is_nothing_at_all_to_xl(opened: Opened) -> None:
    told = opened("stable-diffusion-xl").condition(["", "a dog"])
    assert told.pooled is not None
    assert [bool(part.any()) for part in (*told.states, *told.pooled)] == [False, True] * 2


@pytest.mark.parametrize("family", ["stable-diffusion-1", "stable-diffusion-xl"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_autoencoders_overflow_in_halves_and_compute_in_full(
    family: str, precision: Precision, opened: Opened, bases: Callable[[str], Path]
) -> None:
    full, half = opened(family), open_base(bases(family), precision=precision)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(half.decode(latents), full.decode(latents))
    told = [model.condition(["a dog"]).states for model in (full, half)]
    assert not torch.equal(*told)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_that_rests_is_the_same_when_it_wakes(
    family: str, bases: Callable[[str], Path]
) -> None:
    model = open_base(bases(family))
    before = model.hash, paint(model, Request(prompt="a dog", steps=2))[0].latents
    states = {
        name: {key: tensor.clone() for key, tensor in network.state_dict().items()}
        for name, network in model.networks.items()
    }
    sleeping = dict(model.networks)
    model.rest(*sleeping, "autoencoder")
    assert all(not w.numel() for network in sleeping.values() for w in network.parameters())
    for name, state in states.items():
        found = model.networks[name].state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    model.rest(*sleeping, "autoencoder")
    assert model.hash == before[0]
    assert torch.equal(paint(model, Request(prompt="a dog", steps=2))[0].latents, before[1])


def test_a_base_that_went_away_is_missed_in_words(
    tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(bases("stable-diffusion-1"), tmp_path / "base")
    model = open_base(folder)
    model.rest("denoiser")
    shutil.rmtree(folder / "unet")
    with pytest.raises(ModelError, match="cannot be read again"):
        paint(model, Request(prompt="a dog", steps=2))


def test_a_flow_is_painted_by_solvers_of_flows(opened: Opened) -> None:
    model = opened("stable-diffusion-3")
    asked = Request(prompt="a dog", steps=2)
    painted = paint(model, asked)[0]
    assert painted.request.scheduler == "euler"
    assert torch.equal(painted.latents, paint(model, painted.request)[0].latents)
    with pytest.raises(RequestError, match="no scheduler `ddim` for bases that are a rectified"):
        paint(model, asked.model_copy(update={"scheduler": "ddim"}))


def test_a_transformer_takes_whole_patches(opened: Opened) -> None:
    model = opened("stable-diffusion-3")
    with pytest.raises(RequestError, match="cannot paint 40x24") as caught:
        paint(model, Request(prompt="a dog", width=40, height=24))
    assert "multiples of 16" in caught.value.hint
    with pytest.raises(RequestError, match="cannot paint 144x32") as caught:
        paint(model, Request(prompt="a dog", width=144, height=32))
    assert "at most 128 a side" in caught.value.hint
    assert paint(model, Request(prompt="a", width=48, height=16, steps=1))[0].image.size == (48, 16)


def test_min_snr_on_a_flow_is_refused(opened: Opened, pictures: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "method": "textual-inversion",
            "pictures": pictures,
            "token": "<mytoy>",
            "class_noun": "toy",
            "min_snr": 5.0,
        }
    )
    assert recipe.settled(opened("stable-diffusion-2"), 3).min_snr == 5.0
    with pytest.raises(RecipeError, match=r"min-SNR of 5\.0 is asked for"):
        recipe.settled(opened("stable-diffusion-3"), 3)


def test_times_of_a_flow_are_logit_normal() -> None:
    draws = torch.Generator().manual_seed(0)
    times = torch.tensor([Flow().draw(draws) for _ in range(4000)]) / 1000
    assert float(times.min()) > 0
    assert float(times.max()) < 1
    logits = times.logit()
    assert abs(float(logits.mean())) < 0.05
    assert abs(float(logits.std()) - 1) < 0.05
    shifted = torch.tensor([Flow(3.0).draw(draws) for _ in range(4000)]) / 1000
    assert abs(float((shifted / (3 - 2 * shifted)).median()) - 0.5) < 0.02


def test_times_on_the_cpu_go_to_the_latents_device(opened: Opened) -> None:
    """Solvers keep their times on the CPU; an accelerator refuses to compute with them."""
    seen: list[torch.device] = []

    def network(latents: Tensor, states: Tensor, pooled: Tensor, times: Tensor, **_: object):
        seen.extend(each.device for each in (latents, states, pooled, times))
        return (latents,)

    model: Any = opened("stable-diffusion-3")
    latents = torch.zeros(2, 4, 2, 2, device="meta")
    told = Conditioning(torch.zeros(2, 3, 4, device="meta"), torch.zeros(2, 4, device="meta"))
    model._answer(network, latents, torch.tensor(500.0), told)
    assert {device.type for device in seen} == {"meta"}


@pytest.mark.parametrize("schedule", [Flow(), Diffusion(torch.linspace(0.9, 0.1, 1000))])
def test_schedules_take_times_of_another_device(schedule: Schedule) -> None:
    latents, times = torch.zeros(2, 4, 2, 2, device="meta"), torch.tensor([5, 900])
    made = [schedule.add_noise(latents, latents, times), *schedule.parted(latents, latents, times)]
    made.append(schedule.target(latents, latents, times))
    assert {tensor.device.type for tensor in made} == {"meta"}
