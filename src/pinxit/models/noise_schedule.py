"""Noise schedules: adding noise to latents, the training target and the loss weight."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from pinxit.errors import ModelError, RecipeError

ScheduleKind = Literal["diffusion", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample"]


class Schedule(ABC):
    """The noise schedule of a base model and the training target of its denoiser.

    Timesteps may be on another device than the latents; they are moved to the latents' device.
    """

    kind: ClassVar[ScheduleKind]

    @property
    @abstractmethod
    def noisiest(self) -> float:
        """The timestep with the most noise."""

    @abstractmethod
    def sample_timestep(self, generator: torch.Generator, latent_shape: Sequence[int]) -> float:
        """A random timestep for training with latents (C, H, W), whose size it may depend on."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, H, W) at timesteps (B,)."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target of the denoiser (B, C, H, W)."""

    @abstractmethod
    def predict_clean_and_noise(
        self, noisy: Tensor, prediction: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that follow from the denoiser's prediction."""

    @abstractmethod
    def loss_weight(self, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
        """The loss weight of each timestep (B,).

        Raises RecipeError if min-SNR is not defined for this schedule.
        """

    def scheduler_config(self, latent_shape: Sequence[int]) -> Mapping[str, object]:  # noqa: ARG002
        """The values of a scheduler's config that depend on the latents' shape (C, H, W)."""
        return {}

    def sigmas(self, steps: int) -> list[float] | None:  # noqa: ARG002
        """The noise level of each sampling step before the shift; None for the scheduler's own."""
        return None


@dataclass(frozen=True)
class Diffusion(Schedule):
    """A variance-preserving diffusion. `alphas_cumprod` is the signal's variance, (T,)."""

    kind: ClassVar[ScheduleKind] = "diffusion"
    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        values = self.alphas_cumprod
        _check(bool(((values >= 0) & (values <= 1)).all()), "its betas must be from 0 to 1")

    @property
    def noisiest(self) -> int:
        """The last timestep."""
        return len(self.alphas_cumprod) - 1

    def sample_timestep(self, generator: torch.Generator, latent_shape: Sequence[int]) -> int:  # noqa: ARG002
        """A uniformly distributed timestep (DDPM, algorithm 1)."""
        return int(torch.randint(len(self.alphas_cumprod), (), generator=generator))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, H, W) at timesteps (B,)."""
        signal, sigma = self._signal_and_noise_scale(timesteps.to(latents.device))
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target: noise, clean latents, or the velocity of arXiv:2202.00512."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        signal, sigma = self._signal_and_noise_scale(timesteps.to(latents.device))
        return signal * noise - sigma * latents

    def predict_clean_and_noise(
        self, noisy: Tensor, prediction: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that follow from the denoiser's prediction."""
        signal, sigma = self._signal_and_noise_scale(timesteps.to(noisy.device))
        if self.prediction == "epsilon":
            return (noisy - sigma * prediction) / signal, prediction
        if self.prediction == "sample":
            return prediction, (noisy - signal * prediction) / sigma
        return signal * noisy - sigma * prediction, signal * prediction + sigma * noisy

    def loss_weight(self, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
        """The loss weight of each timestep (B,): 1, or the min-SNR weight (arXiv:2303.09556)."""
        if min_snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = alphas_cumprod / (1 - alphas_cumprod)
        clamped = snr.clamp(max=min_snr_gamma)
        if self.prediction == "sample":
            return clamped
        return clamped / (snr + (1.0 if self.prediction == "v_prediction" else 0.0))

    def _signal_and_noise_scale(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        # Some samplers use timesteps between two integers.
        indices = timesteps.float().round().long()
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[indices].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


@dataclass(frozen=True)
class TokenShift:
    """A shift that grows exponentially with the number of tokens of an image.

    Its logarithm is linear: `slope` for each token, and `intercept` for none. A token is a square
    of `patch_size` x `patch_size` latent positions.
    """

    slope: float
    intercept: float
    patch_size: int

    def __post_init__(self) -> None:
        _check(math.isfinite(self.slope + self.intercept), "its shifts must be finite")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], patch_size: int) -> Self:
        """The shift that a scheduler's config describes by two numbers of tokens."""
        tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        shifts = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0])
        return cls(slope, shifts[0] - slope * tokens[0], patch_size)

    def of(self, latent_shape: Sequence[int]) -> float:
        """The shift for latents (C, H, W)."""
        tokens = latent_shape[-2] * latent_shape[-1] // self.patch_size**2
        return math.exp(self.slope * tokens + self.intercept)


