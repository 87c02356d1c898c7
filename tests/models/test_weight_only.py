"""Frozen bases in 8 or 4 bits: results are those of the dequantized weights, on any device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.full_weights import FullWeightsAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig, LoraPart
from pinxit.errors import ConceptError, RecipeError
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.kernels.quantize import INT8, NF4, dequantized_weight, quantize
from pinxit.models.model import Model, Precision
from pinxit.models.open_base import open_base
from pinxit.runs.run import Run, train_run
from pinxit.training.plan import TrainingPlan, check_options
from pinxit.training.recipe import Recipe
from tests.short_runs import lora_recipe, stopped_run

Bases = Callable[[str], Path]
precisions = pytest.mark.parametrize("precision", ["int8", "nf4"])
families = pytest.mark.parametrize(
    "family", ["chroma", "flux-1", "z-image", "stable-diffusion-3", "stable-diffusion-xl"]
)


@pytest.fixture(autouse=True)
def without_integer_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, weights are computed again for each product."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)


def quantized_layers(model: Model) -> dict[str, nn.Linear]:
    modules = model.networks["denoiser"].named_modules()
    return {
        name: layer
        for name, layer in modules
        if isinstance(layer, nn.Linear) and layer.weight.dtype in (INT8, NF4)
    }


def with_dequantized_weights(model: Model, plain: Model) -> Model:
    """The plain model with the weights that the quantized one computes with."""
    network = plain.networks["denoiser"]
    with torch.no_grad():
        for name, layer in quantized_layers(model).items():
            network.get_submodule(name).get_parameter("weight").copy_(dequantized_weight(layer))
    return plain


def tensors_of(run: Run) -> dict[str, Tensor]:
    (part,) = (part for part in run.concept.parts if isinstance(part, LoraPart))
    return dict(part.tensors)


def test_nf4_has_the_nearest_of_16_values_in_blocks_of_64() -> None:
    """The largest value of a block is exact, and 0 is."""
    weight = torch.randn(96, 50, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0
    layer = nn.Linear(50, 96)
    values, layer.scale = quantize(weight, NF4)
    layer.weight = nn.Parameter(values, requires_grad=False)
    actual = dequantized_weight(layer)
    assert values.numel() == weight.numel() / 2
    assert not actual[0, :50].any()
    error = float((actual - weight).norm() / weight.norm())
    assert 0.08 < error < 0.1
    largest = weight.flatten()[64:128].abs().max()
    assert largest in actual.flatten()[64:128].abs()


@pytest.mark.long
@precisions
@families
def test_training_is_that_of_the_dequantized_base(
    family: str, precision: Precision, bases: Bases, pictures: Path, tmp_path: Path
) -> None:
    """Losses and LoRAs are equal up to rounding; the control is the base that is not quantized."""
    model = open_base(bases(family), precision=precision)
    assert quantized_layers(model)
    expected = with_dequantized_weights(model, open_base(bases(family)))
    runs = {
        name: train_run(one, lora_recipe(pictures, learning_rate=0.1), tmp_path / name)
        for name, one in (("quantized", model), ("expected", expected))
    }
    plain = train_run(
        open_base(bases(family)), lora_recipe(pictures, learning_rate=0.1), tmp_path / "plain"
    )
    tensors = {name: tensors_of(run) for name, run in runs.items()}
    for name, tensor in tensors["expected"].items():
        assert torch.allclose(tensors["quantized"][name], tensor, rtol=1e-3, atol=1e-4), name
    losses = [[step.losses for step in run.state.steps] for run in (*runs.values(), plain)]
    assert losses[0] != losses[2]


@pytest.mark.long
@precisions
def test_a_run_resumes_exactly(
    precision: Precision, bases: Bases, pictures: Path, tmp_path: Path
) -> None:
    model, recipe = (
        open_base(bases("flux-1"), precision=precision),
        lora_recipe(pictures, learning_rate=0.1),
    )
    whole = train_run(model, recipe, tmp_path / "whole")
    stopped = stopped_run(model, recipe, tmp_path / "stopped")
    resumed = Run.open(stopped.folder)
    for _ in resumed.train(open_base(bases("flux-1"), precision=precision)):
        pass
    other = tensors_of(Run.open(stopped.folder))
    assert all(torch.equal(tensor, other[name]) for name, tensor in tensors_of(whole).items())


@precisions
def test_a_concept_changes_images_and_leaves_the_base(
    precision: Precision, bases: Bases, pictures: Path, tmp_path: Path
) -> None:
    """A merged LoRA has the effect that it has on the dequantized base, up to 8 bits."""
    model = open_base(bases("chroma"), precision=precision)
    expected = with_dequantized_weights(model, open_base(bases("chroma")))
    concept = train_run(model, lora_recipe(pictures, learning_rate=0.1), tmp_path / "run").concept
    before = {name: layer.weight.clone() for name, layer in quantized_layers(model).items()}
    request = GenerationRequest(prompt="a photo of <mytoy>", steps=2)
    (ours,) = generate_images(model, request, [concept])
    (theirs,) = generate_images(expected, request, [concept])
    (plain,) = generate_images(expected, "a photo of ohwx toy")
    error = (ours.latents - theirs.latents).norm()
    assert error < 0.2 * (plain.latents - theirs.latents).norm()
    after = quantized_layers(model)
    assert all(torch.equal(after[name].weight, weight) for name, weight in before.items())
    assert ours.request.precision == precision


@precisions
def test_offloaded_weights_are_the_same_and_small(precision: Precision, bases: Bases) -> None:
    model, plain = open_base(bases("flux-1"), precision=precision), open_base(bases("flux-1"))
    assert model.num_parameters == plain.num_parameters
    before = {name: dequantized_weight(layer) for name, layer in quantized_layers(model).items()}
    stored = sum(layer.weight.nbytes for layer in quantized_layers(model).values())
    count = sum(weight.numel() for weight in before.values())
    assert stored == count // (2 if precision == "nf4" else 1)
    model.offload()
    after = quantized_layers(model)
    assert all(torch.equal(dequantized_weight(after[n]), weight) for n, weight in before.items())


def test_only_quantized_weights_stay_for_the_backward_pass(bases: Bases) -> None:
    layer = next(iter(quantized_layers(open_base(bases("flux-1"), precision="nf4")).values()))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.ones(1, layer.in_features, requires_grad=True)).sum()
    assert not saved


@precisions
def test_what_needs_the_weights_themselves_is_refused(
    precision: Precision, bases: Bases, pictures: Path
) -> None:
    """From the recipe, before a base model is opened, or before class images are generated."""
    model = open_base(bases("z-image"), precision=precision)
    with pytest.raises(ConceptError, match=f"is open in {precision}"):
        FullWeightsAdapter.of(model, "denoiser")
    subject = {"images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    recipe = Recipe.model_validate({"method": "lora", **subject, "precision": precision})
    check_options(recipe)
    TrainingPlan.of(recipe, model, 3)
    kinds = [{"name": "lora", "adapter": kind} for kind in ("dora", "loha", "lokr", "oft")]
    for method in ({"name": "dreambooth"}, *kinds):
        recipe = Recipe.model_validate({"method": method, **subject})
        refusal = f"^{[*method.values()][-1]} cannot be trained on a base model in {precision}"
        with pytest.raises(RecipeError, match=refusal):
            TrainingPlan.of(recipe, model, 3)
        with pytest.raises(RecipeError, match=refusal):
            check_options(recipe.model_copy(update={"precision": precision}))


def test_trained_variants_are_merged(bases: Bases) -> None:
    plain, model = open_base(bases("flux-1")), open_base(bases("flux-1"), precision="nf4")
    for variant in ("dora", "loha", "lokr", "oft"):
        adapter = LoraAdapter.of(plain, "denoiser", LoraConfig(variant, 2, 2.0, "attention"), 0)
        merged = LoraAdapter.restore(adapter.part(), model)
        merged.strength = 1.0
        layer = next(iter(quantized_layers(model).values()))
        before = dequantized_weight(layer)
        with torch.no_grad(), applied(model, [merged]):
            assert torch.allclose(dequantized_weight(layer), before, atol=0.02)
