"""Decode uploaded images in a process of their own, and store them again as PNG.

The process has limits, and what is left of an upload when it dies is done by the next one. Pixels
of an upload are never decoded in the server, and its bytes never leave this process.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pinxit.errors import DiskError
from pinxit.files.atomic_write import atomic_write, make_folder, remove, waiting_lock, write_text
from pinxit.images.decode import UnreadableError, decode
from pinxit.images.inspect import ImageCheck, check_folder
from pinxit.studio.image_set import (
    CHECK,
    CROPS,
    DISK_ERROR,
    FULL,
    INCOMING,
    MASK,
    THUMBNAILS,
    UNUSED,
    ImageSet,
)
from pinxit.studio.jobs import read_json, safe_stem
from pinxit.studio.unzip import unzip

_SHAPE_TOLERANCE = 0.02  # as for masks in `images.folder`
_MEMORY, _SECONDS = 4 * 2**30, 300
_MAX_PIXELS = 64_000_000
_TEXT_BYTES = 2**16


def take_in(folder: Path, resolution: int, before_each: Callable[[], None] = lambda: None) -> None:
    """Decode all new files of an image set, then check the set; a file is done or still there.

    `before_each` is called before each file, and before the check.
    """
    images = ImageSet(folder)
    while incoming := images.incoming:
        file, name = incoming[0], incoming[0].name.partition("-")[2]
        before_each()
        try:
            if file.suffix == ".zip":
                unzip(file, folder / INCOMING, file.name.partition("-")[0])
            elif name.lower().endswith(MASK):
                _take_mask(file, images, safe_stem(name[: -len(MASK)] + ".png"))
            elif name.lower().endswith(".txt"):
                _take_caption(file, folder / f"{safe_stem(name)}.txt")
            else:
                _take_image(file, folder / f"{safe_stem(name)}.png")
            remove(file)
        except (UnreadableError, ValueError) as error:
            images.reject(file, str(error))
    before_each()
    crop_images(folder)
    check(folder, resolution)


def crop_images(folder: Path) -> None:
    """Crop images and masks as the set says. The whole ones stay: every crop can be undone."""
    from PIL import Image

    crops: dict[str, list[int]] = read_json(folder / CROPS) or {}
    masks = {f"{Path(name).stem}{MASK}": box for name, box in crops.items()}
    for name, box in {**crops, **masks}.items():
        whole = folder / FULL / name
        if not (folder / name).is_file():
            continue
        if not whole.is_file():
            make_folder(folder / FULL)
            shutil.copyfile(folder / name, whole)
        with Image.open(whole, formats=("PNG",)) as image:
            full = (0, 0, *image.size)
            left, top, right, bottom = box or full
            inside = (max(0, left), max(0, top), min(full[2], right), min(full[3], bottom))
            if inside[0] < inside[2] and inside[1] < inside[3]:
                _save(image.crop(inside), folder / name)


def check(folder: Path, resolution: int) -> None:
    """Check the set for training, and write what was found."""
    make_folder(folder / THUMBNAILS)
    folder_check = check_folder(folder, resolution)
    warnings = folder_check.warnings()
    for image in folder_check.checks:
        _save(image.preview, folder / THUMBNAILS / image.name)
    broken = {entry.path.name: "; ".join(entry.notes) for entry in folder_check.rejected}
    result = {
        "images": [_row(image, warnings.get(image.name, [])) for image in folder_check.checks],
        "rejected": [*{**ImageSet(folder).rejected, **broken}.items()],
        "warnings": warnings.get("", []),
    }
    write_text(folder / CHECK, json.dumps(result))


def _take_image(file: Path, target: Path) -> None:
    image = decode(file).image
    if image.width * image.height > _MAX_PIXELS:
        raise UnreadableError(f"{image.width}x{image.height} pixels: more than 64 million")
    stem, number = target.stem, 1
    while target.exists() or (target.parent / UNUSED / target.name).exists():
        number += 1
        target = target.with_name(f"{stem} {number}.png")
    _save(image, target)


def _take_mask(file: Path, images: ImageSet, stem: str) -> None:
    """Store the mask of a whole image in the image's size; the one before it is kept."""
    from PIL import Image

    image = images.folder / f"{stem}.png"
    mask = decode(file).image.convert("L")
    if image.is_file():
        images.drop_mask(image)
        with Image.open(images.whole(image), formats=("PNG",)) as whole:
            ratio = mask.width * whole.height / (mask.height * whole.width)
            mask = mask.resize(whole.size) if abs(ratio - 1) < _SHAPE_TOLERANCE else mask
    if images.whole(image) != image:
        _save(mask, images.folder / FULL / f"{stem}{MASK}")
    _save(mask, images.folder / f"{stem}{MASK}")  # cropped with its image later


def _take_caption(file: Path, target: Path) -> None:
    if file.stat().st_size > _TEXT_BYTES:
        raise ValueError("a caption of more than 64 KiB")
    write_text(target, file.read_bytes().decode("utf-8-sig"))


def _row(image: ImageCheck, warnings: list[str]) -> dict[str, Any]:
    left, top, right, bottom = image.box
    cut_off = 1 - (right - left) * (bottom - top) / (image.size[0] * image.size[1])
    return {
        "name": image.name,
        "size": image.size,
        "bucket": image.bucket,
        "cut_off": round(100 * cut_off),
        "caption": image.image.caption or "",
        "warnings": warnings,
        "notes": image.notes,
        "mask_share": image.mask_share,
    }


def _save(image: Any, path: Path) -> None:
    # Level 6, the default, takes five times as long, and the files are 15% smaller.
    atomic_write(path, lambda draft: image.save(draft, "PNG", compress_level=1))


def _limit_process() -> None:
    """Limit memory, and the time from now on, where the system can: no file uses up the machine."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    end = int(time.process_time()) + _SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Take in the uploaded files of a set; a second process waits until the first one has ended."""
    folder = Path(sys.argv[1])
    try:
        with waiting_lock(folder):
            take_in(folder, int(sys.argv[2]), _limit_process)
    except DiskError as error:
        sys.stderr.write(error.message)
        sys.exit(DISK_ERROR)


if __name__ == "__main__":
    main()
