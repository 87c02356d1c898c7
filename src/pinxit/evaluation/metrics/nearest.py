"""How nearly a picture is one that was learned from: the most alike of them, mirrored or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from pinxit.evaluation.metric import Metric, stacked

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Nearest(Metric):
    """Correlation with the most alike reference, as thumbnails of `side` pixels.

    A copy reaches 1 wherever its colours shift as a whole; other pictures of the same thing in
    the same place do not.
    """

    better = "more"
    side: int = 16

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],
        prompts: Sequence[str] = (),  # noqa: ARG002
    ) -> list[float]:
        """A correlation for each picture, 1 at best."""
        wanted = stacked(references, self.side)
        wanted = _centred(wanted), _centred(wanted.flip(-1))
        seen = _centred(stacked(images, self.side))
        return (seen @ wanted[0].T).maximum(seen @ wanted[1].T).amax(1).tolist()


def _centred(pixels: Tensor) -> Tensor:
    """Pictures as vectors (N, 3 * side * side) of mean zero in each colour and of length one."""
    return F.normalize((pixels - pixels.mean((2, 3), keepdim=True)).flatten(1), dim=1)
