"""Style distance by Gram matrices: which fine structures there are, wherever they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pinxit.evaluation.metric import Images, Metric, stack_images

# Horizontal and vertical gradient, and Laplacian.
_FILTERS = (
    ((0.0, 0.0, 0.0), (-1.0, 0.0, 1.0), (0.0, 0.0, 0.0)),
    ((0.0, -1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)),
)


@dataclass(frozen=True)
class Gram(Metric):
    """Distance of Gram matrices (arXiv:1508.06576) to the references' mean, over a pyramid.

    The features are colours and their gradients, so that no network is needed. The pyramid has
    `levels` images, each half as wide as the one before, the first of `side` pixels.
    """

    better = "less"
    side: int = 64
    levels: int = 3

    def score(self, images: Images, references: Images, prompts: Sequence[str] = ()) -> list[float]:  # noqa: ARG002
        """A distance for each image from 0 (equal) to 1."""
        total = torch.zeros(len(images))
        both = (self.matrices(stack_images(group, self.side)) for group in (images, references))
        for grams, targets in zip(*both, strict=True):
            mean = targets.mean(0, keepdim=True)
            distance = (grams - mean).flatten(1).norm(dim=1)
            total += distance / (grams.flatten(1).norm(dim=1) + mean.norm())
        return (total / self.levels).tolist()

    def matrices(self, images: Tensor) -> Iterator[Tensor]:
        """A matrix (N, 13, 13) for each level: products of features, averaged over the image.

        `images` is (N, 3, H, W).
        """
        filters = torch.tensor(_FILTERS)[:, None]
        level = images
        for _ in range(self.levels):
            count, _, height, width = level.shape
            flat = F.pad(level.reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")
            gradients = F.conv2d(flat, filters).abs().view(count, -1, height, width)
            features = torch.cat([level, gradients, torch.ones_like(level[:, :1])], 1).flatten(2)
            yield features @ features.transpose(1, 2) / (height * width)
            level = F.avg_pool2d(level, 2)
