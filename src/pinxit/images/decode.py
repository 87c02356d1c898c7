"""From a picture's file to upright 8-bit pixels in sRGB, whatever it was saved as."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# The only decoders that a file can reach. Pillow has more: one of them starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")
# As many as Pillow thinks a photograph has; about 1.1 GB while it is being decoded.
MOST_PIXELS = 89_478_485
_BAND = 512


class UnreadableError(Exception):
    """Why a file cannot be used, in a few words."""


class NoPictureError(UnreadableError):
    """Nothing in the file shows that it is meant to be a picture."""


@dataclass(frozen=True)
class Decoded:
    """A picture as RGB on white, its opacity (L) if any, its format, and what was done to it."""

    image: "Image"
    opacity: "Image | None"
    format: str
    notes: tuple[str, ...]


def decode(path: Path) -> Decoded:
    """Read a picture by its content; UnreadableError says what is wrong with the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        formats = _formats(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of it is a note
            with Image.open(path, formats=formats) as image:
                _must_be_small(image.width * image.height)
                return _finished(image, path)
    except UnidentifiedImageError:
        raise NoPictureError("no picture format that is read here") from None
    except Image.DecompressionBombError as bomb:
        found = re.search(r"\d+", str(bomb))
        _must_be_small(int(found[0]) if found else 2 * MOST_PIXELS)
        raise
    except PermissionError:
        raise NoPictureError("no permission to read it") from None
    except UnreadableError:
        raise
    except Exception as trouble:  # on damaged bytes decoders raise whatever they run into
        raise UnreadableError(f"damaged: {_words(trouble)}") from trouble


def _formats(path: Path) -> tuple[str, ...]:
    """What the file may be; the library for phones' pictures is loaded when one may come."""
    if path.is_symlink() and not path.exists():
        raise NoPictureError("a link that leads nowhere")
    if not path.is_file():  # a pipe would block us for ever
        raise NoPictureError("not a regular file")
    if path.stat().st_size == 0:
        raise NoPictureError("empty file")
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return FORMATS
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return (*FORMATS, "HEIF")


def _must_be_small(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise UnreadableError(f"{pixels:,} pixels, and {MOST_PIXELS:,} is the most")


def _words(trouble: Exception) -> str:
    return " ".join(str(trouble).split())[:120] or type(trouble).__name__


def _finished(image: "Image", path: Path) -> Decoded:
    """The first frame, decoded and turned into what learning takes."""
    from PIL import ImageOps

    form = "JPEG" if image.format == "MPO" else image.format or ""
    notes = [*_wrong_name(path, form)]
    if form != "JPEG" and getattr(image, "is_animated", False):
        notes.append("several frames: the first is used")
    image.load()
    _must_be_small(image.width * image.height)
    upright: Image = image
    try:
        upright = ImageOps.exif_transpose(image)
        if image.getexif().get(0x0112, 1) != 1 or upright.size != image.size:
            notes.append("turned upright")
    except Exception:
        notes.append("its EXIF is damaged: taken as it lies")
    upright = _in_srgb(upright, image.info.get("icc_profile"), notes)
    if upright.mode not in ("RGB", "RGBA"):
        notes.append(f"{upright.mode} made RGB")
    if upright.mode.startswith("I") or upright.mode == "F":
        return Decoded(_banded(upright, _eight_bits(upright)), None, form, tuple(notes))
    if not upright.has_transparency_data:
        return Decoded(upright.convert("RGB"), None, form, tuple(notes))
    layer = upright.convert("RGBA")
    opacity = layer.getchannel("A")
    if opacity.getextrema() != (255, 255):
        notes.append("transparent parts made white")
    return Decoded(_banded(layer, _on_white), opacity, form, tuple(notes))


def _wrong_name(path: Path, form: str) -> list[str]:
    from PIL import Image

    suffix = path.suffix.lower()
    named = {"MPO": "JPEG"}.get(known := Image.registered_extensions().get(suffix, ""), known)
    return [f"really {form}"] if named != form and suffix != ".dng" else []


def _in_srgb(image: "Image", profile: bytes | None, notes: list[str]) -> "Image":
    """The picture in sRGB by its colour profile, if that is sound and another one."""
    from PIL import ImageCms

    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L", "P", "LA", "LAB"):
        return image
    try:
        told = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(told).lower():
            return image
        if image.mode in ("P", "LA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        mode, srgb = "RGBA" if image.mode == "RGBA" else "RGB", ImageCms.createProfile("sRGB")
        made = ImageCms.profileToProfile(image, told, srgb, outputMode=mode)
    except Exception:
        notes.append("its colour profile is damaged or does not fit: left out of account")
        return image
    notes.append(f"{image.mode} by its colour profile to sRGB")
    return made or image


def _banded(image: "Image", change: "Callable[[Image], Image]") -> "Image":
    """An RGB picture made of another a few rows at a time, to need little memory."""
    from PIL import Image

    made = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND):
        box = (0, top, image.width, min(top + _BAND, image.height))
        made.paste(change(image.crop(box)), box)
    return made


def _on_white(layer: "Image") -> "Image":
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _eight_bits(whole: "Image") -> "Callable[[Image], Image]":
    """How a grey picture of 16 or more bits, or of floats, becomes one of 8; nothing is clipped."""
    import numpy as np
    from PIL import Image

    # An integer file means 0..65535; floats are 0..1 by custom, or already 0..255.
    top = 65535.0
    if whole.mode == "F":
        top = 1.0 if np.nan_to_num(np.asarray(whole)).max() <= 1.0 else 255.0

    def change(band: Image.Image) -> Image.Image:
        grey = np.nan_to_num(np.asarray(band, dtype=np.float64))
        levels = (grey / top * 255.0).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")

    return change
