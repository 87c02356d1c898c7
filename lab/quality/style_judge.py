"""Which of pocket's styles an image has: linear discriminant analysis of colours and textures.

`python -m lab.quality.style_judge` measures how often it recognizes what pocket generates for its
own named styles: no more can be expected of styles that are trained later.

The styles are known as renderings: 32 scenes in each style, as they are and as pocket's autoencoder
reproduces them, so that softness does not count. An image belongs to the style whose mean features
are nearest, in units of the variation within a style.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from lab.quality.harness import Lab, argument_parser, print_progress
from pinxit import registry
from pinxit.evaluation.metric import stack_images
from pinxit.evaluation.prompt_sets import Prompt
from pinxit.models.model import Model
from pinxit.models.open_base import open_base
from pinxit.pocket import gallery
from pinxit.pocket.captions import PLACE_PHRASES
from pinxit.pocket.world import (
    BACKGROUNDS,
    CLASSES,
    HELD_OUT_DRAWN,
    HELD_OUT_STYLES,
    STYLES,
    named_styles,
)
from pinxit.progress import Progress

_SIDE = 64
_FRAME = 4  # pixels of the margin whose colours are features
_SECTORS = 8
_RINGS = ((2, 4), (4, 6), (6, 8), (8, 11), (11, 14), (14, 18), (18, 23), (23, 32))
_COLOUR_RINGS = ((2, 5), (5, 9), (9, 16), (16, 32))
_RIDGE = 0.01  # in units of the variance of a feature over all styles
_FIRST_SEED = 1000  # of the scenes, another one for each style
_ROUNDS = 2  # scenes of all sixteen classes
_NAMED_SEED = 3
_PLACES = ("beach", "city", "meadow", "room", "night", "snow")


@dataclass(frozen=True)
class StyleJudge:
    """The styles' mean features (S, D), and what whitens the variation within a style (D, D)."""

    styles: tuple[str, ...]
    means: NDArray[np.float64]
    whitening: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fitted(cls, model: Model, work: Path, styles: Sequence[str] = ()) -> Self:
        """Read the judge from the work folder, or fit it to new renderings, in five minutes.

        `styles` are those that it chooses from; without any, all of pocket's.
        """
        file = work / f"style-judge{len(styles) or ''}.npz"
        if not file.is_file():
            work.mkdir(parents=True, exist_ok=True)
            np.savez(file, allow_pickle=False, **_fit(model, styles or all_styles()))
        with np.load(file, allow_pickle=False) as arrays:
            names = ("means", "whitening", "centre", "scale")
            return cls(tuple(arrays["styles"].tolist()), *(arrays[name] for name in names))

    def recognized(self, images: Sequence[Image], style: str, among: int = 1) -> float:
        """The share of images that have the style among their `among` nearest styles."""
        distances = (self._features(images)[:, None] - self.means[None]) ** 2
        nearest = distances.sum(2).argsort(1)[:, :among]
        return float(np.mean((nearest == self.styles.index(style)).any(1)))

    def position(self, images: Sequence[Image], style: str) -> float:
        """How far images are from photos (0) to a style (1), on the line between their means."""
        photo, end = (self.means[self.styles.index(name)] for name in ("photo", style))
        line = end - photo
        return float(np.mean((self._features(images) - photo) @ line) / (line @ line))

    def _features(self, images: Sequence[Image]) -> NDArray[np.float64]:
        """Features in units of the variation within a style (N, D)."""
        rows = (style_features(stack_images(images, _SIDE)) - self.centre) / self.scale
        return rows @ self.whitening


def _fit(model: Model, styles: Sequence[str]) -> dict[str, Any]:
    """The arrays of a judge; progress goes to stderr."""
    rows: list[NDArray[np.float64]] = []
    for number, style in enumerate(styles):
        rendered = stack_images(renderings(style, _FIRST_SEED + number), _SIDE)
        decoded = model.decode(model.encode(rendered).mean).clamp(-1, 1)
        rows.append(style_features(torch.cat([rendered, decoded])))
        print_progress(Progress("styles rendered", number + 1, len(styles)))
    features = np.stack(rows)  # (S, N, D)
    flat = features.reshape(-1, features.shape[2])
    centre, scale = flat.mean(0), flat.std(0) + 1e-9
    features = (features - centre) / scale
    means = features.mean(1)
    residuals = (features - means[:, None]).reshape(flat.shape)
    within = residuals.T @ residuals / len(residuals) + _RIDGE * np.eye(flat.shape[1])
    whitening = np.linalg.cholesky(np.linalg.inv(within))
    return {
        "styles": styles,
        "means": means @ whitening,
        "whitening": whitening,
        "centre": centre,
        "scale": scale,
    }


