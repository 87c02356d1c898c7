"""img2img: begin with the picture under noise (SDEdit, arXiv:2108.01073); fast."""

from collections.abc import Generator

from pydantic import Field
from torch import Tensor

from pinxit.generation.control import Hold, Pictured, Walk
from pinxit.generation.schedulers import Solver


class Img2Img(Pictured):
    """Noise a share of the picture away and paint it anew."""

    keep: float = Field(
        default=0.5, ge=0, le=1, description="0: the prompt only; 1: the picture as it is"
    )

    def begin(self, walk: Walk) -> Generator[Tensor, None, Hold]:
        """Nothing beforehand."""
        yield from ()
        return _Start(walk, self)


class _Start(Hold):
    def __init__(self, walk: Walk, control: Img2Img) -> None:
        self._walk = walk
        self._control = control

    def start(self, solver: Solver) -> Tensor:
        """The picture noised."""
        strength = round(1 - self._control.keep, 6)
        return self._walk.begin_with(solver, self._control.picture, strength)
