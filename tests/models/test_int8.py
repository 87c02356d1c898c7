"""Quantized layers: close to the original layers in both passes, and independent of the batch."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig
from pinxit.errors import ConceptError
from pinxit.generation.sample import generate_images
from pinxit.images.folder import read_images
from pinxit.models.kernels.int8 import convert_to_int8
from pinxit.models.kernels.quantize import dequantized_weight, quantize_rows, replace_weight
from pinxit.models.kernels.weight_only import _Linear
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe
from pinxit.training.train import TrainingSession, train

LAYERS = {
    "linear": (nn.Linear(96, 160), (2, 50, 96)),
    "linear, no bias": (nn.Linear(96, 32, bias=False), (2, 7, 96)),
    "3x3, many positions": (nn.Conv2d(16, 32, 3, 1, 1), (2, 16, 16, 16)),
    "3x3, few positions": (nn.Conv2d(64, 128, 3, 1, 1), (2, 64, 4, 4)),
    "3x3, no padding": (nn.Conv2d(16, 8, 3), (2, 16, 9, 7)),
    "3x3, stride 2": (nn.Conv2d(32, 16, 3, 2, 1), (2, 32, 8, 8)),
    "1x1": (nn.Conv2d(32, 16, 1), (2, 32, 8, 8)),
}


def quantized(layer: nn.Module) -> nn.Module:
    """The layer in int8 with the same weight."""
    weight = layer.get_parameter("weight").detach()
    blocks = nn.ModuleDict({"up_blocks": nn.ModuleList([deepcopy(layer)])}).requires_grad_(False)
    convert_to_int8(blocks, "^up_blocks")
    int8_layer = blocks.get_submodule("up_blocks.0")
    assert type(int8_layer) is not type(layer)
    integers, int8_layer.scale = quantize_rows(weight)
    int8_layer.weight = nn.Parameter(integers, requires_grad=False)
    return int8_layer


def output_and_gradient(
    layer: nn.Module, input: Tensor, grad: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A layer's output, and the gradient with respect to its input."""
    input = input.clone().requires_grad_()
    output = layer(input)
    output.backward(torch.ones_like(output) if grad is None else grad)
    assert input.grad is not None
    return output.detach(), input.grad


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", LAYERS)
def test_quantized_layers_are_within_2_percent_in_both_passes(kind: str) -> None:
    layer, shape = LAYERS[kind]
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(shape, generator=generator)
    grad = torch.randn(layer(input).shape, generator=generator)
    outputs = output_and_gradient(quantized(layer), input, grad)
    references = output_and_gradient(deepcopy(layer).requires_grad_(False), input, grad)
    for actual, expected in zip(outputs, references, strict=True):
        assert actual.shape == expected.shape
        assert 1e-4 < relative_error(actual, expected) < 0.02  # quantized, but close


@pytest.mark.parametrize("kind", LAYERS)
def test_a_sample_does_not_depend_on_the_others(kind: str) -> None:
    layer, shape = LAYERS[kind]
    int8_layer, generator = quantized(layer), torch.Generator().manual_seed(1)
    input = torch.randn(shape, generator=generator)
    batch = torch.cat([input[:1], 1000 * torch.randn(input[1:].shape, generator=generator)])
    single, batched = (
        output_and_gradient(int8_layer, samples, None)[0] for samples in (input[:1], batch)
    )
    assert torch.equal(single, batched[:1])


def test_large_values_in_one_row_do_not_affect_other_rows() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1000
    integers, scale = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert relative_error((integers * scale[:, None])[:3], weight[:3]) < 0.01


def test_a_replaced_weight_can_be_restored_exactly() -> None:
    layer = quantized(LAYERS["linear"][0])
    weight, scale = layer.get_parameter("weight"), layer.scale
    undo = replace_weight(layer, torch.ones(160, 96))
    assert torch.allclose(dequantized_weight(layer), torch.ones(160, 96))
    undo()
    assert layer.get_parameter("weight") is weight
    assert layer.scale is scale


@pytest.fixture(scope="module")
def int8_model(nano: Path) -> Model:
    """The nano base model in int8."""
    return open_base(nano, precision="int8")


def test_the_denoiser_predicts_nearly_the_same(int8_model: Model, model: Model) -> None:
    conditioning, generator = model.condition(["a dog", "a cat"]), torch.Generator().manual_seed(0)
    latents = torch.randn(2, model.latent_channels, 4, 4, generator=generator)
    timesteps = torch.tensor([10, 900])
    with torch.no_grad():
        actual = int8_model.denoise(latents, timesteps, conditioning)
        expected = model.denoise(latents, timesteps, conditioning)
    assert 0 < relative_error(actual, expected) < 0.05


def test_an_offloaded_network_is_the_same_when_loaded_again(nano: Path) -> None:
    model = open_base(nano, precision="int8")
    conditioning, latents = model.condition(["a dog"]), torch.ones(1, model.latent_channels, 4, 4)
    with torch.no_grad():
        before = model.denoise(latents, torch.tensor(500), conditioning)
        model.offload("denoiser")
        assert torch.equal(before, model.denoise(latents, torch.tensor(500), conditioning))


@pytest.mark.long
@pytest.mark.parametrize("method", ["textual-inversion", "lora"])
def test_training_losses_are_close_to_fp32(
    method: str, nano: Path, pictures: Path, int8_model: Model, model: Model
) -> None:
    losses: list[list[float]] = []
    for base in (model, int8_model):
        recipe = Recipe.model_validate(
            {
                "method": method,
                "images": pictures,
                "token": "<mytoy>",
                "class_noun": "dog",
                "steps": 6,
                "preview_every": 0,
                "base": str(nano),
                **({"method": {"name": "lora", "class_images": 0}} if method == "lora" else {}),
            }
        )
        plan = TrainingPlan.of(recipe, base, 3)
        session = TrainingSession(base, [ConceptTrainer(base, plan, read_images(pictures))])
        losses.append([step.loss for step in train(session)])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_lora_works_in_int8_and_is_removed_completely(int8_model: Model, model: Model) -> None:
    config = LoraConfig("lora", 2, 2.0, "all")
    lora = LoraAdapter.of(model, "denoiser", config, 0)
    with torch.no_grad():
        for weight in lora.weights().values():
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    before = {
        name: weight.clone()
        for name, weight in int8_model.networks["denoiser"].state_dict().items()
    }
    conditioning, latents = model.condition(["a dog"]), torch.ones(1, model.latent_channels, 4, 4)
    predictions: list[Tensor] = []
    for base in (model, int8_model):
        merged = LoraAdapter.restore(lora.part(), base)
        merged.strength = 1.0
        with torch.no_grad(), applied(base, [merged]):
            predictions.append(base.denoise(latents, torch.tensor(500), conditioning))
    with torch.no_grad():
        without = model.denoise(latents, torch.tensor(500), conditioning)
    assert relative_error(predictions[1], predictions[0]) < 0.3 * relative_error(
        without, predictions[0]
    )
    after = int8_model.networks["denoiser"].state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_training_full_weights_in_int8_raises_an_error(int8_model: Model) -> None:
    with pytest.raises(ConceptError, match="int8"):
        FullWeightsAdapter.of(int8_model, "denoiser")


def test_without_instructions_for_int8_only_weights_have_8_bits(
    nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    kinds = {
        type(layer) for layer in open_base(nano, precision="int8").networks["denoiser"].modules()
    }
    assert _Linear in kinds


def test_images_record_the_precision(int8_model: Model) -> None:
    [image] = generate_images(int8_model, "a dog")
    assert image.request.precision == "int8"