def all_styles(named: int | None = None) -> list[str]:
    """All named styles or the first ones, those that words describe, and those held out."""
    return [*list(named_styles())[:named], *STYLES, *HELD_OUT_STYLES, *HELD_OUT_DRAWN]


def renderings(style: str, seed: int) -> list[Image]:
    """Two scenes of each class in a style."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[str, str]] = []
    for _ in range(_ROUNDS):
        places = rng.permutation(BACKGROUNDS).tolist()
        pairs += [(noun, places[at % len(places)]) for at, noun in enumerate(CLASSES)]
    return [exhibit.image(_SIDE) for exhibit in gallery.style_pictures(style, seed, pairs)]


def style_features(images: Tensor) -> NDArray[np.float64]:
    """The features (N, D) of images (N, 3, 64, 64) in [-1, 1]."""
    return torch.cat([part.double() for part in _features(images / 2 + 0.5)], 1).numpy()


def _features(images: Tensor) -> Iterator[Tensor]:
    grey = images.mean(1, keepdim=True)
    colours = torch.cat([grey, images[:, :1] - grey, images[:, 2:] - grey], 1)
    yield _quantiles(images, 9)
    yield _quantiles(colours, 7)
    frame = torch.ones(_SIDE, _SIDE, dtype=torch.bool)
    frame[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    yield images[:, :, frame].mean(2)
    yield images[:, :, frame].std(2)
    yield from _spectrum(grey[:, 0], _RINGS, _SECTORS)
    for channel in (1, 2):
        yield from _spectrum(colours[:, channel], _COLOUR_RINGS, 1)
    yield _quantiles(grey.diff(dim=3).abs(), 9).sqrt()
    yield _quantiles(grey.diff(dim=2).abs(), 9).sqrt()
    kernel = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
    yield _quantiles(F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernel), 9)
    for products in registry.load("metrics", "gram")().matrices(images):
        rows, columns = torch.triu_indices(*products.shape[1:]).unbind()
        yield products[:, rows, columns].clamp_min(0).sqrt()


def _quantiles(values: Tensor, count: int) -> Tensor:
    """Evenly spaced quantiles of each channel (N, C * count)."""
    ordered = values.flatten(2).sort(2).values
    at = torch.linspace(0, ordered.shape[2] - 1, count).round().long()
    return ordered[:, :, at].flatten(1)


def _spectrum(channel: Tensor, rings: Sequence[tuple[int, int]], sectors: int) -> Iterator[Tensor]:
    """The logarithm of the power in rings of the spectrum, and in sectors of the outer rings."""
    window = torch.hann_window(_SIDE)
    centred = channel - channel.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(centred * window[:, None] * window).abs() ** 2 + 1e-4
    frequencies = torch.fft.fftfreq(_SIDE) * _SIDE
    y, x = torch.meshgrid(frequencies, frequencies, indexing="ij")
    radius, width = torch.hypot(x, y), math.pi / sectors
    sector = (torch.atan2(y, x) + width / 2) % math.pi // width
    for low, high in rings:
        ring = (radius >= low) & (radius < high)
        yield power[:, ring].mean(1, keepdim=True).log()
        for number in range(sectors if sectors > 1 and low > rings[0][0] else 0):
            yield power[:, ring & (sector == number)].mean(1, keepdim=True).log()


def main() -> None:
    """Six images in each of some named styles; the shares that are recognized, as JSON."""
    parser = argument_parser(__doc__, "build/styles")
    parser.add_argument("--count", type=int, default=48, help="number of styles")
    args = parser.parse_args()
    lab = Lab(open_base("pocket"), print_progress, num_images=1)
    judge = StyleJudge.fitted(lab.model, args.work)
    chosen = np.random.default_rng(_NAMED_SEED).permutation(list(named_styles()))[: args.count]
    shares: list[list[float]] = []
    for number, style in enumerate(chosen.tolist()):
        pairs = [(CLASSES[(5 * at + number) % 16], place) for at, place in enumerate(_PLACES)]
        texts = [
            f"a picture of a {n} {PLACE_PHRASES[p][0]} in the style of {style}" for n, p in pairs
        ]
        prompts = [Prompt(text, text, text) for text in texts]
        generated = lab.generate(prompts, None, f"style {number + 1} of {args.count}: {style}")
        images = [image.image for image in generated]
        shares.append([judge.recognized(images, style, among) for among in (1, 10)])
    recognized, among_ten = np.mean(shares, 0).tolist()
    print(json.dumps({"styles": len(shares), "recognized": recognized, "among ten": among_ten}))


if __name__ == "__main__":
    main()
