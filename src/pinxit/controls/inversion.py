"""inversion: find the noise that the picture comes from, and share its layout; the usual one."""

from collections.abc import Generator
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pinxit.control import Pictured, Walk
from pinxit.held import Accompanied, Beside, inverted, noised


class Inversion(Accompanied, Pictured):
    """Paint the picture again beside the new one, and change what the prompts say differently.

    Of steps that are held the picture's own deviations, its queries and keys, and its features of
    one decoder block are the new picture's too.
    """

    guidance: ClassVar[tuple[float, float] | None] = (2.0, 7.5)
    passes: ClassVar[int] = 1

    path: Literal["inverted", "noised"] = Field(
        default="inverted",
        description="the picture's noise: found, or drawn from the seed, for variety and speed",
    )

    def _begin(self, walk: Walk) -> Generator[Tensor, None, Beside]:
        found = self.path == "inverted"
        path = (yield from inverted(walk, self.picture)) if found else noised(walk, self.picture)
        return Beside.slid(walk, self.keep, path)
