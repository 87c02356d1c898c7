"""A person's pictures: a folder of files, each checked, upright, and with its caption if any."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pinxit.errors import PictureError
from pinxit.files.atomic_write import sha256
from pinxit.images.decode import Decoded, NoPictureError, UnreadableError, decode

if TYPE_CHECKING:
    from PIL.Image import Image

Masks = Literal["beside", "alpha", "none"]

# Files that people and programs put beside pictures; nobody needs to be told of them.
_COMPANIONS = frozenset({".txt", ".md", ".json", ".jsonl", ".ini", ".db", ".xmp", ".aae"})
# Names that promise a picture: whoever gave one wants to know that it is not learned from.
_RAW = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"})
_PICTURES = _RAW.union(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    (".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".psd", ".xcf", ".svg", ".eps"),
    (".tga", ".ppm", ".pgm", ".qoi", ".ico", ".exr", ".hdr"),
)
# What the mask of toy.jpg is called: toy.mask.png or toy.jpg.mask.png; OneTrainer's name too.
_MASK_ENDINGS = (".mask.png", "-masklabel.png")
_CAPTION_BYTES = 2**16
_A1111_NAME = re.compile(r"\d+-\d+(?:-(?P<caption>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Mask:
    """Where the subject is, white on black: a file beside the picture, or its own opacity."""

    path: Path
    sha256: str


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
    mask: Mask | None = None

    def open(self) -> "Image":
        """Its pixels: upright, RGB, 8 bits, what was transparent on white; PictureError if gone."""
        return self.opened()[0]

    def opened(self) -> "tuple[Image, Image | None]":
        """Its pixels, and its mask (L, of the same size) if it has one; PictureError if gone."""
        try:
            decoded = decode(self.path)
            return decoded.image, _mask_pixels(self.mask, self.path, decoded)
        except UnreadableError as trouble:
            raise PictureError(
                f"picture {self.path} cannot be read any more: {trouble}",
                "put the file back as it was when the run was started",
            ) from trouble


@dataclass(frozen=True)
class Entry:
    """What became of one file of a folder: a picture with its pixels, or why it is none.

    `said` tells what was done to it or what is wrong; a `refused` one was meant to be a picture.
    """

    path: Path
    said: tuple[str, ...]
    refused: bool = False
    picture: Picture | None = None
    decoded: Decoded | None = None
    mask: "Image | None" = None


def read_pictures(
    folder: Path, masks: Masks = "beside", *, skip_bad: bool = False
) -> tuple[Picture, ...]:
    """Every picture of a folder, by file name; one PictureError names all that cannot be read.

    Files that neither are pictures nor are called so are left out, bad ones too with `skip_bad`.
    """
    pictures: list[Picture] = []
    bad: list[Entry] = []
    for entry in look_through(folder, masks):
        if entry.picture:
            pictures.append(entry.picture)
        elif entry.refused:
            bad.append(entry)
    must_be_usable(folder, len(pictures), () if skip_bad else bad)
    return tuple(pictures)


def by_content(pictures: Iterable[Picture]) -> tuple[Picture, ...]:
    """Pictures in an order that follows from what is in them, whatever their names are."""
    return tuple(sorted(pictures, key=lambda picture: picture.sha256))


def fingerprints(pictures: tuple[Picture, ...]) -> dict[str, str]:
    """What each picture and its mask hold, by the picture's name."""
    masks = (f"+{picture.mask.sha256}" if picture.mask else "" for picture in pictures)
    known = zip(pictures, masks, strict=True)
    return {picture.path.name: picture.sha256 + mask for picture, mask in known}


def fingerprint(pictures: Iterable[Picture]) -> str:
    """The fingerprint of what is in some pictures, whatever their names and their order are."""
    digests = "".join(picture.sha256 for picture in by_content(pictures))
    return hashlib.sha256(digests.encode()).hexdigest()


