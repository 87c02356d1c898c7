"""Layers in 8 bits: near to the layers they stand for, forwards and backwards, sample by sample."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import TunedWeights, injected
from pinxit.adapters.lora import Form, LowRank
from pinxit.errors import ConceptError, ModelError, RecipeError
from pinxit.generation.generate import paint
from pinxit.images.folder import read_pictures
from pinxit.models.kernels.int8 import in_int8
from pinxit.models.kernels.quantize import full, put, rounded
from pinxit.models.model import Model, open_base
from pinxit.training.recipe import Recipe
from pinxit.training.train import Lesson, train

LAYERS = {
    "linear": (nn.Linear(96, 160), (2, 50, 96)),
    "linear, no bias": (nn.Linear(96, 32, bias=False), (2, 7, 96)),
    "3x3, many places": (nn.Conv2d(16, 32, 3, 1, 1), (2, 16, 16, 16)),
    "3x3, few places": (nn.Conv2d(64, 128, 3, 1, 1), (2, 64, 4, 4)),
    "3x3, no padding": (nn.Conv2d(16, 8, 3), (2, 16, 9, 7)),
    "3x3, every other place": (nn.Conv2d(32, 16, 3, 2, 1), (2, 32, 8, 8)),
    "1x1": (nn.Conv2d(32, 16, 1), (2, 32, 8, 8)),
}


def in_8_bits(layer: nn.Module) -> nn.Module:
    """The layer as a block has it, with its own weight."""
    weight = layer.get_parameter("weight").detach()
    blocks = nn.ModuleDict({"up_blocks": nn.ModuleList([deepcopy(layer)])}).requires_grad_(False)
    in_int8(blocks)
    found = blocks.get_submodule("up_blocks.0")
    assert type(found) is not type(layer)
    whole, found.scale = rounded(weight)
    found.weight = nn.Parameter(whole, requires_grad=False)
    return found


def both_ways(layer: nn.Module, given: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a layer makes of something, and the gradient by it."""
    given = given.clone().requires_grad_()
    found = layer(given)
    found.backward(torch.ones_like(found) if grad is None else grad)
    assert given.grad is not None
    return found.detach(), given.grad


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_in_8_bits_is_within_2_percent_both_ways(kind: str) -> None:
    layer, shape = LAYERS[kind]
    draws = torch.Generator().manual_seed(0)
    given = torch.randn(shape, generator=draws)
    grad = torch.randn(layer(given).shape, generator=draws)
    own, eight = deepcopy(layer).requires_grad_(False), in_8_bits(layer)
    for found, wanted in zip(
        both_ways(eight, given, grad), both_ways(own, given, grad), strict=True
    ):
        assert found.shape == wanted.shape
        assert 1e-4 < apart(found, wanted) < 0.02  # rounded, and only so


@pytest.mark.parametrize("kind", LAYERS)
def test_a_sample_is_rounded_by_itself(kind: str) -> None:
    layer, shape = LAYERS[kind]
    eight, draws = in_8_bits(layer), torch.Generator().manual_seed(1)
    given = torch.randn(shape, generator=draws)
    other = torch.cat([given[:1], 1000 * torch.randn(given[1:].shape, generator=draws)])
    alone, beside = (both_ways(eight, some, None)[0] for some in (given[:1], other))
    assert torch.equal(alone, beside[:1])


def test_what_is_large_in_one_channel_of_a_weight_does_not_round_the_others() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1000
    whole, scale = rounded(weight)
    assert whole.dtype == torch.int8
    assert apart((whole * scale[:, None])[:3], weight[:3]) < 0.01


def test_a_weight_is_put_in_and_the_own_one_comes_back_to_the_bit() -> None:
    eight = in_8_bits(LAYERS["linear"][0])
    own, scale = eight.get_parameter("weight"), eight.scale
    undo = put(eight, torch.ones(160, 96))
    assert torch.allclose(full(eight), torch.ones(160, 96))
    undo()
    assert eight.get_parameter("weight") is own
    assert eight.scale is scale


def opened_in_8_bits(base: Path) -> Model:
    """A base in 8 bits, where the processor has units for it."""
    try:
        return open_base(base, precision="int8")
    except ModelError as trouble:
        pytest.skip(trouble.message)


@pytest.fixture(scope="module")
def eight(nano: Path) -> Model:
    """The little base in 8 bits."""
    return opened_in_8_bits(nano)


def test_the_denoiser_answers_nearly_the_same(eight: Model, model: Model) -> None:
    told, draws = model.condition(["a dog", "a cat"]), torch.Generator().manual_seed(0)
    latents = torch.randn(2, model.latent_channels, 4, 4, generator=draws)
    times = torch.tensor([10, 900])
    with torch.no_grad():
        found, wanted = (one.denoise(latents, times, told) for one in (eight, model))
    assert 0 < apart(found, wanted) < 0.05


def test_a_network_that_rested_is_the_same_to_the_bit(nano: Path) -> None:
    one = opened_in_8_bits(nano)
    told, latents = one.condition(["a dog"]), torch.ones(1, one.latent_channels, 4, 4)
    with torch.no_grad():
        before = one.denoise(latents, torch.tensor(500), told)
        one.rest("denoiser")
        assert torch.equal(before, one.denoise(latents, torch.tensor(500), told))


@pytest.mark.parametrize("method", ["textual-inversion", "lora"])
def test_learning_follows_that_in_full(
    method: str, nano: Path, pictures: Path, eight: Model, model: Model
) -> None:
    losses: list[list[float]] = []
    for base in (model, eight):
        recipe = Recipe.model_validate(
            {
                "method": method,
                "pictures": pictures,
                "token": "<mytoy>",
                "class_noun": "dog",
                "steps": 6,
                "preview_every": 0,
                "base": str(nano),
                **({"method": {"name": "lora", "prior_pictures": 0}} if method == "lora" else {}),
            }
        ).settled(base, 3)
        lesson = Lesson.of(base, recipe, read_pictures(pictures))
        losses.append([step.loss for step in train(lesson)])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_lora_is_painted_with_and_leaves_nothing_behind(eight: Model, model: Model) -> None:
    form = Form("lora", 2, 2.0, "all")
    learned = LowRank.of(model, "denoiser", form, 0)
    with torch.no_grad():
        for weight in learned.weights().values():
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    before = {n: w.clone() for n, w in eight.networks["denoiser"].state_dict().items()}
    told, latents = model.condition(["a dog"]), torch.ones(1, model.latent_channels, 4, 4)
    answers: list[Tensor] = []
    for one in (model, eight):
        fixed = LowRank.restore(learned.part(), one)
        fixed.strength = 1.0
        with torch.no_grad(), injected(one, [fixed]):
            answers.append(one.denoise(latents, torch.tensor(500), told))
    with torch.no_grad():
        without = model.denoise(latents, torch.tensor(500), told)
    assert apart(answers[1], answers[0]) < 0.3 * apart(without, answers[0])
    after = eight.networks["denoiser"].state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_what_needs_whole_weights_says_so(eight: Model) -> None:
    with pytest.raises(ConceptError, match="8 bits"):
        TunedWeights.of(eight, "denoiser")
    with pytest.raises(RecipeError, match="8 bits"):
        LowRank.of(eight, "denoiser", Form("loha", 2, 2.0, "all"), 0)


def test_a_processor_without_such_units_is_refused(
    nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    with pytest.raises(ModelError, match="int8"):
        open_base(nano, precision="int8")


def test_a_picture_says_that_it_was_painted_so(eight: Model) -> None:
    [painted] = paint(eight, "a dog")
    assert painted.request.precision == "int8"
