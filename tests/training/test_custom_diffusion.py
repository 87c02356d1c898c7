"""Custom Diffusion: which weights are trained, and that training and generation use the same."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit import registry
from pinxit.adapters.adapter import applied
from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.kinds.weight_difference import WeightDifference
from pinxit.adapters.parts import EmbeddingPart
from pinxit.cli import main
from pinxit.concepts.lora_tools import merge_loras
from pinxit.concepts.read import ConceptReference, read_concept
from pinxit.errors import PinxitError, RecipeError
from pinxit.models.model import Model
from pinxit.runs.file_names import result_file
from pinxit.runs.run import Run, train_run
from pinxit.training.concept_trainer import ConceptTrainer
from pinxit.training.plan import TrainingPlan
from pinxit.training.recipe import Recipe

# z-image has no text encoder for embeddings.
FAMILIES = [name for name in registry.names("families") if name != "z-image"]


def recipe(pictures: Path, steps: int = 2, **options: Any) -> Recipe:
    method = {"name": "custom-diffusion", "class_images": 0, **options}
    subject = {"method": method, "images": pictures, "token": "<mytoy>", "class_noun": "toy"}
    return Recipe.model_validate({**subject, "steps": steps, "batch_size": 2, "preview_every": 0})


def trainer(model: Model, pictures: Path) -> ConceptTrainer:
    own = recipe(pictures)
    images = own.read_images()
    return ConceptTrainer(model, TrainingPlan.of(own, model, len(images)), images)


@pytest.mark.parametrize("base", ["nano", *FAMILIES])
def test_the_keys_and_values_of_the_text_are_trained(
    base: str, opened: Callable[[str], Model], pictures: Path
) -> None:
    model = opened(base)
    embedding, difference = trainer(model, pictures).adapters
    assert isinstance(difference, WeightDifference)
    # By the names of diffusers: attn2 is cross-attention in U-Nets, add_ is of the text elsewhere.
    layers = {n for n, _ in model.networks["denoiser"].named_modules()}
    is_unet = base in ("nano", *(name for name in FAMILIES if name.startswith("stable")))
    is_unet = is_unet and base != "stable-diffusion-3"
    of_text = ("attn2.to_k", "attn2.to_v") if is_unet else (".add_k_proj", ".add_v_proj")
    expected = {name for name in layers if name.endswith(of_text)}
    assert expected
    assert set(difference.weights()) == {f"{name}.weight" for name in expected}
    assert set(embedding.weights()) == set(model.text_encoders)


def test_training_and_generation_use_weights_with_the_difference(
    model: Model, pictures: Path
) -> None:
    _, difference = trainer(model, pictures).adapters
    assert isinstance(difference, WeightDifference)
    noise = torch.randn(2, model.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([100, 800])
    conditioning = model.condition(["a dog", "a red toy"])
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        plain = model.denoise(noise, times, conditioning)
        with applied(model, [difference]):
            assert torch.equal(model.denoise(noise, times, conditioning), plain)
        for weight in difference.weights().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draws))
        with applied(model, [difference]):
            training = model.denoise(noise, times, conditioning)
        with applied(model, [WeightDifference.restore(difference.part(), model)]):
            generation = model.denoise(noise, times, conditioning)
        network = copy.deepcopy(model.networks["denoiser"])
        for name, weight in difference.weights().items():
            network.get_parameter(name).add_(weight)
        oracle = network(noise, times, conditioning.states).sample
    assert (training - plain).abs().max() > 1e-3
    assert torch.allclose(training, oracle, atol=1e-5)
    assert torch.allclose(generation, oracle, atol=1e-5)


def test_a_run_resumes_exactly_and_its_concept_is_converted(
    model: Model, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {n: w.clone() for n, w in model.networks["denoiser"].state_dict().items()}
    whole = train_run(model, recipe(pictures, 3), tmp_path / "whole")
    train_run(model, recipe(pictures, 2), tmp_path / "part")
    for _ in Run.open(tmp_path / "part", 3).train(model):
        pass
    file = result_file(whole.folder)
    one, other = read_concept(file), read_concept(result_file(tmp_path / "part"))
    embedding, difference = one.parts
    assert isinstance(embedding, EmbeddingPart)
    assert isinstance(difference, DifferencePart)
    assert all(tensor.any() for tensor in difference.tensors.values())
    for part, again in zip(one.parts, other.parts, strict=True):
        assert all(torch.equal(part.tensors[name], again.tensors[name]) for name in part.tensors)
    after = model.networks["denoiser"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert main(["convert", str(file), str(tmp_path / "kohya.safetensors")]) == 0
    assert "--separate-embeddings writes the token" in capfd.readouterr().err
    kohya = read_concept(tmp_path / "kohya.safetensors")
    (stored,) = [part for part in kohya.parts if isinstance(part, DifferencePart)]
    assert all(torch.equal(stored.tensors[n], t) for n, t in difference.tensors.items())


def test_several_concepts_are_merged_into_one_file(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    runs = [
        train_run(
            model, recipe(pictures).model_copy(update={"token": token}), tmp_path / token[1:3]
        )
        for token in ("<one>", "<two>")
    ]
    files = [result_file(run.folder) for run in runs]
    merged, _ = merge_loras([ConceptReference(file) for file in files])
    assert merged.tokens == ["<one>", "<two>"]
    (difference,) = [part for part in merged.parts if isinstance(part, DifferencePart)]
    one, two = (read_concept(file).parts[1].tensors for file in files)
    assert all(torch.equal(t, one[n] + two[n]) for n, t in difference.tensors.items())


@pytest.mark.parametrize("option", [{"train_text_encoder": True}, {"rare_token": "qf"}])
def test_options_without_an_effect_are_refused(
    option: dict[str, Any], model: Model, pictures: Path
) -> None:
    with pytest.raises(RecipeError, match="custom-diffusion"):
        TrainingPlan.of(recipe(pictures, **option), model, 3)


def test_a_base_without_text_encoders_is_refused(
    opened: Callable[[str], Model], pictures: Path
) -> None:
    with pytest.raises(PinxitError, match="lora") as error:
        trainer(opened("z-image"), pictures)
    assert re.search("text encoder", str(error.value))
