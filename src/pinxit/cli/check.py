"""`pinxit check`: which images of a folder would be used for training, and their problems."""

import os
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pinxit.cli.flags import Values, command, flags, positional_option
from pinxit.cli.screen import say, table
from pinxit.errors import ImageError, PinxitError
from pinxit.files.atomic_write import atomic_write
from pinxit.images.crop import MAX_RESOLUTION
from pinxit.images.folder import MaskSource, check_usable
from pinxit.images.marks import has_sheet_mark, sheet_mark
from pinxit.images.tensors import contact_sheet
from pinxit.options import Option, Options

if TYPE_CHECKING:
    from PIL.Image import Image

    from pinxit.images.inspect import FolderCheck, ImageCheck

_TILE = (264, 292)
_LABEL_HEIGHT = 34
# The resolution at which images are checked for a base model that is not on this machine.
HUB_RESOLUTION = 512
_SHEET = "contact sheet"  # its mark


class CheckOptions(Options):
    """The options of `pinxit check`."""

    error_type: ClassVar[type[PinxitError]] = ImageError
    table_title: ClassVar[str] = "`pinxit check`"

    images: Path = Option(aliases=("pictures", "instance_data_dir", "train_data_dir"))
    """folder with the training images"""
    resolution: int | None = Option(
        None,
        ge=8,
        le=MAX_RESOLUTION,
        aliases=("size",),
        default_is="the resolution that the base model was trained at, 512 if it is not known",
    )
    """training resolution in pixels, as for train"""
    base: str = Option("pocket", aliases=("model",))
    """base model to train, as for train"""
    skip_bad: bool = False
    """leave out images that cannot be read, as for train"""
    masks: MaskSource = Option("files", values={"beside": "files"})
    """where masks are, as for train: files takes toy.mask.png for toy.jpg, alpha takes the alpha
    channel, none trains on whole images"""
    caption_extension: str | None = Option(None, default_is="several")
    """suffix of the caption files, as for train"""
    out: Path | None = Option(None, default_is="IMAGES-check.png next to the folder")
    """file for the contact sheet"""


