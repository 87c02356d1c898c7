"""A mark in the sheets of images that pinxit writes, so that no other image is overwritten."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

_KEY = "pinxit-sheet"


def sheet_mark(kind: str) -> "PngInfo":
    """The metadata of a PNG that marks it as a sheet of this kind."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_KEY, kind)
    return info


def has_sheet_mark(path: Path, kind: str) -> bool:
    """Whether a file is a marked sheet of this kind, by the text at its start."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"tEXt" + f"{_KEY}\0{kind}".encode() in file.read(128)
