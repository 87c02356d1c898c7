"""Pipelines made of models, and models made of pipelines, generate the same images."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pinxit.concepts.concept import Concept
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError, ModelError
from pinxit.generation.sample import generate_images, opened_request
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.runs.run import train_run
from pinxit.training.recipe import Recipe
from tests.oracle.test_families import with_masked_padding

TOLERANCE = 1e-4
PROMPT = "a photo of <mine> on the beach"


@pytest.fixture(scope="module")
def trained(
    opened: Callable[[str], Model], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Concept]:
    """The concept of a few steps of a method on a family."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("trained")
    (folder / "images").mkdir()
    Image.new("RGB", (40, 48), "crimson").save(folder / "images" / "1.png")

    @cache
    def train(family: str, method: str) -> Concept:
        options = {"num_vectors": 2} if method == "textual-inversion" else {}
        if method == "dreambooth":
            options = {"class_images": 0}
        recipe = Recipe.model_validate(
            {
                "method": {"name": method, **options},
                "images": folder / "images",
                "token": "<mine>",
                "class_noun": "dog",
                "steps": 2,
                "learning_rate": 0.1,
                "preview_every": 0,
            }
        )
        return read_concept(train_run(opened(family), recipe, folder / family / method).folder)

    return train


def latents(model: Model, concepts: list[Concept], prompt: str = PROMPT) -> torch.Tensor:
    request, _ = opened_request(prompt, [], steps=4, seed=3, guidance_scale=4)
    (image,) = generate_images(model, request, concepts)
    return image.latents


def pipeline_latents(pipeline: Any, prompt: str = PROMPT, **changes: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "latent"}
    return pipeline(prompt, generator=generator, **(options | changes)).images[0]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("method", ["textual-inversion", "lora", "dreambooth"])
@pytest.mark.parametrize("family", ["nano", "stable-diffusion-xl"])
def test_a_pipeline_generates_the_same_image(
    opened: Callable[[str], Model], trained: Callable[[str, str], Concept], family: str, method: str
) -> None:
    model, concept = opened(family), trained(family, method)
    result = latents(model, [concept])
    assert error(pipeline_latents(model.to_pipeline([concept])), result) <= TOLERANCE
    # The comparison sees whether the concept has an effect, and the model is as before.
    other = latents(model, [], PROMPT.replace("<mine>", "dog"))
    assert error(other, result) > TOLERANCE
    plain = pipeline_latents(model.to_pipeline(), PROMPT.replace("<mine>", "dog"))
    assert error(plain, other) <= TOLERANCE


@pytest.mark.long
def test_two_concepts_in_one_pipeline(model: Model, trained: Callable[[str, str], Concept]) -> None:
    first, second = trained("nano", "textual-inversion"), trained("nano", "lora")
    renamed = replace(
        first,
        parts=tuple(replace(part, token="<other>") for part in first.parts),
        provenance=replace(first.provenance, token="<other>"),
    )
    prompt = "a photo of <other> and <mine>"
    concepts = [renamed, second.with_strength(0.5)]
    pipeline = model.to_pipeline(concepts)
    assert error(pipeline_latents(pipeline, prompt), latents(model, concepts, prompt)) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("family", ["chroma", "flux-1", "z-image"])
def test_pipelines_of_transformers_generate_the_same_image(
    opened: Callable[[str], Model], trained: Callable[[str, str], Concept], family: str
) -> None:
    """With the token of a LoRA where CLIP and T5 read the prompt; a language model has no tokens.

    Z-Image's pipeline counts guidance from 0.
    """
    model, concept = opened(family), trained(family, "lora")
    concepts = [] if family == "z-image" else [concept]
    prompt = PROMPT if concepts else PROMPT.replace("<mine>", "dog")
    options = {"width": 32, "height": 32, "guidance_scale": 4.0 if concepts else 3.0}
    pipeline = model.to_pipeline(concepts)
    if family == "chroma":
        with_masked_padding(pipeline)
    packed = pipeline_latents(pipeline, prompt, **options)
    theirs = pipeline._unpack_latents(packed[None], 32, 32, 8)[0] if concepts else packed
    request, _ = opened_request(prompt, [], steps=4, seed=3, guidance_scale=4, width=32)
    (ours,) = generate_images(model, request, concepts)
    assert error(theirs, ours.latents) <= TOLERANCE
    (other,) = generate_images(model, request.model_copy(update={"prompt": "a cat"}))
    assert error(theirs, other.latents) > TOLERANCE
    if not concepts:
        with pytest.raises(ConceptError, match="no placeholder tokens such as <mine>"):
            model.to_pipeline([concept])


def test_a_pipeline_without_placeholder_tokens_refuses_them(
    opened: Callable[[str], Model], trained: Callable[[str, str], Concept]
) -> None:
    model = opened("stable-diffusion-3")
    pipeline = model.to_pipeline()
    plain = PROMPT.replace("<mine>", "dog")
    assert error(pipeline_latents(pipeline, plain), latents(model, [], plain)) <= TOLERANCE
    with pytest.raises(ConceptError, match="no placeholder tokens such as <mine>"):
        model.to_pipeline([trained("stable-diffusion-3", "textual-inversion")])


@pytest.mark.parametrize(
    "family",
    [
        "nano",
        "stable-diffusion-2",
        "stable-diffusion-xl",
        "stable-diffusion-3",
        "chroma",
        "flux-1",
        "z-image",
    ],
)
def test_a_model_of_a_pipeline_generates_the_same_image(
    opened: Callable[[str], Model], family: str
) -> None:
    model = opened(family)
    copied = Model.from_pipeline(model.to_pipeline())
    plain = PROMPT.replace("<mine>", "dog")
    expected = latents(model, [], plain)
    assert error(latents(copied, [], plain), expected) <= TOLERANCE
    copied.offload()  # weights are then read from the pipeline again
    assert error(latents(copied, [], plain), expected) <= TOLERANCE


def test_an_unusable_pipeline_is_an_error(nano: Path, model: Model) -> None:
    with pytest.raises(ModelError, match="not a diffusers pipeline"):
        Model.from_pipeline(nano)
    pipeline = model.to_pipeline()
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]))
    with pytest.raises(ModelError, match="LoRAs that are not fused"):
        Model.from_pipeline(pipeline)
    with pytest.raises(ModelError, match="int8"):
        open_int8(nano).to_pipeline()


def open_int8(nano: Path) -> Model:
    model = open_base(nano)
    model.placement = replace(model.placement, precision="int8")
    return model
