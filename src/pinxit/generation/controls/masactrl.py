"""masactrl: the picture's subject in a new pose (MasaCtrl, arXiv:2304.08465)."""

from collections.abc import Generator
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from pinxit.adapters.attention_sharing import CONTENTS
from pinxit.generation.control import Pictured, Walk
from pinxit.generation.paired import Accompanied, Beside, inverted


class MasaCtrl(Accompanied, Pictured):
    """Lay the new picture out freely, and fill it with what self-attention sees in the other."""

    passes: ClassVar[int] = 1

    keep: float = Field(
        default=0.9, ge=0, le=1, description="share of the steps, the last, that look at it"
    )

    def _begin(self, walk: Walk) -> Generator[Tensor, None, Beside]:
        path = yield from inverted(walk, self.picture)
        steps = len(walk.times)
        return Beside(walk, (CONTENTS,), range(round((1 - self.keep) * steps), steps), path)
