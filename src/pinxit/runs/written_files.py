"""The names of the files that a run writes: no other file in its folder is touched."""

import re
from pathlib import Path

from pinxit.concepts.metadata import DESCRIPTION_KEY
from pinxit.files.atomic_write import check_regular, regular_files, remove_drafts
from pinxit.files.safetensors_header import check_replaceable
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
from pinxit.runs.preview import check_previews

_FILES = (RECIPE, JOURNAL, CONCEPT, BEST)
# Patterns of the file names, by folder.
_WRITTEN = {
    "": re.compile("|".join(map(re.escape, _FILES))),
    CHECKPOINTS: FILE_NAMES,
    CONCEPTS: FILE_NAMES,
    PREVIEWS: re.compile(r"[0-9]{7,}\.png"),
    BASE_IMAGES: image_cache.NAMES,
}


def check_own_files(folder: Path) -> None:
    """RunError if a file or folder of the run is a link, or its concept file is another program's.

    A link could lead out of the folder.
    """
    check_regular(*(folder / name for name in (*_WRITTEN, *_FILES) if name))
    for concept in (folder / CONCEPT, folder / BEST):
        check_replaceable(concept, DESCRIPTION_KEY)


def check_next_files(folder: Path, step: int) -> None:
    """RunError if later previews or concepts would replace files of another program."""
    previews, concepts = (
        [file for file in regular_files(folder / name, _WRITTEN[name]) if int(file.stem) > step]
        for name in (PREVIEWS, CONCEPTS)
    )
    check_previews(previews)
    for concept in concepts:
        check_replaceable(concept, DESCRIPTION_KEY)


def remove_run_drafts(folder: Path) -> None:
    """Delete the drafts that a killed process left of the run's files."""
    for name, pattern in _WRITTEN.items():
        remove_drafts(folder / name, pattern)
