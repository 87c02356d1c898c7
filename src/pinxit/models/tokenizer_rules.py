"""Limits for the rules in a tokenizer.json, which can need exponential time or memory."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pinxit.errors import ModelError

# Far above what tokenizers of base models have: about 5 rules, and texts of a few characters.
_MAX_RULES = 64
_MAX_TEXT = 1000
# How much longer all replacements together may make a text.
_MAX_GROWTH = 64.0
# The number of repetitions of more than a few characters in one alternative: n of them need time
# that grows with the length of a text to the power of n + 1.
_MAX_UNLIMITED = 2
_FEW = 16

_ESCAPE = re.compile(r"\\[pP]\{[^}]*\}|\\.", re.DOTALL)
_CLASS = re.compile(r"\[[^\[\]]*\]")
# References to groups, recursion, conditions, and the mode in which spaces and comments are left
# out.
_REFERENCE = re.compile(r"\\[1-9kg]|\(\?[R&P(0-9~]|\(\*|\(\?[a-w]*x")
_REPETITION = re.compile(r"[*+]|\{(\d*)(,?)(\d*)\}")


def check_rules(file: Path, content: Mapping[str, Any]) -> None:
    """Raise ModelError if rules of a tokenizer.json can need too much time or memory."""
    rules = list(_rules([content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]))
    growth = 1.0
    problems = [f"{len(rules)} rules"] if len(rules) > _MAX_RULES else []
    for rule in rules:
        pattern, replacement = rule.get("pattern"), str(rule.get("content", ""))
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        literal = pattern.get("String") if isinstance(pattern, dict) else pattern
        if isinstance(expression, str):
            problems += _regex_problems(expression)
        growth *= max(1.0, len(replacement) / len(str(literal or "-")))
        texts = (expression, literal, replacement, rule.get("prepend"))
        if any(isinstance(text, str) and len(text) > _MAX_TEXT for text in texts):
            problems.append(f"a rule of more than {_MAX_TEXT} characters")
    if growth > _MAX_GROWTH:
        problems.append(f"replacements that make a text {growth:.3g} times longer")
    if problems:
        raise ModelError(
            f"{file} has {problems[0]}, so reading a prompt may need too much time or memory",
            "use a base model from a source that you trust",
        )


def _rules(value: object) -> Iterator[dict[str, Any]]:
    """All objects inside a value of JSON that have a type."""
    if isinstance(value, dict):
        rule = cast("dict[str, Any]", value)
        if "type" in rule:
            yield rule
        yield from _rules(list(rule.values()))
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _rules(item)


def _regex_problems(expression: str) -> Iterator[str]:
    """Why a regular expression may need too much time."""
    shown = f"the pattern `{expression[:60]}`"
    plain, simpler = expression, _ESCAPE.sub("x", expression)
    while simpler != plain:
        plain, simpler = simpler, _CLASS.sub("x", simpler)
    if _REFERENCE.search(expression) or re.search(r"\)(?:[*+]|\{)", plain):
        yield f"{shown} with a repeated group or a reference to one"
    for alternative in plain.split("|"):
        repetitions = [_length(match) for match in _REPETITION.finditer(alternative)]
        if sum(length > _FEW for length in repetitions) > _MAX_UNLIMITED:
            yield f"{shown} with more than {_MAX_UNLIMITED} repetitions of any length"


def _length(repetition: re.Match[str]) -> float:
    """The largest number of characters that a repetition takes."""
    least, comma, most = repetition.groups()
    if not repetition[0].startswith("{") or (comma and not most):
        return math.inf
    return float(most or least or 0)
