"""The noise schedule: how pictures are noised, what the denoiser is asked for, and its weight."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from pinxit.errors import RecipeError

Kind = Literal["diffusion", "flow"]
Prediction = Literal["epsilon", "v_prediction"]


class Schedule(Protocol):
    """The way from pictures to noise, and what a denoiser on it is asked for.

    Times may lie on another device than latents: they are moved to theirs.
    """

    kind: ClassVar[Kind]

    def draw(self, generator: torch.Generator) -> float:
        """A time to train at."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents (B, C, H, W) as they are at the given times (B,)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should answer."""
        ...

    def parted(self, noisy: Tensor, answer: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The latents and the noise that noisy latents are made of, if the answer is right."""
        ...

    def weight(self, times: Tensor, min_snr: float | None) -> Tensor:
        """How much each time counts (B,); RecipeError if min-SNR means nothing here."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """A variance-preserving diffusion: `kept` is the share of signal left at each time, (T,)."""

    kind: ClassVar[Kind] = "diffusion"
    kept: Tensor
    prediction: Prediction = "epsilon"

    def draw(self, generator: torch.Generator) -> int:
        """A time to train at, uniform over all of them (DDPM, algorithm 1)."""
        return int(torch.randint(len(self.kept), (), generator=generator))

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents (B, C, H, W) as they are at the given times (B,)."""
        signal, spread = self._shares(times.to(latents.device))
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should answer: the noise, or the velocity of arXiv:2202.00512."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self._shares(times.to(latents.device))
        return signal * noise - spread * latents

    def parted(self, noisy: Tensor, answer: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The latents and the noise: one of the two is the answer, or both follow from it."""
        signal, spread = self._shares(times.to(noisy.device))
        if self.prediction == "epsilon":
            return (noisy - spread * answer) / signal, answer
        return signal * noisy - spread * answer, signal * answer + spread * noisy

    def weight(self, times: Tensor, min_snr: float | None) -> Tensor:
        """How much each time counts (B,): all alike, or by min-SNR's rule (arXiv:2303.09556)."""
        if min_snr is None:
            return torch.ones_like(times, dtype=torch.float32)
        kept = self.kept.to(times.device)[times]
        ratio = kept / (1 - kept)
        velocity = 1.0 if self.prediction == "v_prediction" else 0.0
        return ratio.clamp(max=min_snr) / (ratio + velocity)

    def _shares(self, times: Tensor) -> tuple[Tensor, Tensor]:
        # Times of some solvers lie between two.
        kept = self.kept.to(times.device)[times.float().round().long()].view(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()


@dataclass(frozen=True)
class Flow:
    """A rectified flow: straight lines from pictures to noise (arXiv:2403.03206).

    Times are shares of noise in thousandths; `shift` moves them towards noise, as large pictures
    need it (section 5.3.2).
    """

    kind: ClassVar[Kind] = "flow"
    shift: float = 1.0
    steps: int = 1000

    def draw(self, generator: torch.Generator) -> float:
        """A time to train at: logit-normal, so that the middle is seen most (section 3.1)."""
        share = float(torch.randn((), generator=generator).sigmoid())
        return self.steps * self.shift * share / (1 + (self.shift - 1) * share)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The point of the line at the given times (B,)."""
        share = self._share(times.to(latents.device))
        return (1 - share) * latents + share * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:  # noqa: ARG002
        """The line's direction, which is the same all along."""
        return noise - latents

    def parted(self, noisy: Tensor, answer: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends of the line through the noisy latents."""
        share = self._share(times.to(noisy.device))
        return noisy - share * answer, noisy + (1 - share) * answer

    def weight(self, times: Tensor, min_snr: float | None) -> Tensor:
        """All times alike: how often they are drawn is their weight."""
        if min_snr is not None:
            raise RecipeError(
                f"min-SNR of {min_snr} is asked for, and the base is a rectified flow",
                "leave --min-snr out: such a base weighs its times by how often they are drawn",
            )
        return torch.ones_like(times, dtype=torch.float32)

    def _share(self, times: Tensor) -> Tensor:
        return (times / self.steps).view(-1, 1, 1, 1)
