"""Pocket's tokenizer: a small CLIP vocabulary in which every word of a caption is one token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from pinxit.pocket.words import vocabulary_words

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 32
_WORD_END = "</w>"


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the bytes 0..255 in byte-level BPE, by byte."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(spare)) for byte in range(256)]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Find merges, most shared first, until each word is one symbol.

    A merge added later ranks lower, so it never breaks a word that is whole already.
    """
    pieces = [[*word[:-1], word[-1] + _WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pieces := [parts for parts in pieces if len(parts) > 1]:
        counts = Counter(pair for parts in pieces for pair in pairwise(parts))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merged(parts, best) for parts in pieces]
    return merges


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Number the symbols as CLIP does: bytes, bytes at a word's end, merges, start, end."""
    symbols = sorted(byte_symbols(), key=lambda symbol: (ord(symbol) > 255, ord(symbol)))
    ends = [symbol + _WORD_END for symbol in symbols]
    joined = dict.fromkeys(left + right for left, right in merges)  # two ways may make one symbol
    entries = [*symbols, *ends, *joined, START, END]
    return {entry: number for number, entry in enumerate(entries)}


def write_tokenizer(folder: Path) -> None:
    """Write the files that `transformers.CLIPTokenizer.from_pretrained` opens, the same each time.

    Both CLIP vocabulary files are among them, since other programs read those alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(vocabulary_words())
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": POSITIONS,
        "tokenizer_class": "CLIPTokenizer",
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    texts = {
        "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False),
        "merges.txt": "\n".join(lines),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
