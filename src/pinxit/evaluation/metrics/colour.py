"""How far apart the colours are: histograms compared by the way colours have to be moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pinxit.evaluation.metric import Metric, stacked

if TYPE_CHECKING:
    from PIL.Image import Image

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
_RANKS = np.linspace(0, 100, 129)


@dataclass(frozen=True)
class Colour(Metric):
    """Sliced Wasserstein distance in OKLab to the references' pixels.

    Where things are in the picture does not matter. `against` is the references all together, or
    for each picture the nearest of them; `slices` is how many directions of colour space count.
    """

    better = "less"
    against: Literal["all", "nearest"] = "all"
    slices: int = 24

    def score(
        self,
        images: Sequence["Image"],
        references: Sequence["Image"],
        prompts: Sequence[str] = (),  # noqa: ARG002
    ) -> list[float]:
        """A distance for each picture, 0 at best; black and white are about 0.5 apart."""
        groups = [references] if self.against == "all" else [[one] for one in references]
        wanted = [self._ranked(group) for group in groups]
        return [
            min(float(np.abs(ranked - other).mean()) for other in wanted)
            for ranked in (self._ranked([image]) for image in images)
        ]

    def between(self, images: Sequence["Image"], references: Sequence["Image"]) -> float:
        """The distance of all pictures together from all references together."""
        return float(np.abs(self._ranked(images) - self._ranked(references)).mean())

    def _ranked(self, images: Sequence["Image"]) -> NDArray[np.float64]:
        """The colours' quantiles (129, slices) along each direction."""
        pixels = stacked(images, _SIDE).permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        return np.percentile(_oklab(pixels / 2 + 0.5) @ _directions(self.slices).T, _RANKS, axis=0)


def _oklab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours (N, 3) in 0..1 as lightness and two colour axes."""
    bright = ((np.maximum(colours, 0.04045) + 0.055) / 1.055) ** 2.4
    linear = np.where(colours > 0.04045, bright, colours / 12.92)
    return np.cbrt(linear @ _CONES.T) @ _LAB.T


def _directions(count: int) -> NDArray[np.float64]:
    """Directions (count, 3) spread evenly over half a sphere: a golden spiral."""
    height = (np.arange(count) + 0.5) / count
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    round_ = np.sqrt(1 - height**2)
    return np.stack([height, round_ * np.cos(turn), round_ * np.sin(turn)], 1)
