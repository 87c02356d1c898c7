"""How much of the subject a crop keeps, where the truth is known: in pocket's world.

`python -m lab.images.crops [--scenes N]` prints the mean share of the subject that is kept when a
quarter of the picture is cut off, and when 58% is: by the middle, by ours, and by the best crop,
for pictures with the subject in the middle, and for the same ones cut so that it is at one side.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pinxit.images.crop import Size, box, centring
from pinxit.pocket.data import scenes_at
from pinxit.pocket.world import render

SIDE, WINDOW = 128, 88
CUTS = {"a quarter cut off": 0.75, "58% cut off": 5 / 12}


def pictures(index: int) -> Iterator[tuple[str, bool, Image.Image, Image.Image]]:
    """A scene and its mask whole and cut to one side, each to be cropped lying and upright."""
    drawn = render(scenes_at(index)[0], SIDE)
    image, mask = Image.fromarray(drawn.image), Image.fromarray(drawn.mask)
    start = (SIDE - WINDOW) * (index % 2)
    for lying in (False, True):
        yield "in the middle", lying, image, mask
        sides = (0, start, SIDE, start + WINDOW) if lying else (start, 0, start + WINDOW, SIDE)
        yield "at one side", lying, image.crop(sides), mask.crop(sides)


def kept(image: Image.Image, mask: Image.Image, lying: bool, share: float) -> list[float]:
    """The share of the subject kept by the middle, by ours and by the best crop."""
    width, height = image.size
    cut = (width, round(height * share)) if lying else (round(width * share), height)
    shape: Size = (cut[0] * 8, cut[1] * 8)
    truth = np.asarray(mask, dtype=float) / 255
    found: list[float] = []
    for place in ((0.5, 0.5), centring(image, shape), centring(image, shape, mask)):
        left, top, right, bottom = (round(edge) for edge in box(image.size, shape, place))
        found.append(float(truth[top:bottom, left:right].sum() / max(truth.sum(), 1)))
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    asked = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    for index in range(asked.scenes):
        for where, lying, image, mask in pictures(index):
            for name, share in CUTS.items():
                found.setdefault(f"{where}, {name}", []).append(kept(image, mask, lying, share))
    names = ("by the middle", "by ours", "by the best")
    means = {name: np.mean(shares, axis=0).round(3).tolist() for name, shares in found.items()}
    told = {name: dict(zip(names, mean, strict=True)) for name, mean in means.items()}
    print(json.dumps({"scenes": asked.scenes, "kept": told}))


if __name__ == "__main__":
    main()
