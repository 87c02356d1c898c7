"""Distance of colour distributions to those of the references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pinxit.evaluation.metric import Images, Metric, stack_images

# sRGB to OKLab (B. Ottosson, 2020): linear RGB to cone responses, their cube roots to L, a, b.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_SIDE = 64
_PERCENTILES = np.linspace(0, 100, 129)


@dataclass(frozen=True)
class Colour(Metric):
    """Sliced Wasserstein distance in OKLab to the references' pixels.

    Positions in the image do not matter. `against` is all references together, or for each image
    the nearest of them; `slices` is the number of directions in colour space.
    """

    better = "less"
    against: Literal["all", "nearest"] = "all"
    slices: int = 24

    def score(self, images: Images, references: Images, prompts: Sequence[str] = ()) -> list[float]:  # noqa: ARG002
        """A distance for each image, 0 is equal; black and white are about 0.5 apart."""
        groups = [references] if self.against == "all" else [[image] for image in references]
        targets = [self._quantiles(group) for group in groups]
        return [
            min(float(np.abs(quantiles - target).mean()) for target in targets)
            for quantiles in (self._quantiles([image]) for image in images)
        ]

    def between(self, images: Images, references: Images) -> float:
        """The distance of all images together to all references together."""
        return float(np.abs(self._quantiles(images) - self._quantiles(references)).mean())

    def _quantiles(self, images: Images) -> NDArray[np.float64]:
        """Quantiles (129, slices) of the colours along each direction."""
        pixels = stack_images(images, _SIDE).permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        return np.percentile(
            _oklab(pixels / 2 + 0.5) @ _directions(self.slices).T, _PERCENTILES, axis=0
        )


def _oklab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours (N, 3) in 0..1 as lightness and two colour axes."""
    power = ((np.maximum(colours, 0.04045) + 0.055) / 1.055) ** 2.4
    linear = np.where(colours > 0.04045, power, colours / 12.92)
    return np.cbrt(linear @ _CONES.T) @ _LAB.T


def _directions(count: int) -> NDArray[np.float64]:
    """Directions (count, 3) spread evenly over half a sphere: a golden spiral."""
    height = (np.arange(count) + 0.5) / count
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - height**2)
    return np.stack([height, radius * np.cos(angle), radius * np.sin(angle)], 1)
