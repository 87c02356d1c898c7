"""A look at a folder of pictures before anything is learned: what is used, and what is odd."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pinxit.images import crop
from pinxit.images.folder import Entry, Masks, Picture, look_through

if TYPE_CHECKING:
    from PIL.Image import Image

# Measured on the tutorial's pictures: a blur of 2 pixels is found, no sharp picture is.
_BLURRED = 0.08
# Likeness of grey thumbnails: the same picture saved or cropped anew is above, others below.
_SAME = 0.95
_ALIKE = 0.85
_FLAT = 2.0
_ENLARGED = 1.25
_FEW, _MANY = 3, 40
_MASK_LEAST = 0.01
_THUMB = 16
_SHOWN = 256


@dataclass(frozen=True)
class Look:
    """A picture as it is looked at: its size, its crop, how sharp it is, a small copy.

    `shape` is what it is learned at; `box` the part of it that is learned from; `masked` the share
    of the picture that its mask shows. `thumb` is (16, 16, 3), `small` 256 pixels at most.
    """

    picture: Picture
    size: crop.Size
    said: tuple[str, ...]
    shape: crop.Size
    box: tuple[float, float, float, float]
    masked: float | None
    sharpness: float
    thumb: NDArray[np.float64]
    small: "Image"

    @property
    def name(self) -> str:
        """The file's name."""
        return self.picture.path.name


@dataclass(frozen=True)
class Survey:
    """All that was found in a folder: pictures, files that are refused, others left out."""

    folder: Path
    looks: tuple[Look, ...]
    refused: tuple[Entry, ...]
    left_out: tuple[Entry, ...]

    def worries(self) -> dict[str, list[str]]:
        """What is suspicious: by file name, and under "" what is so of all of them together."""
        found: dict[str, list[str]] = {look.name: self._own(look) for look in self.looks}
        alike = _likeness(self.looks) if self.looks else np.zeros((0, 0))
        for number, look in enumerate(self.looks):
            before = np.flatnonzero(alike[number, :number] >= _SAME)
            if len(before):
                other = self.looks[int(before[0])]
                same = look.picture.sha256 == other.picture.sha256
                found[look.name].append(f"{'' if same else 'nearly '}the same as {other.name}")
        found[""] = self._of_all(alike)
        return {name: said for name, said in found.items() if said}

    def _own(self, look: Look) -> list[str]:
        said: list[str] = []
        larger = max(want / has for want, has in zip(look.shape, look.size, strict=True))
        if larger > _ENLARGED:
            said.append(f"small: {larger:.1f} times enlarged to {look.shape[0]}x{look.shape[1]}")
        if float(look.thumb.std(axis=(0, 1)).max()) < _FLAT:
            said.append("one colour all over")
        elif look.sharpness < _BLURRED:
            said.append("blurred")
        if look.masked is not None and look.masked < _MASK_LEAST:
            said.append(f"its mask shows {look.masked:.2%} of it")
        return said

    def _of_all(self, alike: NDArray[np.float64]) -> list[str]:
        said: list[str] = []
        count, pictures = len(self.looks), [look.picture for look in self.looks]
        if 0 < count < _FEW:
            said.append(f"only {count}: 3 to 12 from several sides and places are usual")
        if count > _MANY:
            said.append(f"{count} pictures, 3 to 12 are usual: see that each shows the subject")
        if count >= _FEW and alike.min() >= _ALIKE:
            said.append("all look alike: place and pose will be learned along")
        without = {
            "caption": [picture.path.name for picture in pictures if not picture.caption],
            "mask": [picture.path.name for picture in pictures if not picture.mask],
        }
        for what, names in without.items():
            if 0 < len(names) < count:
                said.append(f"no {what} for {', '.join(names)}, and one for the others")
        return said


def survey(folder: Path, side: int, grain: int = 8, masks: Masks = "beside") -> Survey:
    """Look through a folder, one picture at a time, as it would be learned at `side` pixels.

    PictureError if the folder cannot be read.
    """
    looks: list[Look] = []
    refused: list[Entry] = []
    left_out: list[Entry] = []
    for entry in look_through(folder, masks):
        if entry.picture and entry.decoded:
            looks.append(_look(entry, entry.picture, entry.decoded.image, (side, grain)))
        else:
            (refused if entry.refused else left_out).append(entry)
    return Survey(folder, tuple(looks), tuple(refused), tuple(left_out))


def _look(entry: Entry, picture: Picture, image: "Image", learned_at: tuple[int, int]) -> Look:
    from PIL import Image

    mask = entry.mask
    shape = crop.shape_for(image.size, *learned_at)
    centre = crop.centring(image, shape, mask)
    thumb = image.resize((_THUMB, _THUMB), Image.Resampling.BOX, reducing_gap=3.0)
    small = image.copy()
    small.thumbnail((_SHOWN, _SHOWN))
    return Look(
        picture,
        image.size,
        entry.said,
        shape,
        crop.box(image.size, shape, centre),
        float(np.asarray(mask).mean() / 255) if mask else None,
        _sharpness(image, learned_at[0]),
        np.asarray(thumb, dtype=np.float64),
        small,
    )


def _sharpness(image: "Image", side: int) -> float:
    """The steepest turns of brightness, at the size of learning, against the contrast."""
    from PIL import Image

    scale = min(1.0, side / min(image.size))
    size = (max(3, round(image.width * scale)), max(3, round(image.height * scale)))
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    a = np.asarray(grey, dtype=np.float32)
    turns = 4 * a[1:-1, 1:-1] - a[:-2, 1:-1] - a[2:, 1:-1] - a[1:-1, :-2] - a[1:-1, 2:]
    low, high = np.percentile(a, (1, 99))
    return float(np.percentile(np.abs(turns), 99.5) / (high - low + 1))


def _likeness(looks: Sequence[Look]) -> NDArray[np.float64]:
    """From -1 to 1, (n, n): how alike their thumbnails are, brightness and contrast aside."""
    colours = np.stack([look.thumb for look in looks]).reshape(len(looks), -1, 3)
    grey = colours.mean(axis=2)
    grey -= grey.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(grey, axis=1)
    alike = grey @ grey.T / np.maximum(np.outer(lengths, lengths), 1e-9)
    for flat in np.flatnonzero(lengths < _FLAT * _THUMB):  # nothing but colours to go by
        same = np.abs(colours - colours[flat]).mean(axis=(1, 2)) < 2 * _FLAT
        alike[flat] = alike[:, flat] = same
    return alike
