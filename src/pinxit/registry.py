"""Find plug-ins by name. A plug-in is a file with one public class; its name is the file's name."""

import ast
import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, cast

from pinxit.errors import (
    ConceptError,
    ModelError,
    PinxitError,
    RecipeError,
    RequestError,
    did_you_mean,
)

# For each kind of plug-in: its package, its name in messages, the error for an unknown name.
PLUGIN_KINDS: dict[str, tuple[str, str, type[PinxitError]]] = {
    "families": ("models", "family", ModelError),
    "methods": ("training", "method", RecipeError),
    "optimizers": ("training", "optimizer", RecipeError),
    "controls": ("generation", "control", RequestError),
    "kinds": ("adapters", "kind of adapter", ConceptError),
    "formats": ("concepts", "format", ConceptError),
    "metrics": ("evaluation", "metric", RequestError),
    "engines": ("runs", "engine", RequestError),
}


class Plugin:
    """A plug-in with options, which is chosen by its name; `label` is its kind in messages."""

    label: ClassVar[str]

    @classmethod
    def title(cls) -> str:
        """The name that messages use for the plug-in's options."""
        return f"the {cls.label} {name_of(cls)}"

    @property
    def name(self) -> str:
        """Its name, which is that of its file."""
        return name_of(type(self))


def from_table(kind: str, value: object) -> object:
    """The plug-in of a name, or of a table with its name and options; other values are unchanged.

    Raises the error of its kind if there is no name or no such plug-in.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        return value
    options = dict(cast("Mapping[str, object]", table))
    if "name" not in options:
        _, label, error = PLUGIN_KINDS[kind]
        raise error(f"the {label} has no name", f"add name = one of: {', '.join(names(kind))}")
    plugin: Any = load(kind, str(options.pop("name")))
    return plugin.model_validate(options)


def to_table(plugin: Any) -> dict[str, object]:
    """The table of a plug-in's name and options: the inverse of `from_table`."""
    return {"name": plugin.name, **plugin.model_dump(mode="json", exclude_none=True)}


def names(kind: str) -> list[str]:
    """The sorted names of all plug-ins of a kind, without importing them."""
    return sorted(_files(kind))


def summary(kind: str, name: str) -> str:
    """The first line of a plug-in's docstring, without importing it."""
    text = _files(kind)[name].read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    return docstring.partition("\n")[0]


def load(kind: str, name: str) -> type:
    """Import a plug-in and return its public class; raises the error of its kind if unknown."""
    known = names(kind)
    if name not in known:
        _, label, error = PLUGIN_KINDS[kind]
        raise error(f"unknown {label} `{name}`", did_you_mean(name, known))
    module = import_module(f"{_package(kind)}.{name.replace('-', '_')}")
    public = [
        plugin
        for class_name, plugin in inspect.getmembers(module, inspect.isclass)
        if plugin.__module__ == module.__name__ and not class_name.startswith("_")
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must have one public class, and has {len(public)}")
    return public[0]


def name_of(plugin: type) -> str:
    """The name of a plug-in, given its class."""
    return plugin.__module__.rpartition(".")[2].replace("_", "-")


def _files(kind: str) -> dict[str, Path]:
    """The files of the plug-ins of a kind, by name; RequestError if the kind is unknown."""
    if kind not in PLUGIN_KINDS:
        raise RequestError(f"unknown kind of plug-in `{kind}`", did_you_mean(kind, PLUGIN_KINDS))
    folders = map(Path, import_module(_package(kind)).__path__)
    return _files_in(tuple((folder, folder.stat().st_mtime_ns) for folder in folders))


@cache
def _files_in(folders: tuple[tuple[Path, int], ...]) -> dict[str, Path]:
    """The files of plug-ins in folders, each with the time of its last change."""
    files = (path for folder, _ in folders for path in folder.glob("[!_]*.py"))
    return {path.stem.replace("_", "-"): path for path in files}


def _package(kind: str) -> str:
    return f"pinxit.{PLUGIN_KINDS[kind][0]}.{kind}"
