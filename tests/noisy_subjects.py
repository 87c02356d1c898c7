"""Folders of noisy images, for what trains several subjects."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def noisy_subjects(folder: Path, names: Sequence[str], count: int) -> Path:
    """A new folder with a folder for each name, which has `count` noisy images."""
    draw = np.random.default_rng(5)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
