"""The noise schedule: how pictures are noised, what the denoiser is asked for, and its weight."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Schedule:
    """A variance-preserving diffusion: `kept` is the share of signal left at each time, (T,)."""

    kept: Tensor
    prediction: Prediction = "epsilon"

    def draw(self, generator: torch.Generator) -> int:
        """A time to train at, uniform over all of them (DDPM, algorithm 1)."""
        return int(torch.randint(len(self.kept), (), generator=generator))

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents (B, C, H, W) as they are at the given times (B,)."""
        signal, spread = self._shares(times)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should answer: the noise, or the velocity of arXiv:2202.00512."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self._shares(times)
        return signal * noise - spread * latents

    def weight(self, times: Tensor, min_snr: float | None) -> Tensor:
        """How much each time counts (B,): all alike, or by min-SNR's rule (arXiv:2303.09556)."""
        if min_snr is None:
            return torch.ones_like(times, dtype=torch.float32)
        kept = self.kept.to(times.device)[times]
        ratio = kept / (1 - kept)
        velocity = 1.0 if self.prediction == "v_prediction" else 0.0
        return ratio.clamp(max=min_snr) / (ratio + velocity)

    def _shares(self, times: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.kept.to(times.device)[times].view(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()
