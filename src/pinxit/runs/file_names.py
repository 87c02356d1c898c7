"""The names of the files in a run's folder. Without the types of the log, which load slowly."""

from pathlib import Path

from pinxit.files.untrusted import RECIPE as RECIPE

JOURNAL = "journal.jsonl"
CONCEPT = "concept.safetensors"
BEST = "best.safetensors"
CHECKPOINTS = "checkpoints"
PREVIEWS = "previews"
BASE_IMAGES = "plain"
CONCEPTS = "concepts"


def result_file(folder: Path) -> Path:
    """The concept of a run to generate with: the best, or the last if no preview was scored."""
    best = folder / BEST
    return best if best.is_file() else folder / CONCEPT
