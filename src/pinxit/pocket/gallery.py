"""The pictures of a subject and of a style that ship with pinxit, for demo and tests.

Both are held out of pocket's training, so that they have to be learned.
`python -m pinxit.pocket.gallery` writes them anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pinxit.pocket.captions import PLACE_PHRASES
from pinxit.pocket.world import (
    BACKGROUNDS,
    Scene,
    Subject,
    distractors,
    draw_subject,
    held_out_subjects,
    portrait,
    render,
)

SIZE = 128  # pixels of a side; twice what pocket paints, to be good to look at
SUBJECT = 0  # which of the held-out subjects
STYLE = "blueprint"
PLACES = ("meadow", "room", "city", "beach", "forest")  # elsewhere nobody ever saw the subject
SHOWN = (
    ("cat", "room"),
    ("car", "city"),
    ("teapot", "meadow"),
    ("bird", "forest"),
    ("boat", "beach"),
)


Picture = Image.Image


@dataclass(frozen=True)
class Exhibit:
    """An image of the gallery: its scene and, if it has one, its caption."""

    scene: Scene
    caption: str | None = None

    def image(self, size: int = SIZE) -> Picture:
        """The picture itself."""
        return Image.fromarray(render(self.scene, size).image)


def folder() -> Path:
    """The folder of the pictures."""
    return Path(__file__).parent.parent / "gallery"


def portraits(who: Subject, places: Sequence[str], seed: tuple[int, ...]) -> list[Exhibit]:
    """Photos of one individual, one in each place."""
    rng = np.random.default_rng(seed)
    return [Exhibit(portrait(who, rng, background=place)) for place in places]


def subject_pictures() -> list[Exhibit]:
    """The subject in five places: what is shown to learn it."""
    return portraits(held_out_subjects()[SUBJECT], PLACES, (11, SUBJECT))


def other_pictures(index: int, *, distractor: bool, seed: int = 12) -> list[Exhibit]:
    """A held-out subject, or its look-alike of the same class, once in each of the world's places.

    Never shown for learning: with these likeness has its ceiling and its floor.
    """
    who = (distractors() if distractor else held_out_subjects())[index]
    return portraits(who, BACKGROUNDS, (seed, index, int(distractor)))


def style_pictures(
    style: str = STYLE, seed: int = 14, things: Sequence[tuple[str, str]] = SHOWN
) -> list[Exhibit]:
    """Things in the style, five unless others are given, as (class, place).

    The captions say what they are, and nothing about the style.
    """
    rng = np.random.default_rng(seed)
    return [
        Exhibit(
            portrait(draw_subject(rng, noun), rng, background=place, style=style),
            f"a picture of a {noun} {PLACE_PHRASES[place][0]}",
        )
        for noun, place in things
    ]


def write(where: Path) -> list[Path]:
    """Write `subject/` and `style/` with their captions; the same bytes each time."""
    written: list[Path] = []
    for name, exhibits in (("subject", subject_pictures()), ("style", style_pictures())):
        (where / name).mkdir(parents=True, exist_ok=True)
        for number, exhibit in enumerate(exhibits, 1):
            path = where / name / f"{number}.png"
            exhibit.image().save(path, optimize=True)
            written.append(path)
            if exhibit.caption:
                path.with_suffix(".txt").write_text(exhibit.caption + "\n", encoding="utf-8")
    return written


if __name__ == "__main__":
    for _path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else folder()):
        print(_path)
