"""The public names of the package: all exist, and none is imported before it is used."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import pinxit


def test_every_public_name_exists() -> None:
    for name in pinxit.__all__:
        assert getattr(pinxit, name) is not None
    assert dir(pinxit) == pinxit.__all__
    assert pinxit.__version__ == version("pinxit")
    with pytest.raises(AttributeError, match="no attribute `generat`"):
        _ = pinxit.generat  # pyright: ignore[reportAttributeAccessIssue]


def test_the_names_of_the_first_version_exist() -> None:
    assert pinxit.teach is pinxit.train
    assert pinxit.paint is pinxit.generate
    assert pinxit.Request is pinxit.GenerationRequest
    assert pinxit.read_pictures is pinxit.read_images
    assert pinxit.sheet is pinxit.contact_sheet


def test_importing_loads_no_heavy_library() -> None:
    code = "import sys, pinxit; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
