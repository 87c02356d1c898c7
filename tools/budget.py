"""Budgets on the code under src: a file, a function, its branches, and all of it together.

They are raised by a commit that does only that and says why.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 300
FUNCTION_LINES = 50
BRANCHES = 8
TOTAL_LINES = 19_700
FORBIDDEN_NAMES = {"util", "utils", "common", "misc", "helper", "helpers", "manager", "base"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCH = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.IfExp)


def branches(function: Function) -> int:
    """How many ways a function forks, those of functions inside it not counted."""
    return sum(_forks(node) for node in _own(function))


def over_budget(path: Path, text: str) -> Iterator[str]:
    """What in one file is over its budget, a line each."""
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        yield f"{path}: {lines} lines, {FILE_LINES} allowed"
    if path.stem in FORBIDDEN_NAMES:
        yield f"{path}: the name says nothing about what is in it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield from _function(path, node)


def main(folder: str = "src") -> int:
    """0 if everything under the folder is within budget; else 1, each excess on its own line."""
    files = sorted(Path(folder).rglob("*.py"))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    total = sum(len(text.splitlines()) for text in texts.values())
    excess = [line for path, text in texts.items() for line in over_budget(path, text)]
    if total > TOTAL_LINES:
        excess.append(f"{folder}: {total} lines in all, {TOTAL_LINES} allowed")
    print(f"budget: {len(files)} files, {total} of {TOTAL_LINES} lines")
    for line in excess:
        print(line, file=sys.stderr)
    return 1 if excess else 0


def _function(path: Path, function: Function) -> Iterator[str]:
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    where = f"{path}:{function.lineno}: {function.name}"
    if length > FUNCTION_LINES:
        yield f"{where} has {length} lines, {FUNCTION_LINES} allowed"
    forks = branches(function)
    if forks > BRANCHES:
        yield f"{where} has {forks} branches, {BRANCHES} allowed"


def _own(function: Function) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function):
            waiting.extend(ast.iter_child_nodes(node))


def _forks(node: ast.AST) -> int:
    if isinstance(node, ast.comprehension):
        return len(node.ifs)
    return int(isinstance(node, _BRANCH))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
