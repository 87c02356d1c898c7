"""img2img: start from the source image with noise added (SDEdit, arXiv:2108.01073); fast."""

from collections.abc import Generator

from torch import Tensor

from pinxit.generation.control import PRESERVE, ControlHooks, ImageControl, SamplingContext
from pinxit.generation.schedulers import Sampler


class Img2Img(ImageControl):
    """Add noise to the source image and denoise it with the new prompt."""

    preserve: float = PRESERVE

    @property
    def sets_initial_latents(self) -> bool:
        """Always."""
        return True

    def prepare(self, context: SamplingContext) -> Generator[Tensor, None, ControlHooks]:
        """Hooks that set the initial latents; no extra pass."""
        yield from ()
        return _NoisedImage(context, self)


class _NoisedImage(ControlHooks):
    def __init__(self, context: SamplingContext, control: Img2Img) -> None:
        self._context = context
        self._control = control

    def initial_latents(self, sampler: Sampler) -> Tensor:
        """Latents of the source image with noise added."""
        strength = round(1 - self._control.preserve, 6)
        return self._context.noise_image(sampler, self._control.image, strength)
