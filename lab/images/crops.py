"""How much of the subject a crop contains, measured in pocket's world, where the truth is known.

`python -m lab.images.crops [--scenes N]` prints the mean fraction of the subject inside the crop
when 25% or 58% of the image is cropped off: for a centered crop, for pinxit's crop and for the best
crop, with the subject in the middle of the image and at one side of it.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pinxit.images.crop import Size, crop_box, crop_center
from pinxit.pocket.data import scenes_at
from pinxit.pocket.world import render

SIZE, WINDOW = 128, 88
CUTS = {"a quarter cut off": 0.75, "58% cut off": 5 / 12}


def scene_images(index: int) -> Iterator[tuple[str, bool, Image.Image, Image.Image]]:
    """Image and mask of a scene, whole and cut to one side, for vertical and horizontal crops."""
    scene = render(scenes_at(index)[0], SIZE)
    image, mask = Image.fromarray(scene.image), Image.fromarray(scene.mask)
    start = (SIZE - WINDOW) * (index % 2)
    for landscape in (False, True):
        yield "in the middle", landscape, image, mask
        edges = (0, start, SIZE, start + WINDOW) if landscape else (start, 0, start + WINDOW, SIZE)
        yield "at one side", landscape, image.crop(edges), mask.crop(edges)


def subject_fractions(
    image: Image.Image, mask: Image.Image, landscape: bool, fraction: float
) -> list[float]:
    """Fraction of the subject inside the centered crop, pinxit's crop and the best crop."""
    width, height = image.size
    size = (width, round(height * fraction)) if landscape else (round(width * fraction), height)
    bucket: Size = (size[0] * 8, size[1] * 8)
    truth = np.asarray(mask, dtype=float) / 255
    fractions: list[float] = []
    for center in ((0.5, 0.5), crop_center(image, bucket), crop_center(image, bucket, mask)):
        left, top, right, bottom = (round(edge) for edge in crop_box(image.size, bucket, center))
        fractions.append(float(truth[top:bottom, left:right].sum() / max(truth.sum(), 1)))
    return fractions


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    arguments = parser.parse_args()
    fractions: dict[str, list[list[float]]] = {}
    for index in range(arguments.scenes):
        for position, landscape, image, mask in scene_images(index):
            for name, fraction in CUTS.items():
                row = subject_fractions(image, mask, landscape, fraction)
                fractions.setdefault(f"{position}, {name}", []).append(row)
    names = ("by the middle", "by ours", "by the best")
    means = {name: np.mean(rows, axis=0).round(3).tolist() for name, rows in fractions.items()}
    table = {name: dict(zip(names, mean, strict=True)) for name, mean in means.items()}
    print(json.dumps({"scenes": arguments.scenes, "kept": table}))


if __name__ == "__main__":
    main()
