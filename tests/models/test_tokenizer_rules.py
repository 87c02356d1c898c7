"""Rules of a tokenizer.json that need exponential time or memory are refused, others are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinxit.errors import ModelError
from pinxit.models.open_base import open_base
from pinxit.models.tokenizer_rules import check_rules

WORDS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
USUAL = (
    # GPT-2 and CLIP, Qwen, Llama 3, o200k, and those of SentencePiece.
    rf"'s|'t|'re|'ve|'m|'ll|'d|{WORDS}",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}",
    " {2,}",
    r"\s+",
    r"[\[\](){}]|\(|\)|\+",
)
EXPLOSIVE = (
    r"(a+)+$",
    r"(?:\w+\s?)+!",
    r"(a|a)*b",
    r"(a|aa){2,}b",
    r"((a{16}){16}){16}",
    r"([^(]a+)*b",
    r"[(](?:a*)*",
    r"(.+)\1+x",
    r"(?<g>a\g<g>?b)",
    r"(?x)(a+) +b",
    r"a*a*a*a*a*b",
    r".*.*.*x|y",
    r"\p{L}{0,1000}\w{0,1000}\w{0,1000}9",
)


def content(**parts: object) -> dict[str, Any]:
    return {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, **parts}


def replace(pattern: dict[str, str], text: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": text}


def sequence(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(rules), "pretokenizers": list(rules)}


@pytest.mark.parametrize("expression", USUAL)
def test_patterns_of_base_models_are_used(expression: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
    check_rules(Path("tokenizer.json"), content(pre_tokenizer=sequence(split)))
    check_rules(Path("tokenizer.json"), content(normalizer=replace({"Regex": expression}, "▁")))


@pytest.mark.parametrize("expression", EXPLOSIVE)
@pytest.mark.parametrize("place", ["normalizer", "pre_tokenizer", "decoder"])
def test_explosive_patterns_are_refused(expression: str, place: str) -> None:
    rule = replace({"Regex": expression}, "")
    for part in (rule, sequence(rule), sequence(sequence(rule))):
        with pytest.raises(ModelError, match="too much time or memory") as error:
            check_rules(Path("tokenizer.json"), content(**{place: part}))
        assert error.value.hint


@pytest.mark.parametrize(
    "rules",
    [
        [replace({"String": "a"}, "aa")] * 40,
        [replace({"Regex": "."}, "bb")] * 8,
        [replace({"String": ""}, "ab" * 10)] * 3,
        [replace({"String": "a"}, "a" * 1001)],
        [{"type": "Prepend", "prepend": "a" * 100_000}],
        [{"type": "NFC"}] * 100,
        [{"type": "Replace", "pattern": "a", "content": "aaa"}] * 9,
    ],
)
def test_growing_texts_and_many_rules_are_refused(rules: list[dict[str, Any]]) -> None:
    with pytest.raises(ModelError, match="too much time or memory"):
        check_rules(Path("tokenizer.json"), content(normalizer=sequence(*rules)))


def change(base: Path, folder: str, edit: Callable[[dict[str, Any]], object]) -> None:
    file = base / folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    edit(stored)
    file.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("family", "folder"),
    [("flux-1", "tokenizer_2"), ("stable-diffusion-3", "tokenizer_3"), ("z-image", "tokenizer")],
)
@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(pre_tokenizer=replace({"Regex": r"(\w+\s?)+!"}, "")),
        lambda c: c.update(normalizer=sequence(*[replace({"String": "a"}, "aa")] * 40)),
        lambda c: c.update(added_tokens=[{"id": n, "content": f"t{n}"} for n in range(30_000)]),
    ],
)
def test_a_base_model_with_explosive_rules_is_refused(
    family: str,
    folder: str,
    edit: Callable[[dict[str, Any]], object],
    bases: Callable[[str], Path],
    copied: Callable[[Path], Path],
) -> None:
    base = copied(bases(family))
    open_base(base)
    change(base, folder, edit)
    with pytest.raises(ModelError, match=r"tokenizer\.json has"):
        open_base(base).condition(["a photo"])
