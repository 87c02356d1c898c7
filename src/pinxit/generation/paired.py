"""Controls with a source branch: another image that is denoised alongside each generated one."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from pinxit.adapters.adapter import before_denoise
from pinxit.adapters.attention_sharing import AttentionSharing, shared_layers
from pinxit.generation.control import PRESERVE, Control, ControlHooks, SamplingContext
from pinxit.generation.schedulers import Sampler
from pinxit.options import Option

_LAYOUT = ("queries-keys", "decoder-features")  # layer groups that hold the layout of an image


def ddim_inversion(
    context: SamplingContext, path: Path
) -> Generator[Tensor, None, tuple[Tensor, list[Tensor]]]:
    """The latents of an image, and its own noise: DDIM inversion (arXiv:2105.05233, F).

    Yields the latents after each step into the noise. Returns the clean latents, (1, C, H, W), and
    the noise at every timestep.
    """
    model, clean = context.model, context.model.encode(context.pixels(path)).mean
    schedule, latents = model.schedule, clean
    previous, noises = torch.zeros(1, device=model.device), dict[float, Tensor]()
    zeros = torch.zeros_like(clean)
    for timestep in context.timesteps.to(model.device).unique():  # upwards; some repeat timesteps
        before_denoise(model, timestep.view(1))
        prediction = model.denoise(latents, timestep, context.conditioning)
        parts = schedule.predict_clean_and_noise(latents, prediction, previous)
        previous = timestep.view(1)
        latents = schedule.add_noise(*parts, previous)
        # The noise that turns the clean image into the same latents; it holds for any sampler.
        noise_part = latents - schedule.add_noise(clean, zeros, previous)
        noises[float(timestep)] = noise_part / schedule.add_noise(zeros, zeros + 1, previous)
        yield latents
    return clean, [noises[float(timestep)] for timestep in context.timesteps]


class SourceBranch(ControlHooks):
    """A source image that is denoised alongside each image, freely or along a trajectory.

    In the first `copied` steps the images are copies of it, or of `copies`, its latents under other
    noise. In the steps of `shared`, attention of the source replaces that of the image in
    `layer_groups`; where a trajectory is followed, the deviations of the source from it are also
    added to the image (direct inversion, arXiv:2310.01506; edit-friendly inversion, 2304.06140).
    """

    def __init__(
        self,
        context: SamplingContext,
        layer_groups: Sequence[str],
        shared: range,
        trajectory: Sequence[Tensor] | None = None,
        copied: int | None = None,
        copies: Sequence[Tensor] | None = None,
    ) -> None:
        branches, num_samples = context.num_branches, len(context.seeds)
        self._sharing = AttentionSharing(layer_groups, context.branch, branches, num_samples)
        self.adapters = (self._sharing,)
        self._shared = shared
        self._trajectory = trajectory
        self._copied = copied
        self._copies = copies or trajectory
        self._context = context

    @classmethod
    def for_preserve(
        cls,
        context: SamplingContext,
        preserve: float,
        trajectory: Sequence[Tensor] | None = None,
        copies: Sequence[Tensor] | None = None,
    ) -> Self:
        """Queries, keys and features shared as long as `preserve` (0 to 1) asks for.

        Up to 0.5, attention is shared for more and more steps, at most half of them. Above 0.5,
        the first steps copy the source latents too.
        """
        steps = len(context.timesteps)
        copied = round(max(0, 2 * preserve - 1) ** 2 * steps)
        last = round((copied + steps) / 2) if preserve > 0.5 else round(preserve * steps)
        return cls(context, _LAYOUT, range(copied, last), trajectory, copied, copies)

    def initial_latents(self, sampler: Sampler) -> Tensor | None:  # noqa: ARG002
        """The first latents that the images copy, if they copy any; None means noise."""
        return None if self._copies is None or self._copied is None else self._copies[0]

    def source_latents(self, latents: Tensor) -> Tensor:
        """The first latents of the trajectory, or those of the images without one."""
        return latents if self._trajectory is None else self._trajectory[0]

    def before_step(self, step: int, latents: Tensor) -> Tensor:
        """Turn attention sharing on or off for this step."""
        self._sharing.enabled = step in self._shared
        return latents

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        """Return the source branch to its trajectory."""
        branches = self._context.split_branches(latents)
        image, source = branches[0], branches[self._context.branch]  # views
        if self._trajectory is not None:
            deviation = self._trajectory[step + 1] - source
            source.copy_(self._trajectory[step + 1])
            if self._copied is not None and step in self._shared:
                image += deviation
        if self._copied is not None and step < self._copied:
            image.copy_(source if self._copies is None else self._copies[step + 1])
        return branches.flatten(0, 1)


class PairedControl(Control):
    """A control with a source branch, unless `preserve` is 0."""

    shares: ClassVar[Sequence[str]] = _LAYOUT

    preserve: float = PRESERVE
    source_prompt: str | None = Option(
        None, aliases=("shows",), default_is="the prompt without placeholder tokens"
    )
    """prompt that describes the source image"""

    def source_branch_prompt(self, plain_prompt: str) -> str | None:
        """The prompt that describes the source image."""
        return (self.source_prompt or plain_prompt) if self.preserve else None

    def prepare(self, context: SamplingContext) -> Generator[Tensor, None, ControlHooks]:
        """Prepare the source branch; nothing if nothing is preserved."""
        if not self.preserve:
            return ControlHooks()
        shared_layers(context.model, self.shares)  # fails before an extra pass
        return (yield from self._prepare(context))

    @abstractmethod
    def _prepare(self, context: SamplingContext) -> Generator[Tensor, None, SourceBranch]:
        """The source branch; yields latents after each step of an extra pass."""
