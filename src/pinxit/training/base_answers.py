"""What the base model predicts on its own ways from noise to images: targets that preserve it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model

WAY = 8  # samples on one way from noise to an image


@dataclass(frozen=True)
class BaseAnswer:
    """Noisy latents (C, H, W) and the base model's prediction for them, on the CPU."""

    noisy: Tensor
    answer: Tensor
    timestep: float

    def clean_and_noise(self, model: Model) -> tuple[Tensor, Tensor]:
        """The latents and the noise that the noisy latents consist of, by the prediction."""
        timesteps = torch.tensor([self.timestep])
        parts = self.noisy[None].float(), self.answer[None].float()
        clean, noise = model.schedule.predict_clean_and_noise(*parts, timesteps)
        return clean[0], noise[0]


@torch.no_grad()
def ways(
    model: Model,
    conditioning: Conditioning,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
) -> Iterator[list[BaseAnswer]]:
    """Answers on ways from noise to images, one way for each generator; `WAY` lists of one each.

    No class image is needed: the base model comes by the noisy latents of its own images, in few
    steps without guidance. The timesteps are drawn as for training; `shape` is that of the latents.
    """
    schedule, device = model.schedule, model.device
    drawn = [[schedule.sample_timestep(rng, shape) for _ in range(WAY)] for rng in generators]
    times = [sorted(some, reverse=True) for some in drawn]
    noisy = torch.stack([torch.randn(*shape, generator=rng) for rng in generators]).to(device)
    timesteps = torch.full((len(generators),), schedule.noisiest, device=device)
    for place in range(WAY + 1):
        answers = model.denoise(noisy, timesteps, conditioning)
        if place:
            kept = zip(*(t.to(model.placement.dtype).cpu() for t in (noisy, answers)), strict=True)
            yield [
                BaseAnswer(one, answer, some[place - 1])
                for (one, answer), some in zip(kept, times, strict=True)
            ]
        if place < WAY:
            clean, noise = schedule.predict_clean_and_noise(noisy, answers, timesteps)
            timesteps = torch.tensor([some[place] for some in times], device=device)
            noisy = schedule.add_noise(clean, noise, timesteps)