@dataclass(frozen=True)
class Flow(Schedule):
    """A rectified flow: straight lines from data to noise (arXiv:2403.03206).

    A timestep is the fraction of noise times `steps`. `shift` moves timesteps towards noise, which
    large images need (section 5.3.2); it may depend on the number of tokens. Sampling starts from
    pure noise, with `even_steps` in equal steps down to 1 / their number, before the shift.
    """

    kind: ClassVar[ScheduleKind] = "flow"
    shift: float | TokenShift = 1.0
    steps: int = 1000
    even_steps: bool = False

    def __post_init__(self) -> None:
        is_number = isinstance(self.shift, TokenShift) or 0 < self.shift < math.inf
        _check(is_number, "its shift must be a number above 0")

    @property
    def noisiest(self) -> float:
        """The timestep of pure noise."""
        return float(self.steps)

    def sample_timestep(self, generator: torch.Generator, latent_shape: Sequence[int]) -> float:
        """A logit-normally distributed timestep: the middle is the most frequent (section 3.1).

        It is shifted as in sampling.
        """
        fraction = float(torch.randn((), generator=generator).sigmoid())
        shift = self._shift(latent_shape)
        return self.steps * shift * fraction / (1 + (shift - 1) * fraction)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (B, C, H, W) at timesteps (B,)."""
        fraction = self._noise_fraction(timesteps.to(latents.device))
        return (1 - fraction) * latents + fraction * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:  # noqa: ARG002
        """The training target: the direction of the line, the same at all timesteps."""
        return noise - latents

    def predict_clean_and_noise(
        self, noisy: Tensor, prediction: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that follow from the denoiser's prediction."""
        fraction = self._noise_fraction(timesteps.to(noisy.device))
        return noisy - fraction * prediction, noisy + (1 - fraction) * prediction

    def loss_weight(self, timesteps: Tensor, min_snr_gamma: float | None) -> Tensor:
        """1 for each timestep (B,); RecipeError if min-SNR is requested."""
        if min_snr_gamma is not None:
            raise RecipeError(
                f"min-SNR loss weighting (gamma {min_snr_gamma}) does not work with a rectified "
                "flow model",
                "leave --min-snr-gamma out: flow models weight timesteps by how often they are "
                "sampled",
            )
        return torch.ones_like(timesteps, dtype=torch.float32)

    def scheduler_config(self, latent_shape: Sequence[int]) -> Mapping[str, object]:
        """The shift for latents (C, H, W), if it depends on their size."""
        if isinstance(self.shift, TokenShift):
            return {"shift": self._shift(latent_shape), "use_dynamic_shifting": False}
        return {}

    def sigmas(self, steps: int) -> list[float] | None:
        """The noise level of each sampling step before the shift; None for the scheduler's own."""
        return [1 - step / steps for step in range(steps)] if self.even_steps else None

    def _shift(self, latent_shape: Sequence[int]) -> float:
        return self.shift.of(latent_shape) if isinstance(self.shift, TokenShift) else self.shift

    def _noise_fraction(self, timesteps: Tensor) -> Tensor:
        return (timesteps / self.steps).view(-1, 1, 1, 1)


def _check(is_valid: bool, rule: str) -> None:
    """Raise ModelError unless the numbers of a scheduler's config follow a rule."""
    if not is_valid:
        raise ModelError(f"the scheduler is invalid: {rule}", "copy or download it again")
