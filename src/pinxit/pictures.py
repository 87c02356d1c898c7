"""A person's pictures: a folder of files, each checked, upright, and with its caption if any."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pinxit.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

# Files that people and programs put beside pictures; anything else must be a picture.
_COMPANIONS = frozenset({".txt", ".md", ".json", ".jsonl", ".ini", ".db"})
_CAPTION_BYTES = 2**16
_A1111_NAME = re.compile(r"\d+-\d+(?:-(?P<caption>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Picture:
    """A picture file that was read once and found good.

    `weight` is its share in the loss; `class_picture` marks those that the base painted itself.
    """

    path: Path
    caption: str | None
    sha256: str
    weight: float = 1.0
    class_picture: bool = False

    def open(self) -> "Image":
        """Its pixels: upright, RGB, 8 bits, what was transparent on white; PictureError if gone."""
        try:
            return _pixels(self.path)
        except _UnreadableError as trouble:
            raise PictureError(
                f"picture {self.path} cannot be read any more: {trouble}",
                "put the file back as it was when the run was started",
            ) from trouble


def read_pictures(folder: Path) -> tuple[Picture, ...]:
    """Every picture of a folder, by file name; one PictureError names all that cannot be read."""
    files = _files(folder)
    pictures: list[Picture] = []
    bad: list[str] = []
    for path in files:
        try:
            _ = _pixels(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            pictures.append(Picture(path, _caption(path), digest))
        except _UnreadableError as trouble:
            bad.append(f"{path.name} ({trouble})")
    if bad:
        raise PictureError(
            f"{len(bad)} of {len(files)} files in {folder} cannot be read as pictures: "
            + ", ".join(bad),
            "repair them or take them out of the folder; nothing was started",
        )
    return tuple(pictures)


def by_content(pictures: Iterable[Picture]) -> tuple[Picture, ...]:
    """Pictures in an order that follows from what is in them, whatever their names are."""
    return tuple(sorted(pictures, key=lambda picture: picture.sha256))


def fingerprint(pictures: Iterable[Picture]) -> str:
    """The fingerprint of what is in some pictures, whatever their names and their order are."""
    digests = "".join(picture.sha256 for picture in by_content(pictures))
    return hashlib.sha256(digests.encode()).hexdigest()


class _UnreadableError(Exception):
    """Why one file is no picture, in a few words."""


def _files(folder: Path) -> list[Path]:
    """The files of a folder that ought to be pictures; PictureError if there are none."""
    if not folder.exists():
        raise PictureError(
            f"there is no folder {folder}", "give the folder that holds the pictures"
        )
    if not folder.is_dir():
        raise PictureError(f"{folder} is no folder", f"give the folder it is in: {folder.parent}")
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path.name for path in inside if path.is_dir()]
    files = [path for path in inside if not path.is_dir()]
    files = [path for path in files if path.suffix.lower() not in _COMPANIONS]
    if not files:
        deeper = f"it holds the folders {', '.join(folders)}: give one of them" if folders else ""
        raise PictureError(
            f"there is no picture in {folder}",
            deeper or "put 3 to 12 pictures of the subject or style into it",
        )
    return files


def _pixels(path: Path) -> "Image":
    """The decoded picture, upright and RGB; _UnreadableError says what is wrong with the file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():  # a dangling link, or a pipe that would block us for ever
        raise _UnreadableError("not a regular file")
    try:
        if path.stat().st_size == 0:
            raise _UnreadableError("empty file")
        with Image.open(path) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise _UnreadableError("no picture format that Pillow knows") from None
    except Image.DecompressionBombError:
        raise _UnreadableError("more pixels than a photograph has") from None
    # Pillow's decoders raise these, and no tree of their own, on damaged bytes.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as trouble:
        raise _UnreadableError(f"damaged: {trouble}") from trouble


def _rgb(image: "Image") -> "Image":
    """The picture as 8-bit RGB; transparent parts become white, 16 bits are scaled, not clipped."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: "Image") -> "Image":
    """A grey picture of 16 or more bits, or of floats, in 8 bits."""
    import numpy as np
    from PIL import Image

    grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
    # An integer file means 0..65535; floats are 0..1 by custom, or already 0..255.
    top = 65535.0 if image.mode != "F" else 1.0 if grey.max() <= 1.0 else 255.0
    return Image.fromarray((grey / top * 255.0).round().clip(0, 255).astype(np.uint8))


def _caption(path: Path) -> str | None:
    """The words for a picture: from the text file beside it, else from its own name, else none."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        if beside.stat().st_size > _CAPTION_BYTES:
            raise _UnreadableError(f"its caption {beside.name} is over {_CAPTION_BYTES} bytes")
        try:
            text = beside.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise _UnreadableError(f"its caption {beside.name} is not UTF-8 text") from None
    else:
        text = _caption_in_name(path.stem)
    return " ".join(text.split()) or None


def _caption_in_name(stem: str) -> str:
    """The caption in a file name: A1111's `00003-0-a red cloak`, or a plain sentence."""
    numbered = _A1111_NAME.fullmatch(stem)
    if numbered:
        return numbered["caption"] or ""
    # Cameras and phones write digits into names; a sentence is three words or more without any.
    plain = len(stem.split()) >= 3 and not any(letter.isdigit() for letter in stem)
    return stem if plain else ""
