"""masactrl: the subject of the source image in a new pose (MasaCtrl, arXiv:2304.08465)."""

from collections.abc import Generator, Sequence
from typing import ClassVar

from torch import Tensor

from pinxit.generation.control import ImageControl, SamplingContext
from pinxit.generation.paired import PairedControl, SourceBranch, ddim_inversion
from pinxit.options import Option


class MasaCtrl(PairedControl, ImageControl):
    """A new layout, whose self-attention reads keys and values of the source image."""

    extra_passes: ClassVar[int] = 1
    shares: ClassVar[Sequence[str]] = ("keys-values",)

    preserve: float = Option(0.9, ge=0, le=1, aliases=("keep",))
    """fraction of the steps, counted from the last, that read the source image"""

    def _prepare(self, context: SamplingContext) -> Generator[Tensor, None, SourceBranch]:
        trajectory = context.trajectory(*(yield from ddim_inversion(context, self.image)))
        steps = len(context.timesteps)
        shared = range(round((1 - self.preserve) * steps), steps)
        return SourceBranch(context, self.shares, shared, trajectory)
