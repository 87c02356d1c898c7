"""same-seed: keep the layout that the seed gives to a source prompt; needs no source image."""

from collections.abc import Generator

from torch import Tensor

from pinxit.generation.control import SamplingContext
from pinxit.generation.paired import PairedControl, SourceBranch


class SameSeed(PairedControl):
    """Generate the source prompt alongside, from the same noise, and share its layout."""

    def _prepare(self, context: SamplingContext) -> Generator[Tensor, None, SourceBranch]:
        yield from ()
        return SourceBranch.for_preserve(context, self.preserve)
