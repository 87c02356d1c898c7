"""Styles by textual inversion: half of the style is in the negative prompt, too."""

import pytest
import torch
from torch import Tensor

from pinxit.adapters.adapter import applied
from pinxit.adapters.kinds.embedding import EmbeddingAdapter
from pinxit.adapters.kinds.lora import LoraAdapter
from pinxit.adapters.lora_part import LoraConfig
from pinxit.concepts.concept import Concept
from pinxit.concepts.metadata import Provenance
from pinxit.generation.controls.same_seed import SameSeed
from pinxit.generation.request import GenerationRequest
from pinxit.generation.sample import generate_images
from pinxit.generation.style_guidance import styled_negative_prompt
from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model

STYLED = "a dog in the style of <ink>"


def ink(model: Model) -> EmbeddingAdapter:
    width = model.text_encoders["text"].width
    return EmbeddingAdapter("<ink>", "painting", {"text": torch.linspace(-1, 1, width)[None]})


@pytest.mark.parametrize(
    ("prompt", "negative", "expected"),
    [
        (STYLED, "", "a picture, in the style of <ink>"),
        ("a dog, In the Style of (<INK>:0.8)", "", "a picture, in the style of <INK>"),
        (STYLED, "blurry", "blurry, in the style of <ink>"),
        (STYLED, "[<ink>]", ""),
        ("a photo of <ink>", "", ""),
        ("a dog in the style of <inks>", "", ""),
        ("a dog in the style of Monet", "", ""),
    ],
)
def test_the_negative_prompt_has_the_style(
    model: Model, prompt: str, negative: str, expected: str
) -> None:
    request = GenerationRequest(prompt=prompt, negative_prompt=negative)
    with applied(model, [ink(model)]):
        assert styled_negative_prompt(model, request) == expected


def test_not_with_an_adapter_that_changes_weights(model: Model) -> None:
    lora = LoraAdapter.of(model, "denoiser", LoraConfig("lora", 1, 1.0, "attention"), 0)
    with applied(model, [ink(model), lora]):
        assert styled_negative_prompt(model, GenerationRequest(prompt=STYLED)) == ""


def test_not_on_a_large_base_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinxit.generation.style_guidance.SMALL", model.num_parameters)
    with applied(model, [ink(model)]):
        assert styled_negative_prompt(model, GenerationRequest(prompt=STYLED)) == ""


def test_guidance_goes_from_both_negative_prompts(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Conditioning] = []
    denoise = type(model).denoise

    def watch(
        self: Model, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        shown.append(conditioning)
        return denoise(self, latents, timesteps, conditioning)

    monkeypatch.setattr(type(model), "denoise", watch)
    concept = Concept((ink(model).part(),), Provenance("<ink>", "", "", "", "", 1, {}, ""))
    request = GenerationRequest(prompt=STYLED, steps=1, controls=(SameSeed(),))
    generate_images(model, request, [concept])
    with applied(model, [ink(model)]):
        texts = ["", "a picture, in the style of <ink>", STYLED, "a dog"]
        plain, style, prompt, source = model.condition(texts, request.prompt_parsing).states
    rows = torch.stack([(plain + style) / 2, plain, prompt, source])
    assert torch.allclose(shown[0].states, rows)
    assert not torch.allclose(plain, style)
