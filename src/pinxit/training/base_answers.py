"""What the base model predicts while it denoises its own images: targets that preserve it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinxit.models.conditioning import Conditioning
from pinxit.models.model import Model

LENGTH = 8  # samples from one denoising trajectory


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
def trajectories(
    model: Model,
    conditioning: Conditioning,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
) -> Iterator[list[BaseAnswer]]:
    """Answers from denoising trajectories, one for each generator: a list for each of their steps.

    No class image is needed: the noisy latents are those of the base model's own images, denoised
    in `LENGTH` steps without guidance. The timesteps are drawn as for training; `shape` is that of
    the latents.
    """
    schedule, device = model.schedule, model.device
    drawn = [[schedule.sample_timestep(rng, shape) for _ in range(LENGTH)] for rng in generators]
    times = [sorted(some, reverse=True) for some in drawn]
    noisy = torch.stack([torch.randn(*shape, generator=rng) for rng in generators]).to(device)
    timesteps = torch.full((len(generators),), schedule.noisiest, device=device)
    for place in range(LENGTH + 1):
        answers = model.denoise(noisy, timesteps, conditioning)
        if place:
            pairs = zip(*(t.to(model.placement.dtype).cpu() for t in (noisy, answers)), strict=True)
            yield [
                BaseAnswer(one, answer, some[place - 1])
                for (one, answer), some in zip(pairs, times, strict=True)
            ]
        if place < LENGTH:
            clean, noise = schedule.predict_clean_and_noise(noisy, answers, timesteps)
            timesteps = torch.tensor([some[place] for some in times], device=device)
            noisy = schedule.add_noise(clean, noise, timesteps)
