# pyright: standard
"""Solvers by the names people know them by: diffusers' schedulers behind four verbs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pinxit.errors import RequestError, did_you_mean
from pinxit.models.noise_schedule import Kind

# By kind of schedule, the one that is taken if none is asked for first.
_CLASSES: dict[Kind, dict[str, str]] = {
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
    "flow": {
        "euler": "FlowMatchEulerDiscreteScheduler",
        "heun": "FlowMatchHeunDiscreteScheduler",
    },
}
SOLVERS = tuple(_CLASSES["diffusion"])


def solver_for(kind: Kind, name: str | None) -> str:
    """The solver's name, the usual one if none is given; RequestError if there is none such."""
    known = _CLASSES[kind]
    if name is not None and name not in known:
        what = f"there is no scheduler `{name}`"
        raise RequestError(
            f"{what} for bases that are a rectified flow" if name in SOLVERS else what,
            did_you_mean(name, known),
        )
    return name or next(iter(known))


class Solver:
    """One walk from noise to a picture; it remembers its last answers, so it is used once."""

    def __init__(self, kind: Kind, name: str, config: Mapping[str, object], steps: int) -> None:
        import diffusers

        scheduler = getattr(diffusers, _CLASSES[kind][solver_for(kind, name)])
        self._scheduler: Any = scheduler.from_config(dict(config))
        self._scheduler.set_timesteps(steps)
        self._steps = steps
        takes = inspect.signature(self._scheduler.step).parameters
        self._takes_generators = "generator" in takes
        self.times: Tensor = self._scheduler.timesteps

    def begin_with_noise(self, noise: Tensor) -> Tensor:
        """Unit noise, as strong as the first time wants it."""
        return noise * getattr(self._scheduler, "init_noise_sigma", 1.0)

    def begin_with_picture(self, latents: Tensor, noise: Tensor, strength: float) -> Tensor:
        """A picture's latents noised so that the last `strength` of the walk is left to do."""
        left = max(1, min(int(self._steps * strength), self._steps))
        first = (self._steps - left) * self._scheduler.order
        self.times = self._scheduler.timesteps[first:]
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(first)
        return self.noised(latents, noise, self.times[0])

    def noised(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """A picture's latents as the walk has them at one of its times, asked for once."""
        if hasattr(self._scheduler, "scale_noise"):
            return self._scheduler.scale_noise(latents, time.reshape(1), noise)
        return self._scheduler.add_noise(latents, noise, time.reshape(1))

    def scaled(self, latents: Tensor, time: Tensor) -> Tensor:
        """The latents as the denoiser wants to see them at this time."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        return self._scheduler.scale_model_input(latents, time)

    def step(
        self, answer: Tensor, time: Tensor, latents: Tensor, draws: Sequence[torch.Generator]
    ) -> Tensor:
        """The latents one step nearer to a picture; picture i draws from `draws[i]` alone."""
        if self._takes_generators:
            return self._scheduler.step(answer, time, latents, generator=list(draws)).prev_sample
        return self._scheduler.step(answer, time, latents).prev_sample
