"""Images given as files or as PIL images, collected in one folder."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Annotated, cast

from pydantic import BeforeValidator

from pinxit.errors import ImageError
from pinxit.files.atomic_write import write_bytes
from pinxit.files.cache import cache_folder, make_in_cache
from pinxit.files.untrusted import expanded
from pinxit.images.folder import MASK_SUFFIXES

_HINT = "give a folder, or a list of image files or PIL images"


def image_folder(images: object) -> object:
    """The folder of training images; a list or tuple of images is collected in the cache.

    The name of that folder is a hash of the files in it, so that equal images are stored once and
    a run can be continued. Captions and masks next to an image file are copied with it. Raises
    ImageError for anything that is neither a file nor a PIL image.
    """
    if not isinstance(images, list | tuple):
        return images
    if not images:
        raise ImageError("the list of training images is empty", _HINT)
    files: dict[str, bytes] = {}
    stems: set[str] = set()
    for number, image in enumerate(cast("Sequence[object]", images), 1):
        stem, new = _files_of(image, number)
        # Files of one name in several folders get a number.
        unique = f"{stem}-{number}" if stem in stems else stem
        stems.add(unique)
        files |= {f"{unique}{ending}": content for ending, content in new.items()}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}:{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    place = ("images", digest.hexdigest()[:16])
    folder = cache_folder().joinpath(*place)
    for name, content in files.items():
        if not (folder / name).is_file():
            write_bytes(make_in_cache(*place) / name, [content])
    return folder


def image_file(image: object) -> object:
    """The file of an image; a PIL image is stored in the cache."""
    from PIL.Image import Image

    if not isinstance(image, Image):
        return image
    return next(cast("Path", image_folder([image])).glob("001.*"))


# A path for which a PIL image may be given.
ImageFile = Annotated[Path, BeforeValidator(image_file)]


def _files_of(image: object, number: int) -> tuple[str, dict[str, bytes]]:
    """A name for an image, and its files by the ending of their names: image, caption, mask."""
    from PIL.Image import Image

    if isinstance(image, str | Path) and (path := expanded(image)).is_file():
        masks = [f"{middle}{mask}" for middle in ("", path.suffix) for mask in MASK_SUFFIXES]
        files = {end: path.with_name(path.stem + end) for end in (path.suffix, ".txt", *masks)}
        return path.stem, {end: file.read_bytes() for end, file in files.items() if file.is_file()}
    if isinstance(image, Image):
        for kind, ending in (("PNG", ".png"), ("TIFF", ".tif")):  # PNG has no CMYK and no floats
            with suppress(OSError):
                image.save(file := BytesIO(), kind)
                return f"{number:03}", {ending: file.getvalue()}
    raise ImageError(
        f"training image {number} is neither a file nor a complete PIL image: {image!r:.80}", _HINT
    )
