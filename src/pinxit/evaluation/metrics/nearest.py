"""Similarity to the nearest reference, mirrored or not; it finds copies of training images."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pinxit.evaluation.metric import Images, Metric, stack_images


@dataclass(frozen=True)
class Nearest(Metric):
    """Correlation with the most similar reference, as thumbnails of `side` pixels.

    A copy has 1 even if its colours are shifted as a whole; other images of the same subject in
    the same place have less.
    """

    better = "more"
    side: int = 16

    def score(self, images: Images, references: Images, prompts: Sequence[str] = ()) -> list[float]:  # noqa: ARG002
        """A correlation for each image, at most 1."""
        targets = stack_images(references, self.side)
        originals, mirrored = _normalized(targets), _normalized(targets.flip(-1))
        vectors = _normalized(stack_images(images, self.side))
        return (vectors @ originals.T).maximum(vectors @ mirrored.T).amax(1).tolist()


def _normalized(pixels: Tensor) -> Tensor:
    """Images as vectors (N, 3 * side * side) of mean 0 in each channel and length 1."""
    return F.normalize((pixels - pixels.mean((2, 3), keepdim=True)).flatten(1), dim=1)
