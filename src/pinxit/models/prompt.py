"""Prompts: placeholder tokens, and attention weights written in brackets."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import normalize

# The weight of brackets without a number: times this for round ones, divided by it for square ones.
_BRACKET_WEIGHT = 1.1

_SYNTAX = re.compile(
    r"\\(?P<escaped>[\\()\[\]])"
    r"|(?P<open>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<close>[)\]])"
    r"|[^\\()\[\]:]+|.",
    re.DOTALL,
)
_MAX_NAME_BYTES = 200  # names on disks have 255, and endings are added to them
_OPENING_BRACKETS = {")": "(", "]": "["}


def file_name(token: str) -> str:
    """A file name made of a placeholder token."""
    name = re.sub(r"[^\w-]+", "-", token).strip("-")
    return cut_bytes(name, _MAX_NAME_BYTES).rstrip("-") or "run"


def cut_bytes(text: str, max_bytes: int) -> str:
    """The start of a text that has at most so many bytes in UTF-8: disks limit names by bytes."""
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")


class FixedNormEmbeddings(Mapping[str, Tensor]):
    """Embeddings with a fixed norm for each text encoder: only their direction is trained.

    As in directional textual inversion (arXiv:2512.13672).
    """

    def __init__(self, embeddings: Mapping[str, Tensor], norms: Mapping[str, float]) -> None:
        self._embeddings = embeddings
        self._norms = norms

    def __getitem__(self, text_encoder: str) -> Tensor:
        return normalize(self._embeddings[text_encoder], dim=-1) * self._norms[text_encoder]

    def __iter__(self) -> Iterator[str]:
        return iter(self._embeddings)

    def __len__(self) -> int:
        return len(self._embeddings)


@dataclass(frozen=True)
class TokenEmbedding:
    """What a placeholder token stands for: a text, or embeddings for each text encoder.

    Without `vectors` the token is an alias: `text` is tokenized in its place. With `vectors`, an
    (n, width) table for each text encoder, the token takes n positions, whatever the length of
    `text`.
    """

    text: str
    vectors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass
class WeightedText:
    """A part of a prompt and its attention weight; 1 is the normal weight."""

    text: str
    weight: float = 1.0


def token_pattern(tokens: Sequence[str]) -> re.Pattern[str]:
    """A regular expression that finds the tokens as whole words, in upper or lower case."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(
        rf"(?<![\w<])(?:{'|'.join(map(re.escape, longest_first))})(?![\w>])", re.IGNORECASE
    )


def expand_aliases(prompt: str, placeholders: Mapping[str, TokenEmbedding]) -> str:
    """The prompt with each placeholder token that has no embeddings replaced by its text."""
    aliases = {token.lower(): alias for token, alias in placeholders.items() if not alias.vectors}
    if not aliases:
        return prompt
    pattern = token_pattern(tuple(aliases))
    return pattern.sub(lambda match: aliases[match.group().lower()].text, prompt)


def parse_weights(prompt: str) -> tuple[WeightedText, ...]:
    r"""The prompt's parts with their weights: `(more)`, `[less]`, `(much more:1.5)`, `\(plain\)`.

    Weights of nested brackets are multiplied. A bracket without its partner is a normal character.
    """
    parts: list[WeightedText] = []
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    for match in _SYNTAX.finditer(prompt):
        kind, text = match.lastgroup, match.group()
        starts = open_brackets.get("(" if kind == "weight" else _OPENING_BRACKETS.get(text, ""))
        if kind == "open":
            open_brackets[text].append(len(parts))
        if kind in ("weight", "close") and starts:
            start = starts.pop()
            weight = match["weight"] or (_BRACKET_WEIGHT if text == ")" else 1 / _BRACKET_WEIGHT)
            for part in parts[start:]:
                part.weight *= float(weight)
            parts[start].text = ""
        else:
            parts.append(WeightedText(match["escaped"] or text))
    return _merge_equal_weights(parts)


def _merge_equal_weights(parts: Sequence[WeightedText]) -> tuple[WeightedText, ...]:
    """Neighbours of equal weight as one part, so that no word is split without need."""
    merged: list[WeightedText] = []
    for part in parts:
        if merged and merged[-1].weight == part.weight:
            merged[-1].text += part.text
        elif part.text:
            merged.append(part)
    return tuple(merged)


def plain_text(prompt: str, placeholders: Mapping[str, TokenEmbedding], *, weights: bool) -> str:
    """The prompt for a text encoder without placeholder tokens: each is replaced by its text.

    `weights` removes the brackets of attention weights as well.
    """
    aliases = {token: TokenEmbedding(meaning.text) for token, meaning in placeholders.items()}
    text = expand_aliases(prompt, aliases)
    return "".join(part.text for part in parse_weights(text)) if weights else text
