"""The folder of training images that a test fills."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the name of a subject."""
    path = tmp_path / "toy"
    path.mkdir()
    return path
