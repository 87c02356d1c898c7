"""Code outside a plug-in's file does not name the plug-in, and only models know layer names."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pinxit
from pinxit import registry

SOURCE = Path(pinxit.__file__).parent
# pocket is a model with its training, and stands alone; the demo shows what it chooses to show.
ASIDE = {"pocket", "demo.py"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if not ASIDE & {*path.parts})

# Names that are also those of an adapter, a library, an option, a key or the program itself. Of
# these only imports are looked for.
AMBIGUOUS = {"lora", "mask", "inversion", "pinxit", "diffusers", "peft"}
AMBIGUOUS |= {"colour", "nearest", "dino", "emb-params", "local"}

# Plug-ins that build on another one of their kind, and code that needs what one of them has.
BUILDS_ON = {
    ("kinds", "concepts/base_weights.py", "lora"),
}

# By kind: the code that chooses plug-ins. Methods create the adapters that they train, and the
# judge has the metrics that suit a base model and a kind of subject. What other programs do with
# each format is data by the formats' names. A recipe has a default optimizer, and a benchmark a
# default method.
CHOOSES = {
    "kinds": "training/",
    "metrics": "evaluation/judge.py",
    "formats": "concepts/programs.py",
    "engines": "runs/fleet.py",
    "optimizers": "training/recipe.py",
    "methods": "cli/evaluate.py",
}
# Where names of layers belong: families and their base classes, layouts, other programs' files.
KNOWS_LAYERS = ("models", "concepts/formats", "concepts/layer_names.py", "concepts/a1111_config.py")
LAYER_NAME = re.compile(r"blocks\b.?\.|attn|\bto_[qkv]\b")
# Files with layer names that should ask the model or a format. Delete a line when it is done.
LAYERS_TO_REMOVE: set[str] = set()


def strings(path: Path) -> frozenset[str]:
    """The strings of a file's code, without docstrings."""
    return frozenset(text for text, is_string in _words(path) if is_string)


def words(path: Path) -> frozenset[str]:
    """The strings and imports of a file's code, without docstrings."""
    return frozenset(text for text, _ in _words(path))


@cache
def _words(path: Path) -> frozenset[tuple[str, bool]]:
    return frozenset(_parse(path))


def _parse(path: Path) -> Iterator[tuple[str, bool]]:
    """Each import or string, and whether it is a string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", False
            yield from ((f"{node.module}.{alias.name}", False) for alias in node.names)
        elif isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value), isinstance(node.value, str)


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("kind", registry.PLUGIN_KINDS)
def test_no_file_names_a_plug_in_of_another(kind: str) -> None:
    named: set[tuple[str, str]] = set()
    for plugin in registry.names(kind):
        stem = plugin.replace("-", "_")
        package = f"{registry.PLUGIN_KINDS[kind][0]}.{kind}"
        module = f"pinxit.{package}.{stem}"
        for path in FILES:
            if name_of(path) == f"{package.replace('.', '/')}/{stem}.py":
                continue
            if name_of(path).startswith(CHOOSES.get(kind, "-")):
                continue
            # Kinds of adapter have names that are words of the field.
            is_unique = kind != "kinds" and plugin not in AMBIGUOUS
            is_named = is_unique and {plugin, stem} & strings(path)
            if is_named or module in words(path):
                named.add((name_of(path), plugin))
    assert named == {(file, name) for of_kind, file, name in BUILDS_ON if of_kind == kind}


def test_only_models_and_formats_know_the_names_of_layers() -> None:
    files = {
        name_of(path)
        for path in FILES
        if not name_of(path).startswith(KNOWS_LAYERS) and any(map(LAYER_NAME.search, strings(path)))
    }
    assert files == LAYERS_TO_REMOVE
