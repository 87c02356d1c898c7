"""same-seed: what the seed paints of another prompt, held in place; needs no picture."""

from collections.abc import Generator

from torch import Tensor

from pinxit.generation.control import Walk
from pinxit.generation.paired import Accompanied, Beside


class SameSeed(Accompanied):
    """Paint the other prompt beside, from the same noise, and share its layout."""

    def _begin(self, walk: Walk) -> Generator[Tensor, None, Beside]:
        yield from ()
        return Beside.slid(walk, self.keep)
