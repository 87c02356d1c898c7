"""A folder of training images: each file is decoded, checked and given its caption and mask."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pinxit.arguments import checked
from pinxit.errors import FileError, ImageError
from pinxit.files.atomic_write import sha256
from pinxit.files.untrusted import exists
from pinxit.images.captions import TEXT_SUFFIXES, FolderCaptions, with_dot
from pinxit.images.decode import Decoded, NotAnImageError, UnreadableError, decode

if TYPE_CHECKING:
    from PIL.Image import Image

MaskSource = Literal["files", "alpha", "none"]

# Files that people and programs store next to images; only captions that are not read are named.
_OTHER_FILES = TEXT_SUFFIXES | {".md", ".ini", ".db", ".xmp", ".aae"}
# Names of images: if such a file cannot be used, the user must be told.
_RAW_SUFFIXES = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"})
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"})
_IMAGE_SUFFIXES = _RAW_SUFFIXES.union(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    (".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".psd", ".xcf", ".svg", ".eps"),
    (".tga", ".ppm", ".pgm", ".qoi", ".ico", ".exr", ".hdr"),
)
# The mask of toy.jpg is toy.mask.png, toy.jpg.mask.png or, as in OneTrainer, toy-masklabel.png.
MASK_SUFFIXES = (".mask.png", "-masklabel.png")


@dataclass(frozen=True)
class Mask:
    """A mask of the subject, white on black: a separate file, or the image's own alpha channel."""

    path: Path
    sha256: str


