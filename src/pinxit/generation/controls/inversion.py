"""inversion: find the noise that leads to the source image and share its layout."""

from collections.abc import Generator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pinxit.generation.control import ChangedWeights, ImageControl, SamplingContext
from pinxit.generation.paired import PairedControl, SourceBranch, ddim_inversion
from pinxit.options import Option

InitialNoise = Literal["inverted", "normalized", "random"]
# Weights trained on a style do not predict the colours of a photo: the error goes into the noise
# that inversion finds, and would bring those colours back. Weights trained on an object do not
# predict another one: it would keep its own colours (docs/log.md).
_INITIAL_NOISE: dict[ChangedWeights, InitialNoise] = {
    "none": "inverted",
    "style": "normalized",
    "object": "random",
}


class Inversion(PairedControl, ImageControl):
    """Denoise the source image alongside, and change what differs between the two prompts.

    In shared steps the new image gets the queries and keys of the source image, its features of
    one decoder block, and its deviations from the trajectory.
    """

    recommended_guidance: ClassVar[tuple[float, float] | None] = (2.0, 7.5)
    extra_passes: ClassVar[int] = 1

    initial_noise: InitialNoise | None = Option(
        None,
        aliases=("path",),
        values={"noised": "random"},
        default_is=(
            "inverted; if a concept changes weights of the base model: normalized for a style, "
            "random for an object"
        ),
    )
    """noise of the source image: found by DDIM inversion, the same without the colours of the image
    (normalized), or random from the seed (faster, more variety)"""

    @property
    def sets_initial_latents(self) -> bool:
        """Unless nothing is preserved."""
        return self.preserve > 0

    def _noise(self, changed: ChangedWeights) -> InitialNoise:
        return self.initial_noise or _INITIAL_NOISE[changed]

    def ignores_seeds(self, changed: ChangedWeights) -> bool:
        """If the noise is found by inversion."""
        return self.sets_initial_latents and self._noise(changed) != "random"

    def _prepare(self, context: SamplingContext) -> Generator[Tensor, None, SourceBranch]:
        noise, copies = self._noise(context.changed_weights), None
        if noise == "random":
            clean = context.model.encode(context.pixels(self.image)).mean
            noises = [context.noise()] * len(context.timesteps)
        else:
            clean, noises = yield from ddim_inversion(context, self.image)
        if noise == "normalized":
            free = [_normalized(one) for one in noises]
            start = context.make_sampler().scale_initial_noise(free[0])
            copies = [start.expand(len(context.seeds), -1, -1, -1)]
            copies += context.trajectory(clean, free)[1:]
        trajectory = context.trajectory(clean, noises)
        return SourceBranch.for_preserve(context, self.preserve, trajectory, copies)


def _normalized(noise: Tensor) -> Tensor:
    """The noise (N, C, H, W) with mean 0 and standard deviation 1 in each channel."""
    std, mean = torch.std_mean(noise, (2, 3), keepdim=True)
    return (noise - mean) / std
