"""FLUX.1, Chroma and Z-Image: adapters, runs that go on, many concepts, and the full size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from pinxit.adapters.lora_part import LoraPart
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.models.model import Model
from pinxit.runs.many import train_many
from pinxit.runs.run import Run, train_run
from pinxit.training.train import StepResult
from tests.short_runs import lora_recipe, stopped_run

FAMILIES = {
    "chroma": (diffusers.ChromaTransformer2DModel, {}, 8_899_983_424),
    "flux-1": (diffusers.FluxTransformer2DModel, {"guidance_embeds": True}, 11_901_408_320),
    "z-image": (diffusers.ZImageTransformer2DModel, {}, 6_154_908_736),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
Opened = Callable[[str], Model]


def lora_of(run: Run) -> LoraPart:
    (part,) = (part for part in run.concept.parts if isinstance(part, LoraPart))
    return part


@pytest.mark.long
@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr"])
@every_family
def test_a_run_resumes_exactly_and_its_concept_changes_images(
    family: str, adapter: str, opened: Opened, pictures: Path, tmp_path: Path
) -> None:
    model, recipe = opened(family), lora_recipe(pictures, adapter, learning_rate=0.1)
    whole = train_run(model, recipe, tmp_path / "whole")
    stopped = stopped_run(model, recipe, tmp_path / "stopped")
    steps = [e for e in Run.open(stopped.folder).train(model) if isinstance(e, StepResult)]
    assert [step.number for step in steps] == [3]
    one, other = lora_of(whole), lora_of(Run.open(stopped.folder))
    assert one.variant == adapter
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    request = GenerationRequest(prompt="a photo of <mytoy>", steps=2)
    (plain,) = generate_images(model, "a photo of ohwx toy")
    (image,) = generate_images(model, request, [whole.concept])
    assert image.latents.isfinite().all()
    assert not torch.equal(image.latents, plain.latents)


@pytest.mark.long
@every_family
def test_many_concepts_in_one_batch_are_as_alone(
    family: str, opened: Opened, pictures: Path, tmp_path: Path
) -> None:
    model = opened(family)
    recipes = {name: lora_recipe(pictures, token=f"<my{name}>") for name in ("toy", "bear")}
    alone = [lora_of(train_run(model, recipe, tmp_path / n)) for n, recipe in recipes.items()]
    together = [Run.create(tmp_path / f"{name}2", recipe) for name, recipe in recipes.items()]
    for _ in train_many(model, together):
        pass
    for one, run in zip(alone, together, strict=True):
        other = lora_of(Run.open(run.folder))
        for name, tensor in one.tensors.items():
            assert torch.allclose(tensor, other.tensors[name], atol=2e-4)
    assert not all(
        torch.allclose(tensor, alone[1].tensors[name], atol=2e-4)
        for name, tensor in alone[0].tensors.items()
    )


@every_family
def test_the_full_size_has_the_published_number_of_parameters(family: str, opened: Opened) -> None:
    kind, config, count = FAMILIES[family]
    with torch.device("meta"):
        network: Any = kind(**config)
    assert sum(weight.numel() for weight in network.parameters()) == count
    linear = [name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)]
    model = opened(family)
    blocks = [name for name in linear if name.split(".")[0] in {n for n, _ in _blocks(network)}]
    transformer = model.layer_pattern("denoiser", "all")
    assert [name for name in linear if transformer.search(name)] == blocks
    attention = [n for n in blocks if model.layer_pattern("denoiser", "attention").search(n)]
    assert 0 < len(attention) < len(blocks)


def _blocks(network: Any) -> list[tuple[str, Any]]:
    lists = (item for item in network.named_children())
    return [(name, part) for name, part in lists if isinstance(part, torch.nn.ModuleList)]
