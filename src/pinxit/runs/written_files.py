"""The names of the files that a run writes: no other file in its folder is touched."""

import re
from pathlib import Path

from pinxit.files.atomic_write import check_regular, remove_drafts
from pinxit.generation import image_cache
from pinxit.runs.checkpoint import FILE_NAMES
from pinxit.runs.file_names import (
    BASE_IMAGES,
    BEST,
    CHECKPOINTS,
    CONCEPT,
    CONCEPTS,
    JOURNAL,
    PREVIEWS,
    RECIPE,
)

_FILES = (RECIPE, JOURNAL, CONCEPT, BEST)
# Patterns of the file names, by folder.
_WRITTEN = {
    "": re.compile("|".join(map(re.escape, _FILES))),
    CHECKPOINTS: FILE_NAMES,
    CONCEPTS: FILE_NAMES,
    PREVIEWS: re.compile(r"[0-9]{7,}\.png"),
    BASE_IMAGES: image_cache.NAMES,
}


def check_no_links(folder: Path) -> None:
    """RunError if a file or folder of the run is a link, which could lead out of its folder."""
    check_regular(*(folder / name for name in (*_WRITTEN, *_FILES) if name))


def remove_run_drafts(folder: Path) -> None:
    """Delete the drafts that a killed process left of the run's files."""
    for name, pattern in _WRITTEN.items():
        remove_drafts(folder / name, pattern)
