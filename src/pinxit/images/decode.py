"""Decode an image file of any supported format into upright 8-bit sRGB pixels."""

import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# The only decoders that are used. Pillow has more: one of them starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")
# Pillow's own limit; decoding takes about 1.1 GB.
MAX_PIXELS = 89_478_485
_SCAN_MARKER = b"\xff\xda"
# Scans times pixels of a JPEG; progressive images usually have 10 scans.
_MAX_SCANNED_PIXELS = 25 * MAX_PIXELS
_BAND_ROWS = 512


class UnreadableError(Exception):
    """A file cannot be used; the message says why in a few words."""


class NotAnImageError(UnreadableError):
    """Nothing in the file indicates that it is an image."""


@dataclass(frozen=True)
class Decoded:
    """An image in RGB on white, its alpha channel (L) if any, its format, and what was changed."""

    image: "Image"
    alpha: "Image | None"
    format: str
    notes: tuple[str, ...]


def decode(path: Path) -> Decoded:
    """Decode an image by its content, whatever its file name; UnreadableError if that fails."""
    with open_image(path) as image:
        return _convert(image, path)


@contextmanager
def open_image(path: Path) -> "Generator[Image]":
    """An image file whose pixels are not decoded yet.

    Any error of Pillow inside the block is an UnreadableError.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        formats = _formats(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # important ones become notes
            with Image.open(path, formats=formats) as image:
                _check_pixel_count(image.width * image.height)
                if image.format in ("JPEG", "MPO"):
                    _check_scans(path, image.width * image.height)
                yield image
    except UnidentifiedImageError:
        raise NotAnImageError("not in a supported image format") from None
    except Image.DecompressionBombError as bomb:
        pixels = re.search(r"\d+", str(bomb))
        _check_pixel_count(int(pixels[0]) if pixels else 2 * MAX_PIXELS)
        raise
    except PermissionError:
        raise NotAnImageError("no permission to read it") from None
    except UnreadableError:
        raise
    except Exception as error:  # decoders raise many kinds of errors on damaged bytes
        raise UnreadableError(f"damaged: {_one_line(error)}") from error


def _formats(path: Path) -> tuple[str, ...]:
    """The formats to try; the HEIF library is imported only if the file may need it."""
    if path.is_symlink() and not path.exists():
        raise NotAnImageError("a broken link")
    if not path.is_file():  # reading a pipe would block forever
        missing = "not a regular file" if path.exists() else "there is no such file"
        raise NotAnImageError("a folder, not an image" if path.is_dir() else missing)
    if path.stat().st_size == 0:
        raise NotAnImageError("empty file")
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return FORMATS
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    return (*FORMATS, "HEIF")


def _check_scans(path: Path, pixels: int) -> None:
    """Refuse a JPEG that would take minutes: each of its scans goes over all pixels.

    The marker of a scan cannot be part of compressed data.
    """
    scans, last = 0, b""
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            scans += (last + chunk).count(_SCAN_MARKER)
            last = chunk[-1:]
    if scans * pixels > _MAX_SCANNED_PIXELS:
        raise UnreadableError(f"{scans:,} scans of {pixels:,} pixels are too many")


def _check_pixel_count(pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise UnreadableError(f"{pixels:,} pixels, and the limit is {MAX_PIXELS:,}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _convert(image: "Image", path: Path) -> Decoded:
    """Decode the first frame and convert it to upright sRGB."""
    from PIL import ImageOps

    format_name = "JPEG" if image.format == "MPO" else image.format or ""
    notes = [*_name_notes(path, format_name)]
    if format_name != "JPEG" and getattr(image, "is_animated", False):
        notes.append("has several frames: the first one is used")
    image.load()
    _check_pixel_count(image.width * image.height)
    upright: Image = image
    try:
        upright = ImageOps.exif_transpose(image)
        if image.getexif().get(0x0112, 1) != 1 or upright.size != image.size:
            notes.append("rotated upright")
    except Exception:
        notes.append("damaged EXIF data: not rotated")
    upright = _in_srgb(upright, image.info.get("icc_profile"), notes)
    if upright.mode not in ("RGB", "RGBA"):
        notes.append(f"converted from {upright.mode} to RGB")
    if upright.mode.startswith("I") or upright.mode == "F":
        return Decoded(_by_bands(upright, _to_8_bits(upright)), None, format_name, tuple(notes))
    if not upright.has_transparency_data:
        return Decoded(upright.convert("RGB"), None, format_name, tuple(notes))
    layer = upright.convert("RGBA")
    alpha = layer.getchannel("A")
    if alpha.getextrema() != (255, 255):
        notes.append("transparent parts filled with white")
    return Decoded(_by_bands(layer, _on_white), alpha, format_name, tuple(notes))


def _name_notes(path: Path, format_name: str) -> list[str]:
    from PIL import Image

    suffix = path.suffix.lower()
    format_of_suffix = Image.registered_extensions().get(suffix, "")
    if format_of_suffix == "MPO":
        format_of_suffix = "JPEG"
    if format_of_suffix == format_name or suffix == ".dng":
        return []
    return [f"is in {format_name} format, unlike its name"]


def _in_srgb(image: "Image", profile: bytes | None, notes: list[str]) -> "Image":
    """Convert an image to sRGB if it has a valid color profile other than sRGB."""
    from PIL import ImageCms

    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L", "P", "LA", "LAB"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        if image.mode in ("P", "LA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        mode, srgb = "RGBA" if image.mode == "RGBA" else "RGB", ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode=mode)
    except Exception:
        notes.append("damaged or unsuitable color profile: ignored")
        return image
    notes.append(f"converted from {image.mode} to sRGB by its color profile")
    return converted or image


def _by_bands(image: "Image", convert: "Callable[[Image], Image]") -> "Image":
    """Convert an image to RGB in bands of rows, to use little memory."""
    from PIL import Image

    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        converted.paste(convert(image.crop(box)), box)
    return converted


def _on_white(layer: "Image") -> "Image":
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _to_8_bits(image: "Image") -> "Callable[[Image], Image]":
    """A function that converts gray pixels of 16 or more bits, or floats, to 8 bits unclipped."""
    import numpy as np
    from PIL import Image

    # Integers are 0..65535; floats are usually 0..1, otherwise 0..255.
    white = 65535.0
    if image.mode == "F":
        highest = np.asarray(image).max()
        if not np.isfinite(highest - np.asarray(image).min()):
            raise UnreadableError("has pixels that are infinite or NaN")
        white = 1.0 if highest <= 1.0 else 255.0

    def convert(band: Image.Image) -> Image.Image:
        gray = np.asarray(band, dtype=np.float64)
        levels = (gray / white * 255.0).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")

    return convert
