"""Where files that can be made again are kept for all runs."""

import os
from pathlib import Path

from pinxit.errors import DiskError
from pinxit.files.atomic_write import make_folder
from pinxit.files.untrusted import expanded


def cache_folder() -> Path:
    """The cache folder: PINXIT_CACHE, or else pinxit in the cache folder of the user."""
    folder = os.environ.get("PINXIT_CACHE")
    if folder:
        return Path(folder)
    parent = os.environ.get("XDG_CACHE_HOME")
    return expanded(parent or "~/.cache") / "pinxit"


def make_in_cache(*names: str) -> Path:
    """A folder in the cache folder, made if it is missing; DiskError if nothing can be written."""
    folder = cache_folder().joinpath(*names)
    try:
        make_folder(folder, writable=True)
    except DiskError as error:
        raise DiskError(
            f"the cache folder cannot be used: {error.message}",
            "set the variable PINXIT_CACHE to a folder that you can write to",
        ) from error
    return folder


def bytes_in(folder: Path) -> int:
    """The size of all files under a folder; links are not followed."""
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files if os.path.lexists(file))