def _check(given: Values) -> None:
    from pinxit.images.inspect import check_folder
    from pinxit.models.hub import looks_like_id
    from pinxit.models.open_base import find_base, local_resolution

    options = CheckOptions.model_validate(given)
    folder = options.images
    out = options.out or _free_path(f"{Path(os.path.abspath(folder))}-check")  # noqa: PTH100 (no link is followed)
    if out.resolve().parent == folder.resolve():
        raise ImageError(f"{out} is in the folder of the training images", "choose another --out")
    resolution = options.resolution or local_resolution(options.base)
    if not resolution:
        resolution = HUB_RESOLUTION
        if not looks_like_id(options.base):
            find_base(options.base)  # an error, which names what can be given
        say(f"note: checked at {resolution} pixels; if {options.base} has others: --resolution")
    checks = check_folder(
        folder,
        max(resolution // 8, 1) * 8,
        masks=options.masks,
        caption_extension=options.caption_extension,
    )
    show(checks)
    if checks.checks or checks.rejected:
        sheet = check_sheet(checks)
        info = sheet_mark(_SHEET)
        atomic_write(out, lambda draft: sheet.save(draft, "PNG", pnginfo=info))
        say(f"contact sheet: {out}")
    check_usable(folder, len(checks.checks), () if options.skip_bad else checks.rejected)


def _free_path(stem: str) -> Path:
    """A path for a contact sheet: a free one, or that of an earlier contact sheet."""
    suffixes = chain([""], (f"-{number}" for number in count(2)))
    paths = (Path(f"{stem}{suffix}.png") for suffix in suffixes)
    return next(path for path in paths if not os.path.lexists(path) or has_sheet_mark(path, _SHEET))


def show(checks: "FolderCheck") -> None:
    """Print a table with a row for each file, and warnings about the whole folder below it."""
    warnings = checks.warnings()
    rows = [_row(image, warnings.get(image.name, [])) for image in checks.checks]
    for verdict, entries in (("REFUSED", checks.rejected), ("left out", checks.ignored)):
        rows += [(entry.path.name, verdict, "", "", "; ".join(entry.notes)) for entry in entries]
    table(("file", "verdict", "size", "trained at", "notes"), rows)
    say(_summary(checks))
    say(*(f"warning: {warning}" for warning in warnings.get("", [])))


def check_before_training(checks: "FolderCheck", skip_bad: bool) -> None:
    """Print what was found in the image folder; ImageError if training cannot start with it."""
    check_usable(checks.folder, len(checks.checks), () if skip_bad else checks.rejected)
    say(_summary(checks))
    for entry in (*checks.rejected, *checks.ignored):
        say(f"left out: {entry.path.name}: {'; '.join(entry.notes)}")
    for name, warnings in checks.warnings().items():
        say(f"warning: {name}{': ' if name else ''}{'; '.join(warnings)}")


def check_sheet(checks: "FolderCheck") -> "Image":
    """A contact sheet of all images with their crops; refused ones are crossed out in red."""
    warnings = checks.warnings()
    tiles = [_tile(image, warnings.get(image.name, [])) for image in checks.checks]
    tiles += [_labelled(None, entry.path.name, entry.notes, "red") for entry in checks.rejected]
    return contact_sheet(tiles)


def _tile(check: "ImageCheck", warnings: Sequence[str]) -> "Image":
    """The image with its crop framed; what is cut off is faded."""
    from PIL import Image, ImageDraw

    scale = check.preview.width / check.size[0]
    edges = [round(edge * scale) for edge in check.box]
    left, top, right, bottom = edges[0], edges[1], max(edges[2] - 1, 0), max(edges[3] - 1, 0)
    faded = Image.blend(check.preview, Image.new("RGB", check.preview.size, "white"), 0.65)
    faded.paste(check.preview.crop((left, top, right + 1, bottom + 1)), (left, top))
    color = "orange" if warnings else "green"
    if right > left and bottom > top:
        ImageDraw.Draw(faded).rectangle((left, top, right, bottom), outline=color, width=2)
    label = f"trained at {check.bucket[0]}x{check.bucket[1]}"
    return _labelled(faded, check.name, warnings or [label], color)


def _labelled(image: "Image | None", name: str, notes: Sequence[str], color: str) -> "Image":
    """A tile with the file's name and the notes below the image."""
    from PIL import Image, ImageDraw, ImageFont

    tile = Image.new("RGB", _TILE, "white")
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    height = _TILE[1] - _LABEL_HEIGHT
    if image:
        tile.paste(image, ((_TILE[0] - image.width) // 2, (height - image.height) // 2))
    else:
        draw.line((60, 60, _TILE[0] - 60, height - 60), fill=color, width=3)
        draw.line((60, height - 60, _TILE[0] - 60, 60), fill=color, width=3)
    for row, text in enumerate((name, "; ".join(notes))):
        label = text.encode("ascii", "replace").decode()
        while label and draw.textlength(label, font) > _TILE[0] - 8:
            label = label[: int(len(label) * 0.95)]
        draw.text((4, height + 1 + 16 * row), label, "black" if row == 0 else color, font)
    return tile


def _row(check: "ImageCheck", warnings: Sequence[str]) -> tuple[str, ...]:
    """The row of a used image: name, verdict, size, training size, notes."""
    left, top, right, bottom = check.box
    cut_off = 1 - (right - left) * (bottom - top) / (check.size[0] * check.size[1])
    bucket = f"{check.bucket[0]}x{check.bucket[1]}"
    if cut_off > 0.005:
        bucket += f", {cut_off:.0%} cut off"
    notes = [*warnings, *check.notes]
    if check.mask_share is not None:
        notes.append(f"mask shows {check.mask_share:.0%}")
    if check.image.caption:
        notes.append(f"caption: {check.image.caption}")
    size = f"{check.size[0]}x{check.size[1]}"
    return check.name, "warning" if warnings else "used", size, bucket, "; ".join(notes)


def _summary(checks: "FolderCheck") -> str:
    """One line: the numbers of images, masks, refused files and files left out."""
    masked = sum(check.mask_share is not None for check in checks.checks)
    numbers = {
        "with masks": masked,
        "refused": len(checks.rejected),
        "left out": len(checks.ignored),
    }
    details = "".join(f", {number} {what}" for what, number in numbers.items() if number)
    total = len(checks.checks)
    return f"{total} image{'' if total == 1 else 's'}{details}"


check = command(
    [
        *positional_option(CheckOptions, "images"),
        *flags(CheckOptions, leave_out=frozenset({"images"})),
    ],
    _check,
)
