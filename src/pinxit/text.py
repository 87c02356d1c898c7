"""How prompts become conditioning: user's words, tokens, and the towers that encode them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

# Byte-level tokenizers of this size spell any word well; a small vocabulary truly lacks words.
_LARGE_VOCABULARY = 10_000

_T = TypeVar("_T")


@dataclass(frozen=True)
class Meaning:
    """What a user's word stands for: other words, or new vectors written over theirs.

    `text` is tokenized in the word's place. `vectors` holds, for each tower, a (n, width) table;
    the word then takes n positions, whatever `text` would have taken.
    """

    text: str
    vectors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class Tokenizer(Protocol):
    """The part of a CLIP tokenizer that is used here."""

    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of some ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        ...


class Encoder(Protocol):
    """The part of a CLIP text encoder that is used here: its network has an embedding layer."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The layer that turns ids into vectors."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Prompts as ids (B, L), and where new vectors go: rows of `table`, -1 for none (B, L)."""

    ids: Tensor
    rows: Tensor
    table: Tensor | None
    cut: tuple[str, ...]


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


class TextTower:
    """One text encoder with its tokenizer.

    New words never change either: their positions are tokenized with a known stand-in, and a hook
    that lives as long as one call writes their vectors over what the embedding layer puts out.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        encoder: Encoder,
        length: int,
        rare: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._rare = tuple(rare)
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.length = length

    @property
    def embedding(self) -> nn.Embedding:
        """The layer that turns ids into vectors."""
        return self.encoder.get_input_embeddings()

    @property
    def width(self) -> int:
        """How many numbers one of its word vectors has."""
        return self.embedding.embedding_dim

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without the marks of beginning and end."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def knows(self, word: str) -> bool:
        """Whether the vocabulary has the word; a large one spells any word in a few pieces."""
        return len(self.ids(word)) == 1 or len(self.tokenizer.get_vocab()) >= _LARGE_VOCABULARY

    def nearest(self, word: str) -> str:
        """A hint for a word that is not in the vocabulary: the one that looks most like it."""
        whole = [known for known in self._whole_words() if len(known) > 2]
        near = get_close_matches(word.lower(), whole, n=1)
        return f"did you mean {near[0]}?" if near else "take a plainer word"

    def word_vectors(self, text: str) -> Tensor:
        """The vectors of a text's tokens, (tokens, width), fp32, apart from the tower's own."""
        ids = torch.tensor(self.ids(text), device=self.embedding.weight.device)
        return self.embedding.weight.detach()[ids].to(torch.float32, copy=True)

    def rare_words(self) -> list[str]:
        """Short existing words that mean next to nothing, best first (DreamBooth, section 3.2).

        A base may list its own. Otherwise: ids of a byte-pair vocabulary are in order of frequency,
        so the rarest are the last, and three letters without a vowel are no language's word.
        """
        if self._rare:
            return list(self._rare)
        words = self._whole_words()
        nonsense = [word for word in words if re.fullmatch(r"[b-df-hj-np-tv-xz]{3}", word)]
        return sorted(nonsense, key=lambda word: -words[word])

    def tokens(self, prompts: Sequence[str], words: Mapping[str, Meaning]) -> Tokens:
        """Prompts as ids, cut to what the tower takes, with the places of the new words."""
        tables = {word: m.vectors[self.name] for word, m in words.items() if m.vectors}
        first = _first_rows(tables)
        ids: list[list[int]] = []
        rows: list[list[int]] = []
        cut: list[str] = []
        for prompt in prompts:
            spelt, marks = self._spell(rewrite(prompt, words), words, tables, first)
            room = self.length - 2
            cut.append(self.tokenizer.decode(spelt[room:]) if len(spelt) > room else "")
            padding = self.length - 2 - len(spelt[:room])
            ids.append([self.tokenizer.bos_token_id, *spelt[:room], self.tokenizer.eos_token_id])
            ids[-1].extend([self.tokenizer.pad_token_id] * padding)
            rows.append([-1, *marks[:room], -1, *[-1] * padding])
        device = self.embedding.weight.device
        return Tokens(
            torch.tensor(ids, device=device),
            torch.tensor(rows, device=device),
            torch.cat(list(tables.values())) if tables else None,
            tuple(cut),
        )

    def encode(self, tokens: Tokens, run: Callable[[Tensor], _T]) -> _T:
        """What `run` makes of the ids while the new words' vectors are in their places."""
        table = tokens.table
        if table is None:
            return run(tokens.ids)

        def place(_layer: nn.Module, _ids: object, vectors: Tensor) -> Tensor:
            new = table.to(vectors)[tokens.rows.clamp(min=0)]
            return torch.where(tokens.rows[..., None] >= 0, new, vectors)

        handle = self.embedding.register_forward_hook(place)
        try:
            return run(tokens.ids)
        finally:
            handle.remove()

    def _whole_words(self) -> dict[str, int]:
        """The tokens that may stand alone, with their ids."""
        vocabulary = self.tokenizer.get_vocab().items()
        return {token[:-4]: at for token, at in vocabulary if token.endswith("</w>")}

    def _spell(
        self,
        prompt: str,
        words: Mapping[str, Meaning],
        tables: Mapping[str, Tensor],
        first: Mapping[str, int],
    ) -> tuple[list[int], list[int]]:
        """The ids of one prompt, and for each the row of the new vector that replaces it or -1."""
        if not tables:
            spelt = self.ids(prompt)
            return spelt, [-1] * len(spelt)
        ids: list[int] = []
        rows: list[int] = []
        by_lower = {word.lower(): word for word in tables}
        start = 0
        for match in pattern(tuple(tables)).finditer(prompt):
            before = self.ids(prompt[start : match.start()])
            word = by_lower[match.group().lower()]
            count = len(tables[word])
            ids += before + [self.ids(words[word].text)[0]] * count
            rows += [-1] * len(before) + list(range(first[word], first[word] + count))
            start = match.end()
        after = self.ids(prompt[start:])
        return ids + after, rows + [-1] * len(after)


def _first_rows(tables: Mapping[str, Tensor]) -> dict[str, int]:
    """Where each word's vectors begin when all tables are stacked."""
    first: dict[str, int] = {}
    at = 0
    for word, table in tables.items():
        first[word] = at
        at += len(table)
    return first
