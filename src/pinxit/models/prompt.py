"""Prompts: placeholder tokens, and attention weights written in brackets."""

import re
import unicodedata
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING

from pinxit.errors import PinxitError, RequestError

if TYPE_CHECKING:  # the studio's pages count the tokens of prompts without torch
    from torch import Tensor

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
_BRACES = re.compile(r"\{[^{}]*\}?|\}")
_MAX_NAME_BYTES = 200  # names on disks have 255, and endings are added to them
_OPENING_BRACKETS = {")": "(", "]": "["}
# Takes the place of a placeholder token while weights are parsed; no text contains this code point.
_MARK = "\ufdd0"
# Thai to Khmer, Chinese, Japanese and Korean: no spaces between words, or before particles.
_NO_SPACES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3040-\u318f"
    r"\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9d"
    r"\U00020000-\U0003ffff"
)


def check_braces(prompt: str, error: type[PinxitError]) -> None:
    """Raise the error if a prompt has other braces than `{}`, which stands for the token."""
    if other := next((part for part in _BRACES.findall(prompt) if part != "{}"), ""):
        raise error(
            f"the prompt `{prompt}` has other braces than {{}}: `{other}`",
            "write {} for the token, such as: a photo of {} on the beach",
        )


def file_name(token: str) -> str:
    """A file name made of a placeholder token."""
    name = re.sub(r"[^\w-]+", "-", token).strip("-")
    return cut_bytes(name, _MAX_NAME_BYTES).rstrip("-") or "run"


def cut_bytes(text: str, max_bytes: int) -> str:
    """The start of a text that has at most so many bytes in UTF-8: disks limit names by bytes."""
    return text.encode(errors="replace")[:max_bytes].decode(errors="ignore")


class FixedNormEmbeddings(UserDict[str, "Tensor"]):
    """Embeddings with a fixed norm for each text encoder: only their direction is trained.

    As in directional textual inversion (arXiv:2512.13672).
    """

    def __init__(self, embeddings: Mapping[str, "Tensor"], norms: Mapping[str, float]) -> None:
        super().__init__(embeddings)
        self._norms = norms

    def __getitem__(self, text_encoder: str) -> "Tensor":
        from torch.nn.functional import normalize

        return normalize(self.data[text_encoder], dim=-1) * self._norms[text_encoder]


@dataclass(frozen=True)
class TokenEmbedding:
    """What a placeholder token stands for: a text, or embeddings for each text encoder.

    Without `vectors` the token is an alias: `text` is tokenized in its place. With `vectors`, an
    (n, width) table for each text encoder, the token takes n positions, whatever the length of
    `text`.
    """

    text: str
    vectors: "Mapping[str, Tensor]" = field(default_factory=dict[str, "Tensor"])


Placeholders = Mapping[str, TokenEmbedding]  # the meaning of each placeholder token


@dataclass
class WeightedText:
    """A part of a prompt and its attention weight; 1 is the normal weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class PromptPiece:
    """A text with one weight, or a placeholder token with the text that it stands for."""

    text: str
    weight: float
    token: str = ""


def token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A regular expression that finds the tokens as whole words, in upper or lower case.

    Each token is a group, the longest first. Letters of a script without spaces between words may
    touch a token, and `_` may touch one that begins or ends with a bracket.
    """
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(_whole_word, longest_first)) or "(?!)", re.IGNORECASE)


def _whole_word(token: str) -> str:
    before, after = _neighbour(token[:1], "<"), _neighbour(token[-1:], ">")
    return f"(?<!{before})({re.escape(token)})(?!{after})"


def _neighbour(edge: str, bracket: str) -> str:
    """The characters that may not touch a token with this first or last character."""
    letter = r"\w" if re.match(r"\w", edge) else r"[^\W_]"
    return rf"(?:(?![{_NO_SPACES}]){letter}|{bracket})"


def same_token(one: str, other: str) -> bool:
    """Whether a prompt cannot tell two tokens apart."""
    return token_pattern((normal_form(one),)).fullmatch(normal_form(other)) is not None


def normal_form(text: str) -> str:
    """The text without marks, with each letter and its accents as one character."""
    return unicodedata.normalize("NFC", text.replace(_MARK, ""))


def parse_prompt(
    prompt: str, placeholders: Placeholders, *, weights: bool
) -> tuple[PromptPiece, ...]:
    """The pieces of a prompt: its placeholder tokens, and the texts between them.

    `weights` parses attention weights; the characters of a token, such as brackets, are not parsed.
    The text of an alias may contain a token that has embeddings.
    """
    names = sorted(placeholders, key=lambda token: (-len(normal_form(token)), normal_form(token)))
    pattern = token_pattern([normal_form(name) for name in names])
    marked_tokens: list[str] = []

    def mark(match: re.Match[str]) -> str:
        marked_tokens.append(names[(match.lastindex or 1) - 1])
        return _MARK

    marked = pattern.sub(mark, normal_form(prompt))
    parts = parse_weights(marked) if weights else (WeightedText(marked),)
    tokens = iter(marked_tokens)
    pieces: list[PromptPiece] = []
    for part in parts:
        for number, text in enumerate(part.text.split(_MARK)):
            if number:
                pieces += _placeholder_pieces(next(tokens), placeholders, part.weight)
            if weights and pattern.search(text):  # a token whose brackets are escaped: `\(`
                literal = parse_prompt(text, placeholders, weights=False)
                pieces += [replace(piece, weight=part.weight) for piece in literal]
            elif text:
                pieces.append(PromptPiece(text, part.weight))
    return tuple(pieces)


def _placeholder_pieces(token: str, placeholders: Placeholders, weight: float) -> list[PromptPiece]:
    """The piece of a placeholder token; several for an alias of a text with other tokens."""
    meaning = placeholders[token]
    if meaning.vectors:
        return [PromptPiece(meaning.text, weight, token)]
    others = {name: other for name, other in placeholders.items() if other.vectors}
    pieces = parse_prompt(meaning.text, others, weights=False) if others else ()
    if not any(piece.token for piece in pieces):
        return [PromptPiece(meaning.text, weight, token)]
    return [PromptPiece(piece.text, weight, piece.token or token) for piece in pieces]


def parse_weights(prompt: str) -> tuple[WeightedText, ...]:
    r"""The prompt's parts with their weights: `(more)`, `[less]`, `(much more:1.5)`, `\(plain\)`.

    Weights of nested brackets are multiplied. A bracket without its partner is a normal character.
    RequestError if a weight is not a finite number.
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
    if not all(isfinite(part.weight) for part in parts):
        raise RequestError(
            f"a weight in the prompt `{prompt[:60]}` is not a finite number",
            "write a weight such as 1.2",
        )
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


def plain_text(prompt: str, placeholders: Placeholders, *, weights: bool) -> str:
    """The prompt for a text encoder without placeholder tokens: each is replaced by its text.

    `weights` removes the brackets of attention weights as well.
    """
    return "".join(piece.text for piece in parse_prompt(prompt, placeholders, weights=weights))