class PixelCache:
    """Decoded images and masks of a folder, so that each file is decoded once before training.

    It keeps at most `max_bytes`; what does not fit is decoded again when it is used.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = max_bytes
        self._pixels: dict[Path, tuple[Image, Image | None]] = {}

    def get(self, path: Path) -> "tuple[Image, Image | None] | None":
        """The image and the mask of a file; None if they are not in the cache."""
        return self._pixels.get(path)

    def add(self, path: Path, image: "Image", mask: "Image | None") -> None:
        """Keep an image and its mask if they fit."""
        size = image.width * image.height * (5 if mask else 4)  # Pillow has 4 bytes per RGB pixel
        if path not in self._pixels and size <= self._free_bytes:
            self._pixels[path] = image, mask
            self._free_bytes -= size

    def clear(self) -> None:
        """Release all pixels."""
        self._pixels.clear()
        self._free_bytes = self._max_bytes


@dataclass(frozen=True)
class TrainingImage:
    """An image file that was decoded once without an error.

    `weight` is its weight in the loss; `class_image` is true for images generated with the base
    model for prior preservation. Its pixels may be in `cache`.
    """

    path: Path
    caption: str | None
    sha256: str = field(repr=False)
    weight: float = 1.0
    class_image: bool = False
    mask: Mask | None = None
    cache: PixelCache | None = field(default=None, repr=False, compare=False)

    def open(self) -> "Image":
        """Decode the image: upright, RGB, 8 bits, on white; ImageError if that is not possible."""
        return self.open_with_mask()[0]

    def open_with_mask(self) -> "tuple[Image, Image | None]":
        """Decode the image and its mask, if any (L, of the same size); may raise ImageError.

        They may be shared: do not change their pixels.
        """
        if self.cache and (pixels := self.cache.get(self.path)):
            return pixels
        try:
            decoded = decode(self.path)
            mask = _mask_pixels(self.mask, self.path, decoded)
            if self.cache:
                self.cache.add(self.path, decoded.image, mask)
            return decoded.image, mask
        except UnreadableError as error:
            raise ImageError(
                f"image {self.path} can no longer be read: {error}",
                "restore the file as it was when the run was started",
            ) from error


@dataclass(frozen=True)
class ImageEntry:
    """One file of a folder: an image with its pixels, or the reason why it is not used.

    `notes` say how it was converted, or what is wrong; a `rejected` file should be an image, but
    cannot be used.
    """

    path: Path
    notes: tuple[str, ...]
    rejected: bool = False
    image: TrainingImage | None = None
    decoded: Decoded | None = None
    mask: "Image | None" = None


@checked
def read_images(
    folder: Path | str,
    masks: MaskSource = "files",
    caption_extension: str | None = None,
    *,
    skip_bad: bool = False,
) -> tuple[TrainingImage, ...]:
    """Read all images of a folder, sorted by file name; ImageError names those that are rejected.

    Files that are not images, by content and by name, are ignored; with `skip_bad` rejected ones
    as well.
    """
    images: list[TrainingImage] = []
    rejected: list[ImageEntry] = []
    folder = Path(folder)
    for entry in check_images(folder, masks, caption_extension):
        if entry.image:
            images.append(entry.image)
        elif entry.rejected:
            rejected.append(entry)
    check_usable(folder, len(images), () if skip_bad else rejected)
    return tuple(images)


def release_pixels(images: Iterable[TrainingImage]) -> None:
    """Remove the pixels of images from memory; they are decoded again if they are used."""
    for image in images:
        if image.cache:
            image.cache.clear()


def sort_by_content(images: Iterable[TrainingImage]) -> tuple[TrainingImage, ...]:
    """Sort images by their SHA-256, so that the order does not depend on file names."""
    return tuple(sorted(images, key=lambda image: image.sha256))


def fingerprints(images: tuple[TrainingImage, ...]) -> dict[str, str]:
    """The SHA-256 of each image, with "+" and that of its mask if it has one, by file name."""
    found: dict[str, str] = {}
    for image in images:
        name = image.path.name.encode(errors="backslashreplace").decode()
        found[name] = image.sha256 + (f"+{image.mask.sha256}" if image.mask else "")
    return found


def fingerprint(images: Iterable[TrainingImage]) -> str:
    """One SHA-256 for the content of several images, independent of their names and order."""
    digests = "".join(image.sha256 for image in sort_by_content(images))
    return hashlib.sha256(digests.encode()).hexdigest()


def check_usable(folder: Path, count: int, rejected: Sequence[ImageEntry]) -> None:
    """Raise ImageError if files of a folder are rejected or if the count of images is 0."""
    if rejected:
        reasons = ", ".join(f"{entry.path.name} ({'; '.join(entry.notes)})" for entry in rejected)
        raise ImageError(
            f"{len(rejected)} of {len(rejected) + count} files in {folder} cannot be read as "
            f"images: {reasons}",
            "repair them, remove them from the folder, or ignore them with --skip-bad; "
            "nothing was started",
        )
    if not count:
        folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
        hint = "put images into it: 3 to 12 of a subject or a style"
        if folders:
            hint = f"it contains the folders {', '.join(folders)}: give one of them"
        raise ImageError(f"there is no image in {folder}", hint)


def check_images(
    folder: Path, masks: MaskSource = "files", caption_extension: str | None = None
) -> Iterator[ImageEntry]:
    """Decode the files of a folder one by one, sorted by name, without captions and masks.

    The images have a common cache, which keeps their pixels. With a `caption_extension`, only
    files with this suffix are captions.
    """
    cache = PixelCache()
    paths = _files(folder)
    caption_extension = with_dot(caption_extension)
    others = {*_OTHER_FILES, caption_extension}
    files = [path for path in paths if path.suffix.lower() not in others]
    captions = FolderCaptions.of(paths, files, caption_extension)
    image_names = {name for path in files for name in (path.name, path.stem)}
    mask_files = {path: name for path in files if (name := _masked_name(path)) is not None}
    for path in files:
        if path.is_dir():
            yield ImageEntry(path, ("a folder",))
        elif path not in mask_files:
            masks_of_image = (
                mask for mask, name in mask_files.items() if name in (path.name, path.stem)
            )
            mask_file = next(masks_of_image, None)
            mask_source = {"files": mask_file, "alpha": path, "none": None}[masks]
            yield _entry(path, mask_source, captions, cache)
        elif mask_files[path] not in image_names:
            yield ImageEntry(path, ("a mask without an image",), rejected=True)
    for path, reason in captions.unread.items():
        yield ImageEntry(path, (reason,))


def _masked_name(path: Path) -> str | None:
    """The name of the image that a file is the mask of, or None if it is not a mask."""
    name = path.name.lower()
    lengths = (len(suffix) for suffix in MASK_SUFFIXES if name.endswith(suffix))
    return next((path.name[:-length] for length in lengths), None)


def _entry(
    path: Path, mask_file: Path | None, captions: FolderCaptions, cache: PixelCache
) -> ImageEntry:
    suffix = path.suffix.lower()
    try:
        if suffix in _RAW_SUFFIXES:
            raise UnreadableError("a camera's raw file: convert it to JPEG or PNG")
        decoded = decode(path)
        mask = mask_pixels = None
        if mask_file and (mask_file != path or decoded.alpha):
            mask = Mask(mask_file, sha256(mask_file))
            mask_pixels = _mask_pixels(mask, path, decoded)
        caption, notes = captions.caption(path)
        image = TrainingImage(path, caption, sha256(path), mask=mask, cache=cache)
        cache.add(path, decoded.image, mask_pixels)
        return ImageEntry(
            path, (*decoded.notes, *notes), image=image, decoded=decoded, mask=mask_pixels
        )
    except NotAnImageError as error:
        return ImageEntry(path, (str(error),), rejected=suffix in _IMAGE_SUFFIXES)
    except FileError as error:
        return ImageEntry(path, (f"its caption {error.message}",), rejected=True)
    except (UnreadableError, OSError) as error:
        return ImageEntry(path, (str(error),), rejected=True)


def _files(folder: Path) -> list[Path]:
    """The files and folders in a folder, without hidden ones; may raise ImageError."""
    if not exists(folder):
        raise ImageError(f"there is no folder {folder}", "give the folder that contains the images")
    if not folder.is_dir():
        packed = folder.suffix.lower() in _ARCHIVES
        hint = "unpack it" if packed else f"give the folder it is in: {folder.parent}"
        raise ImageError(f"{folder} is not a folder", hint)
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ImageError(
            f"the folder {folder} cannot be read: {error.strerror}", "change its permissions"
        ) from error


def _mask_pixels(mask: Mask | None, path: Path, decoded: Decoded) -> "Image | None":
    """The mask (L) in the size of the image; UnreadableError if it does not fit or is all black."""
    if mask is None:
        return None
    gray = decoded.alpha if mask.path == path else None
    if gray is None:
        try:
            gray = decode(mask.path).image.convert("L")
        except UnreadableError as error:
            raise UnreadableError(f"its mask {mask.path.name}: {error}") from error
    size = decoded.image.size
    if abs(gray.width * size[1] / (gray.height * size[0]) - 1) > 0.02:
        raise UnreadableError(
            f"its mask {mask.path.name} does not fit the image: "
            f"{gray.width}x{gray.height} for {size[0]}x{size[1]}"
        )
    if not gray.getbbox():
        raise UnreadableError(f"its mask {mask.path.name} is all black")
    return gray.resize(size) if gray.size != size else gray
