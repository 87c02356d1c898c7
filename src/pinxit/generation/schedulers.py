# pyright: standard
"""Noise schedulers (samplers) of diffusers behind one small interface."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pinxit.errors import RequestError, did_you_mean
from pinxit.models.noise_schedule import Schedule, ScheduleKind

# By kind of noise schedule; the first is the default.
_CLASSES: dict[ScheduleKind, dict[str, str]] = {
    "diffusion": {
        "ddim": "DDIMScheduler",
        "ddpm": "DDPMScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-a": "EulerAncestralDiscreteScheduler",
        "heun": "HeunDiscreteScheduler",
        "pndm": "PNDMScheduler",
        "unipc": "UniPCMultistepScheduler",
    },
    "flow": {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"},
}
SCHEDULERS = tuple(_CLASSES["diffusion"])

_WITHOUT_SAMPLE_PREDICTION = ("euler-a", "pndm")

# Names of the same schedulers in other programs.
SCHEDULER_ALIASES = {
    **{name: scheduler for scheduler, name in _CLASSES["diffusion"].items()},
    **dict.fromkeys(("dpmpp_2m", "dpm++_2m", "DPM++ 2M"), "dpm++"),
    **dict.fromkeys(("k_euler", "Euler"), "euler"),
    **dict.fromkeys(("euler_a", "k_euler_a", "euler_ancestral"), "euler-a"),
    **dict.fromkeys(("k_euler_ancestral", "Euler a"), "euler-a"),
    **dict.fromkeys(("k_heun", "Heun"), "heun"),
    **dict.fromkeys(("plms", "PLMS"), "pndm"),
    **dict.fromkeys(("uni_pc", "UniPC"), "unipc"),
    **{"DDIM": "ddim", "DDPM": "ddpm"},
}


def scheduler_name(kind: ScheduleKind, name: str | None) -> str:
    """The given scheduler, or the default of this kind; RequestError if there is no such one."""
    classes = _CLASSES[kind]
    if name is not None and name not in classes:
        message = f"unknown scheduler `{name}`"
        if name in SCHEDULERS:
            message = f"the scheduler `{name}` does not work with rectified-flow models"
        raise RequestError(message, did_you_mean(name, classes))
    return name or next(iter(classes))


def make_scheduler(kind: ScheduleKind, name: str | None, config: Mapping[str, object]) -> Any:
    """diffusers' scheduler of that name, or the default of this kind, for a base model's config."""
    import diffusers

    name = scheduler_name(kind, name)
    scheduler = getattr(diffusers, _CLASSES[kind][name])
    _check_supported(scheduler, name, config)
    return scheduler.from_config(dict(config))


def _check_supported(scheduler: Any, name: str, config: Mapping[str, object]) -> None:
    """Raise RequestError if a scheduler would ignore what the base model was trained with."""
    parameters = inspect.signature(scheduler.__init__).parameters
    reason = ""
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in parameters:
        reason = "whose noise schedule ends in pure noise (zero terminal SNR)"
    elif config.get("prediction_type") == "sample" and name in _WITHOUT_SAMPLE_PREDICTION:
        reason = "that predicts the clean image (sample prediction)"
    if reason:
        raise RequestError(
            f"the scheduler `{name}` does not work with a base model {reason}",
            "use --scheduler ddim, ddpm, dpm++ or unipc",
        )


class Sampler:
    """A scheduler for one run from noise to image; it has state, so use each instance once.

    `latent_shape` is the shape (C, H, W) of the latents, on which a schedule may depend.
    """

    def __init__(
        self,
        schedule: Schedule,
        name: str,
        config: Mapping[str, object],
        steps: int,
        latent_shape: Sequence[int],
    ) -> None:
        config = {**config, **schedule.scheduler_config(latent_shape)}
        self._scheduler = make_scheduler(schedule.kind, name, config)
        sigmas, set_timesteps = schedule.sigmas(steps), self._scheduler.set_timesteps
        takes_sigmas = sigmas and "sigmas" in inspect.signature(set_timesteps).parameters
        set_timesteps(steps, **({"sigmas": sigmas} if takes_sigmas else {}))
        self._steps = steps
        parameters = inspect.signature(self._scheduler.step).parameters
        self._takes_generators = "generator" in parameters
        self.timesteps: Tensor = self._scheduler.timesteps

    def scale_initial_noise(self, noise: Tensor) -> Tensor:
        """Unit noise, scaled for the first timestep."""
        return noise * getattr(self._scheduler, "init_noise_sigma", 1.0)

    def noise_image_latents(self, latents: Tensor, noise: Tensor, strength: float) -> Tensor:
        """Image latents with noise added, so that the last `strength` of the steps remain."""
        remaining = max(1, min(int(self._steps * strength), self._steps))
        first = (self._steps - remaining) * self._scheduler.order
        self.timesteps = self._scheduler.timesteps[first:]
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(first)
        return self.add_noise(latents, noise, self.timesteps[0])

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Image latents with the noise of a timestep; call it once for each sampler."""
        if hasattr(self._scheduler, "scale_noise"):
            return self._scheduler.scale_noise(latents, timestep.reshape(1), noise)
        return self._scheduler.add_noise(latents, noise, timestep.reshape(1))

    def scale_model_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents, scaled as the denoiser expects them at this timestep."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        return self._scheduler.scale_model_input(latents, timestep)

    def step(
        self,
        prediction: Tensor,
        timestep: Tensor,
        latents: Tensor,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The latents after one step; row i draws random numbers from `generators[i]` only."""
        options = {"generator": list(generators)} if self._takes_generators else {}
        return self._scheduler.step(prediction, timestep, latents, **options).prev_sample
