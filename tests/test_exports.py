"""The package's face: every public name is there, and none is loaded before it is asked for."""

import subprocess
import sys

import pytest

import pinxit


def test_every_public_name_is_there() -> None:
    for name in pinxit.__all__:
        assert getattr(pinxit, name).__name__ == name
    with pytest.raises(AttributeError, match="no `paintt`"):
        _ = pinxit.paintt


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, pinxit; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