def must_be_usable(folder: Path, count: int, bad: Sequence[Entry]) -> None:
    """PictureError naming the bad ones beside so many pictures, or saying that there are none."""
    if bad:
        named = ", ".join(f"{entry.path.name} ({'; '.join(entry.said)})" for entry in bad)
        raise PictureError(
            f"{len(bad)} of {len(bad) + count} files in {folder} cannot be read as pictures: "
            + named,
            "repair them, take them out of the folder, or leave them out by --skip-bad; "
            "nothing was started",
        )
    if not count:
        folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
        deeper = f"it holds the folders {', '.join(folders)}: give one of them" if folders else ""
        raise PictureError(
            f"there is no picture in {folder}",
            deeper or "put 3 to 12 pictures of the subject or style into it",
        )


def look_through(folder: Path, masks: Masks = "beside") -> Iterator[Entry]:
    """Each file of a folder that a person may take for a picture, by name, decoded one by one."""
    files = _files(folder)
    known = {part for path in files for part in (path.name, path.stem)}
    beside = {path: name for path in files if (name := _masked(path)) is not None}
    for path in files:
        if path.is_dir():
            yield Entry(path, ("a folder",))
        elif path not in beside:
            own = next((at for at, of in beside.items() if of in (path.name, path.stem)), None)
            yield _entry(path, {"beside": own, "alpha": path, "none": None}[masks])
        elif beside[path] not in known:
            yield Entry(path, ("a mask of no picture",), refused=True)


def _masked(path: Path) -> str | None:
    """Which picture a file is the mask of, by its name."""
    name = path.name.lower()
    ends = (len(ending) for ending in _MASK_ENDINGS if name.endswith(ending))
    return next((path.name[:-length] for length in ends), None)


def _entry(path: Path, mask: Path | None) -> Entry:
    suffix = path.suffix.lower()
    try:
        if suffix in _RAW:
            raise UnreadableError("a camera's raw file: develop it to JPEG or PNG")
        decoded = decode(path)
        kept = seen = None
        if mask and (mask != path or decoded.opacity):
            kept = Mask(mask, sha256(mask))
            seen = _mask_pixels(kept, path, decoded)
        picture = Picture(path, _caption(path), sha256(path), mask=kept)
        return Entry(path, decoded.notes, picture=picture, decoded=decoded, mask=seen)
    except NoPictureError as trouble:
        return Entry(path, (str(trouble),), refused=suffix in _PICTURES)
    except (UnreadableError, OSError) as trouble:
        return Entry(path, (str(trouble),), refused=True)


def _files(folder: Path) -> list[Path]:
    """What is in a folder but hidden files and companions; PictureError if it is none."""
    if not folder.exists():
        raise PictureError(
            f"there is no folder {folder}", "give the folder that holds the pictures"
        )
    if not folder.is_dir():
        raise PictureError(f"{folder} is no folder", f"give the folder it is in: {folder.parent}")
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as trouble:
        raise PictureError(
            f"the folder {folder} cannot be read: {trouble.strerror}", "mend its permissions"
        ) from trouble
    return [path for path in inside if path.suffix.lower() not in _COMPANIONS]


def _mask_pixels(mask: Mask | None, path: Path, decoded: Decoded) -> "Image | None":
    """The mask at the picture's size; UnreadableError if it fits the picture in no way."""
    if mask is None:
        return None
    grey = decoded.opacity if mask.path == path else None
    if grey is None:
        try:
            grey = decode(mask.path).image.convert("L")
        except UnreadableError as trouble:
            raise UnreadableError(f"its mask {mask.path.name}: {trouble}") from trouble
    size = decoded.image.size
    if abs(grey.width * size[1] / (grey.height * size[0]) - 1) > 0.02:
        raise UnreadableError(
            f"its mask {mask.path.name} has another shape: {grey.width}x{grey.height} for "
            f"{size[0]}x{size[1]}"
        )
    if not grey.getbbox():
        raise UnreadableError(f"its mask {mask.path.name} is black all over")
    return grey.resize(size) if grey.size != size else grey


def _caption(path: Path) -> str | None:
    """The words for a picture: from the text file beside it, else from its own name, else none."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        if beside.stat().st_size > _CAPTION_BYTES:
            raise UnreadableError(f"its caption {beside.name} is over {_CAPTION_BYTES} bytes")
        try:
            text = beside.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UnreadableError(f"its caption {beside.name} is not UTF-8 text") from None
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
