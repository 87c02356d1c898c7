"""`pinxit check`: what of a folder of pictures would be learned from, and what is odd about it."""

import os
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pinxit.cli.screen import say, table
from pinxit.errors import PictureError
from pinxit.files.atomic_write import replace
from pinxit.images.folder import Masks, must_be_usable
from pinxit.images.tensors import sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from pinxit.images.inspect import Look, Survey

_TILE = (264, 292)
_LABEL = 34
# The text of the PNG by which a sheet is recognized, so that no other image is overwritten.
_MARK = ("pinxit-sheet", "contact sheet")


def check(
    pictures: Annotated[Path, Parameter(help="folder with the pictures to learn from")],
    *,
    size: Annotated[int, Parameter(help="pixels of a side to learn at")] = 512,
    masks: Annotated[Masks, Parameter(help="where masks are: as for train")] = "beside",
    out: Annotated[
        Path | None, Parameter(help="the contact sheet; FOLDER-check.png beside it if not given")
    ] = None,
) -> None:
    """Say what would be learned from, how it would be cropped, and what is refused or odd."""
    from PIL.PngImagePlugin import PngInfo

    from pinxit.images.inspect import survey

    out = out or _free(f"{pictures.resolve()}-check")
    if out.resolve().parent == pictures.resolve():
        raise PictureError(f"{out} would be one of the pictures", "give an --out elsewhere")
    found = survey(pictures, max(size // 8, 1) * 8, masks=masks)
    show(found)
    if found.looks or found.refused:
        paper = contact_sheet(found)
        about = PngInfo()
        about.add_text(*_MARK)
        replace(out, lambda beside: paper.save(beside, "PNG", pnginfo=about))
        say(f"the contact sheet is {out}")
    must_be_usable(pictures, len(found.looks), found.refused)


def _free(stem: str) -> Path:
    """A path for a sheet: one that is free, or an earlier sheet's."""
    ends = chain([""], (f"-{number}" for number in count(2)))
    paths = (Path(f"{stem}{end}.png") for end in ends)
    return next(path for path in paths if not os.path.lexists(path) or _is_sheet(path))


def _is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet that `check` made: its text comes first in it."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"tEXt" + "\0".join(_MARK).encode() in file.read(128)


def show(found: "Survey") -> None:
    """The table: a row for each file, and what is odd of all together below it."""
    worries = found.worries()
    rows = [_row(look, worries.get(look.name, [])) for look in found.looks]
    for verdict, entries in (("REFUSED", found.refused), ("left out", found.left_out)):
        rows += [(one.path.name, verdict, "", "", "; ".join(one.said)) for one in entries]
    table(("file", "verdict", "size", "learned at", "remarks"), rows)
    say(_summary(found))
    for worry in worries.get("", []):
        say(f"odd: {worry}")


def before_learning(found: "Survey", skip_bad: bool) -> None:
    """What a person should know before a run begins; PictureError if it cannot begin."""
    must_be_usable(found.folder, len(found.looks), () if skip_bad else found.refused)
    say(_summary(found))
    for entry in (*found.refused, *found.left_out):
        say(f"left out: {entry.path.name}: {'; '.join(entry.said)}")
    for name, said in found.worries().items():
        say(f"odd: {name}{': ' if name else ''}{'; '.join(said)}")


def contact_sheet(found: "Survey") -> "Image":
    """Every picture with the rectangle that is learned from, and the refused ones as red tiles."""
    worries = found.worries()
    tiles = [_tile(look, worries.get(look.name, [])) for look in found.looks]
    tiles += [_labelled(None, entry.path.name, entry.said, "red") for entry in found.refused]
    return sheet(tiles)


def _tile(look: "Look", worries: Sequence[str]) -> "Image":
    from PIL import Image, ImageDraw

    scale = look.small.width / look.size[0]
    edges = [round(edge * scale) for edge in look.box]
    left, top, right, bottom = edges[0], edges[1], max(edges[2] - 1, 0), max(edges[3] - 1, 0)
    dim = Image.blend(look.small, Image.new("RGB", look.small.size, "white"), 0.65)
    dim.paste(look.small.crop((left, top, right + 1, bottom + 1)), (left, top))
    colour = "orange" if worries else "green"
    if right > left and bottom > top:
        ImageDraw.Draw(dim).rectangle((left, top, right, bottom), outline=colour, width=2)
    learned = f"{look.shape[0]}x{look.shape[1]}"
    return _labelled(dim, look.name, worries or [f"learned at {learned}"], colour)


def _labelled(image: "Image | None", name: str, said: Sequence[str], colour: str) -> "Image":
    """A tile of one size, with the file's name and a line below it."""
    from PIL import Image, ImageDraw, ImageFont

    tile = Image.new("RGB", _TILE, "white")
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    room = _TILE[1] - _LABEL
    if image:
        tile.paste(image, ((_TILE[0] - image.width) // 2, (room - image.height) // 2))
    else:
        pen.line((60, 60, _TILE[0] - 60, room - 60), fill=colour, width=3)
        pen.line((60, room - 60, _TILE[0] - 60, 60), fill=colour, width=3)
    for row, text in enumerate((name, "; ".join(said))):
        shown = text.encode("ascii", "replace").decode()
        while shown and pen.textlength(shown, font) > _TILE[0] - 8:
            shown = shown[: int(len(shown) * 0.95)]
        pen.text((4, room + 1 + 16 * row), shown, "black" if row == 0 else colour, font)
    return tile


def _row(look: "Look", worries: Sequence[str]) -> tuple[str, ...]:
    left, top, right, bottom = look.box
    cut = 1 - (right - left) * (bottom - top) / (look.size[0] * look.size[1])
    learned = f"{look.shape[0]}x{look.shape[1]}" + (f", {cut:.0%} cut off" if cut > 0.005 else "")
    said = [*worries, *look.said]
    said += [f"mask shows {look.masked:.0%}"] if look.masked is not None else []
    said += [f"caption: {look.picture.caption}"] if look.picture.caption else []
    size = f"{look.size[0]}x{look.size[1]}"
    return look.name, "odd" if worries else "used", size, learned, "; ".join(said)


def _summary(found: "Survey") -> str:
    """One line: how many pictures, refused and left out."""
    masked = sum(look.masked is not None for look in found.looks)
    counts = {"with masks": masked, "refused": len(found.refused), "left out": len(found.left_out)}
    also = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"{len(found.looks)} pictures{also}"
