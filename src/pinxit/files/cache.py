"""Where files that can be made again are kept for all runs."""

import os
from pathlib import Path

from pinxit.files.untrusted import expanded


def cache_folder() -> Path:
    """The cache folder: PINXIT_CACHE, or else pinxit in the cache folder of the user."""
    folder = os.environ.get("PINXIT_CACHE")
    if folder:
        return Path(folder)
    parent = os.environ.get("XDG_CACHE_HOME")
    return expanded(parent or "~/.cache") / "pinxit"
