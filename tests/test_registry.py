"""A plug-in is a file with one public class; plug-ins are listed without importing them."""

import subprocess
import sys

import pytest

from pinxit import registry
from pinxit.errors import PinxitError, RecipeError, RequestError

ALL_PLUGINS = [(kind, name) for kind in registry.PLUGIN_KINDS for name in registry.names(kind)]


def test_the_methods_are_listed() -> None:
    assert {"textual-inversion", "dreambooth"} <= set(registry.names("methods"))


@pytest.mark.parametrize(("kind", "name"), ALL_PLUGINS)
def test_every_plug_in_is_one_public_class(kind: str, name: str) -> None:
    plugin = registry.load(kind, name)
    assert plugin.__doc__
    assert registry.name_of(plugin) == name


@pytest.mark.parametrize("kind", registry.PLUGIN_KINDS)
def test_the_error_for_an_unknown_name_lists_the_known_ones(kind: str) -> None:
    with pytest.raises(PinxitError) as caught:
        registry.load(kind, "no-such-thing")
    assert "`no-such-thing`" in caught.value.message
    assert "known: " in caught.value.hint


def test_a_misspelt_method_and_a_misspelt_kind() -> None:
    with pytest.raises(RecipeError) as caught:
        registry.load("methods", "textual-invrsion")
    assert caught.value.hint.startswith("did you mean textual-inversion?")
    with pytest.raises(RequestError, match="unknown kind of plug-in `method`"):
        registry.names("method")


def test_listing_imports_no_plug_in() -> None:
    code = (
        "import sys; from pinxit import registry\n"
        "kinds = {kind: registry.names(kind) for kind in registry.PLUGIN_KINDS}\n"
        "print([m for m in sys.modules for kind in kinds if f'.{kind}.' in m or m == 'torch'])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"
