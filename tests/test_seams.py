"""M + N, never M x N: no code outside a plug-in's own file names the plug-in."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pinxit
from pinxit import registry

SOURCE = Path(pinxit.__file__).parent
# What belongs to one method or to the base that ships is not the engine.
ASIDE = ("pocket", "reports", "cli")

# The name of an adapter, which files and formats have, as well as of the method that trains it.
ADAPTERS = {"lora"}


def engine() -> list[Path]:
    files = SOURCE.rglob("*.py")
    return sorted(path for path in files if path.relative_to(SOURCE).parts[0] not in ASIDE)


@cache
def words(path: Path) -> frozenset[str]:
    """What a file's code says."""
    return frozenset(_words(path))


def _words(path: Path) -> Iterator[str]:
    """Every name and every string of a file's code; docstrings may tell of anything."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield "" if id(node) in told else node.value


@pytest.mark.parametrize("kind", ["families", "methods"])
def test_no_file_names_a_plug_in_of_another(kind: str) -> None:
    for name in registry.names(kind):
        stem = name.replace("-", "_")
        module = f"pinxit.{registry.PLUGIN_KINDS[kind][0]}.{kind}.{stem}"
        called = {name, stem, registry.load(kind, name).__name__, module}
        called -= ADAPTERS
        for path in engine():
            if path.stem != stem:
                assert not called & words(path), f"{path} names {name}"
