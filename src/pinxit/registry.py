"""Plug-ins by name: a plug-in is a file with one public class, and the file's name is its name."""

import ast
import inspect
from importlib import import_module
from pathlib import Path

from pinxit.errors import (
    ConceptError,
    ModelError,
    PinxitError,
    RecipeError,
    RequestError,
    did_you_mean,
)

# The package of each kind of plug-in, its name in messages, and the error of an unknown name.
KINDS: dict[str, tuple[str, str, type[PinxitError]]] = {
    "families": ("models", "family", ModelError),
    "methods": ("training", "method", RecipeError),
    "controls": ("generation", "control", RequestError),
    "formats": ("concepts", "format", ConceptError),
    "metrics": ("evaluation", "metric", RequestError),
}


def names(kind: str) -> list[str]:
    """The names of all plug-ins of a kind, sorted; imports none of them."""
    files = (path.stem for path in _folder(kind).glob("*.py"))
    return sorted(stem.replace("_", "-") for stem in files if not stem.startswith("_"))


def summary(kind: str, name: str) -> str:
    """The first line of a plug-in's file, which says what it is; imports nothing."""
    file = _folder(kind) / f"{name.replace('-', '_')}.py"
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return told.partition("\n")[0]


def load(kind: str, name: str) -> type:
    """The one public class of the plug-in of that name; the kind's error if there is none."""
    known = names(kind)
    if name not in known:
        _, word, error = KINDS[kind]
        raise error(f"there is no {word} `{name}`", did_you_mean(name, known))
    module = import_module(f"pinxit.{KINDS[kind][0]}.{kind}.{name.replace('-', '_')}")
    public = [
        found
        for label, found in inspect.getmembers(module, inspect.isclass)
        if found.__module__ == module.__name__ and not label.startswith("_")
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must have one public class, it has {len(public)}")
    return public[0]


def name_of(plugin: type) -> str:
    """The name of a plug-in, from its class."""
    return plugin.__module__.rpartition(".")[2].replace("_", "-")


def _folder(kind: str) -> Path:
    """The folder of a kind's plug-ins; RequestError if there is no such kind."""
    if kind not in KINDS:
        raise RequestError(f"there is no kind of plug-in `{kind}`", did_you_mean(kind, KINDS))
    return Path(__file__).parent / KINDS[kind][0] / kind
