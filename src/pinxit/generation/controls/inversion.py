"""inversion: find the noise that the picture comes from, and share its layout; the usual one."""

from collections.abc import Generator
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pinxit.generation.control import Pictured, Walk
from pinxit.generation.paired import Accompanied, Beside, inverted, noised


class Inversion(Accompanied, Pictured):
    """Paint the picture again beside the new one, and change what the prompts say differently.

    Of steps that are held the picture's own deviations, its queries and keys, and its features of
    one decoder block are the new picture's too.
    """

    guidance: ClassVar[tuple[float, float] | None] = (2.0, 7.5)
    passes: ClassVar[int] = 1

    path: Literal["inverted", "noised"] | None = Field(
        default=None,
        description="the picture's noise: found, or drawn from the seed for variety and speed; if "
        "unset found, but drawn where weights were learned",
    )

    def _begin(self, walk: Walk) -> Generator[Tensor, None, Beside]:
        # Weights that have learned a style find it nowhere in a photo: what they miss, its colours,
        # goes into the noise that they find, and would come back.
        drawn = walk.reweighed if self.path is None else self.path == "noised"
        path = noised(walk, self.picture) if drawn else (yield from inverted(walk, self.picture))
        return Beside.slid(walk, self.keep, path)
