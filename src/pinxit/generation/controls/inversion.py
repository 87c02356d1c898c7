"""inversion: find the noise that leads to the source image and share its layout."""

from collections.abc import Generator
from typing import ClassVar, Literal

from torch import Tensor

from pinxit.generation.control import ImageControl, SamplingContext
from pinxit.generation.paired import PairedControl, SourceBranch, ddim_inversion
from pinxit.options import Option


class Inversion(PairedControl, ImageControl):
    """Denoise the source image alongside, and change what differs between the two prompts.

    In shared steps the new image gets the queries and keys of the source image, its features of
    one decoder block, and its deviations from the trajectory.
    """

    recommended_guidance: ClassVar[tuple[float, float] | None] = (2.0, 7.5)
    extra_passes: ClassVar[int] = 1

    initial_noise: Literal["inverted", "random"] | None = Option(
        None,
        aliases=("path",),
        values={"noised": "random"},
        default_is="inverted; random if a concept changes weights of the base model",
    )
    """noise of the source image: found by DDIM inversion, or random from the seed (faster, more
    variety)"""

    @property
    def sets_initial_latents(self) -> bool:
        """Unless nothing is preserved."""
        return self.preserve > 0

    def _prepare(self, context: SamplingContext) -> Generator[Tensor, None, SourceBranch]:
        # Weights trained on a style do not predict the colours of a photo: the error goes into the
        # noise that inversion finds, and would bring those colours back.
        default = "random" if context.has_weight_changes else "inverted"
        if (self.initial_noise or default) == "random":
            clean = context.model.encode(context.pixels(self.image)).mean
            trajectory = context.trajectory(clean, [context.noise()] * len(context.timesteps))
        else:
            trajectory = yield from ddim_inversion(context, self.image)
        return SourceBranch.for_preserve(context, self.preserve, trajectory)
