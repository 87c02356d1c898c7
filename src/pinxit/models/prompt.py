"""What a prompt says: the user's own words, and weights written in brackets."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import normalize

# How much a pair of brackets without a number changes: up for round ones, down for square ones.
_STRONGER = 1.1

_MARKS = re.compile(
    r"\\(?P<escaped>[\\()\[\]])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|[^\\()\[\]:]+|.",
    re.DOTALL,
)
_PARTNER = {")": "(", "]": "["}


def file_name(word: str) -> str:
    """A word as a file's name."""
    return re.sub(r"[^\w-]+", "-", word).strip("-") or "run"


class Directed(Mapping[str, Tensor]):
    """Tables of vectors that all have their tower's length: only their directions are learned.

    As in directional textual inversion (arXiv:2512.13672).
    """

    def __init__(self, tables: Mapping[str, Tensor], lengths: Mapping[str, float]) -> None:
        self._tables = tables
        self._lengths = lengths

    def __getitem__(self, tower: str) -> Tensor:
        return normalize(self._tables[tower], dim=-1) * self._lengths[tower]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


@dataclass(frozen=True)
class Meaning:
    """What a user's word stands for: other words, or new vectors written over theirs.

    `text` is tokenized in the word's place. `vectors` holds, for each tower, a (n, width) table;
    the word then takes n positions, whatever `text` would have taken.
    """

    text: str
    vectors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass
class Span:
    """Some words of a prompt, and how much they count; 1 is as much as any."""

    text: str
    weight: float = 1.0


def pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Finds the given user's words as whole words, in any case; never inside a longer one."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(
        rf"(?<![\w<])(?:{'|'.join(map(re.escape, longest_first))})(?![\w>])", re.IGNORECASE
    )


def rewrite(prompt: str, words: Mapping[str, Meaning]) -> str:
    """The prompt with every user's word that stands for other words put into those."""
    plain = {word.lower(): meaning for word, meaning in words.items() if not meaning.vectors}
    if not plain:
        return prompt
    found = pattern(tuple(plain))
    return found.sub(lambda match: plain[match.group().lower()].text, prompt)


def spans(prompt: str) -> tuple[Span, ...]:
    r"""The prompt's words with their weights: `(more)`, `[less]`, `(much more:1.5)`, `\(plain\)`.

    Brackets multiply where they are nested. One without a partner is a character like any other.
    """
    found: list[Span] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for mark in _MARKS.finditer(prompt):
        kind, text = mark.lastgroup, mark.group()
        partner = opened.get("(" if kind == "weight" else _PARTNER.get(text, ""))
        if kind == "open":
            opened[text].append(len(found))
        if kind in ("weight", "close") and partner:
            start = partner.pop()
            weight = mark["weight"] or (_STRONGER if text == ")" else 1 / _STRONGER)
            for span in found[start:]:
                span.weight *= float(weight)
            found[start].text = ""
        else:
            found.append(Span(mark["escaped"] or text))
    return _joined(found)


def _joined(found: Sequence[Span]) -> tuple[Span, ...]:
    """Neighbours of the same weight as one, so that words are not cut where nothing changes."""
    whole: list[Span] = []
    for span in found:
        if whole and whole[-1].weight == span.weight:
            whole[-1].text += span.text
        elif span.text:
            whole.append(span)
    return tuple(whole)


def spoken(prompt: str, words: Mapping[str, Meaning], *, weights: bool) -> str:
    """The prompt in plain words, for a tower that knows neither new words nor weights."""
    said = rewrite(prompt, {word: Meaning(meaning.text) for word, meaning in words.items()})
    return "".join(span.text for span in spans(said)) if weights else said
