"""Encoded prompts in batches: equal lengths stay as they are, others are padded with a mask."""

from collections.abc import Callable

import torch
from torch import Tensor

from pinxit.models.conditioning import Conditioning
from pinxit.models.model import LatentNormalization, Model


def conditioning(length: int, value: float) -> Conditioning:
    states = torch.full((2, length, 3), value)
    return Conditioning(states, states[:, 0], more_states=(states * 10,))


def test_equal_lengths_are_stacked_without_a_mask() -> None:
    stacked = Conditioning.stack([conditioning(4, 1.0), conditioning(4, 2.0)])
    assert stacked.mask is None
    assert stacked.states[:, 0, 0].tolist() == [1, 1, 2, 2]
    assert stacked.pooled is not None
    assert stacked.pooled[:, 0].tolist() == [1, 1, 2, 2]
    assert stacked.more_states[0][:, 0, 0].tolist() == [10, 10, 20, 20]


def test_different_lengths_are_padded_to_the_longest_with_a_mask() -> None:
    stacked = Conditioning.stack([conditioning(2, 1.0), conditioning(4, 2.0)])
    again = Conditioning.stack([stacked, conditioning(5, 3.0)])
    assert again.mask is not None
    assert again.mask.sum(1).tolist() == [2, 2, 4, 4, 5, 5]
    for states, scale in ((again.states, 1), (again.more_states[0], 10)):
        assert states[:, :, 0].sum(1).tolist() == [n * scale for n in (2, 2, 8, 8, 15, 15)]
    row = again[1:2].to(torch.float64)
    assert row.mask is not None
    assert row.mask.tolist() == [[1, 1, 0, 0, 0]]
    assert row.more_states[0].dtype == row.mask.dtype == torch.float64


@torch.no_grad()
def test_padding_does_not_change_the_prediction_of_a_unet(
    opened: Callable[[str], Model],
) -> None:
    model = opened("stable-diffusion-1")
    prompt = model.condition(["a dog"])
    longer = Conditioning(torch.cat([prompt.states, prompt.states], 1))
    latents = torch.randn(
        1, model.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0)
    )
    timestep = torch.tensor([500])

    def prediction(given: Conditioning) -> Tensor:
        return model.denoise(latents, timestep, given)

    padded = Conditioning.stack([prompt, longer])[:1]
    unmasked = Conditioning(padded.states)
    assert torch.allclose(prediction(padded), prediction(prompt), atol=1e-5)
    assert not torch.allclose(prediction(unmasked), prediction(prompt), atol=1e-5)


@torch.no_grad()
def test_guidance_moves_away_from_the_negative_prompt(model: Model) -> None:
    positive, negative = model.condition(["a dog"]), model.condition(["a cat"])
    latents = torch.randn(
        1, model.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0)
    )
    timestep = torch.tensor(500)
    toward, away = (model.denoise(latents, timestep, each) for each in (positive, negative))
    guided = model.guided(latents, timestep, Conditioning.stack([negative, positive]), 3.0)
    assert torch.allclose(guided, away + 3 * (toward - away), atol=1e-5)
    assert torch.equal(model.guided(latents, timestep, positive, 1.0), toward)


def test_latents_are_normalized_for_each_channel() -> None:
    scale, shift = torch.tensor([2.0, 4.0])[:, None, None], torch.tensor([1.0, -1.0])[:, None, None]
    normalization = LatentNormalization(scale, shift)
    mean = torch.zeros(1, 2, 1, 1)
    latents = normalization.normalize(mean, mean + 1)
    assert latents.mean.flatten().tolist() == [-2, 4]
    assert latents.std.flatten().tolist() == [2, 4]
    assert torch.equal(normalization.restore(latents.mean), mean)
