"""How prompts become conditioning: user's words, tokens, and the towers that encode them."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pinxit.errors import ModelError
from pinxit.models.prompt import Meaning, Span, pattern, rewrite, spans

# Byte-level tokenizers of this size spell any word well; a small vocabulary truly lacks words.
_LARGE_VOCABULARY = 10_000


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

    config: Any

    def get_input_embeddings(self) -> nn.Embedding:
        """The layer that turns ids into vectors."""
        ...

    def __call__(self, ids: Tensor, *, output_hidden_states: bool) -> Any:
        """What each layer makes of the ids."""
        ...


@dataclass(frozen=True)
class Reading:
    """How prompts are read; as it stands, literally and no further than one window.

    `weights`: brackets say how much words count. `long`: in as many windows as a prompt needs.
    `clip_skip`: which layer to take, counted from a tower's last; None for the base's own.
    """

    weights: bool = False
    long: bool = False
    clip_skip: int | None = None


LITERALLY = Reading()
CLIP_SKIP = "take the text tower's so-many-th last layer; the base's own if unset"


@dataclass(frozen=True)
class Tokens:
    """Prompts in windows (B, W, L): ids, how much each counts, and where new vectors go.

    `rows` are those of `table`, -1 for none.
    """

    ids: Tensor
    rows: Tensor
    weights: Tensor
    table: Tensor | None


@dataclass(frozen=True)
class Told:
    """What a tower says: a state a token (B, W * L, D), and perhaps one of all (B, P)."""

    states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class _Mark:
    """A token of a prompt: its id, the row of the new vector in its place or -1, its weight."""

    id: int
    row: int = -1
    weight: float = 1.0


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
        *,
        penultimate: bool = False,
        long: bool = True,
        rare: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.length: int = encoder.config.max_position_embeddings
        self._room = self.length - 2  # between the marks of beginning and end
        self._penultimate = penultimate
        self._long = long
        self._rare = tuple(rare)
        self._ids = lru_cache(4096)(partial(tokenizer.encode, add_special_tokens=False))

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
        return list(self._ids(text))

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

        A base may list its own. Otherwise: a byte-pair vocabulary is in order of frequency, so the
        rarest are the last, and three letters without a vowel are no language's word.
        """
        if self._rare:
            return list(self._rare)
        words = self._whole_words()
        nonsense = [word for word in words if re.fullmatch(r"[b-df-hj-np-tv-xz]{3}", word)]
        return sorted(nonsense, key=lambda word: -words[word])

    def cut(self, prompt: str, words: Mapping[str, Meaning], reading: Reading = LITERALLY) -> str:
        """The end of a prompt that there is no room for, "" if it fits."""
        marks = self._spell(prompt, words, reading)
        room = len(marks) if reading.long and self._long else self._room
        return self.tokenizer.decode([mark.id for mark in marks[room:]])

    def tokens(
        self,
        prompts: Sequence[str],
        words: Mapping[str, Meaning],
        reading: Reading = LITERALLY,
        windows: int = 1,
    ) -> Tokens:
        """Prompts as ids with the places of the new words, in `windows` windows or more."""
        spelt = [self._spell(prompt, words, reading) for prompt in prompts]
        if reading.long and self._long:
            windows = max(windows, *(-(-len(marks) // self._room) for marks in spelt))
        tables = self._tables(words)
        device = self.embedding.weight.device
        whole = [self._windows(marks, windows) for marks in spelt]

        def laid_out(name: str) -> Tensor:
            of_all = [[[getattr(m, name) for m in window] for window in one] for one in whole]
            return torch.tensor(of_all, device=device)

        table = torch.cat(list(tables.values())) if tables else None
        return Tokens(laid_out("id"), laid_out("row"), laid_out("weight"), table)

    def encode(self, tokens: Tokens, reading: Reading = LITERALLY) -> Told:
        """What the encoder makes of them; ModelError if it has not so many layers to skip."""
        last = reading.clip_skip or 1 + self._penultimate
        if last > self.encoder.config.num_hidden_layers:
            raise ModelError(
                f"clip skip {last} is more than the layers of the text tower `{self.name}`",
                f"it has {self.encoder.config.num_hidden_layers}; take 1 or 2",
            )
        count = len(tokens.ids)
        inside = self._penultimate or last > 1
        with self._new_vectors(tokens):
            found = self.encoder(tokens.ids.flatten(0, 1), output_hidden_states=inside)
        states: Tensor = found.hidden_states[-last] if inside else found.last_hidden_state
        if inside and not self._penultimate:
            network: Any = getattr(self.encoder, "text_model", self.encoder)
            states = network.final_layer_norm(states)
        states = self._emphasised(states.float(), tokens.weights.flatten(0, 1))
        pooled: Tensor | None = getattr(found, "text_embeds", None)
        if pooled is not None:
            pooled = pooled.float().unflatten(0, (count, -1))[:, 0]
        return Told(states.reshape(count, -1, states.shape[-1]), pooled)

    @contextmanager
    def _new_vectors(self, tokens: Tokens) -> Generator[None]:
        """The new words' vectors are in their places."""
        table, rows = tokens.table, tokens.rows.flatten(0, 1)
        if table is None:
            yield
            return

        def place(_layer: nn.Module, _ids: object, vectors: Tensor) -> Tensor:
            new = table.to(vectors)[rows.clamp(min=0)]
            return torch.where(rows[..., None] >= 0, new, vectors)

        handle = self.embedding.register_forward_hook(place)
        try:
            yield
        finally:
            handle.remove()

    def _emphasised(self, states: Tensor, weights: Tensor) -> Tensor:
        """States (N, L, D) times their weights, the mean put back (docs/decisions/011)."""
        if bool((weights == 1).all()):
            return states
        heavier = states * weights[..., None]
        if self._penultimate:
            return heavier
        return heavier * (states.mean((1, 2)) / heavier.mean((1, 2)))[:, None, None]

    def _whole_words(self) -> dict[str, int]:
        """The tokens that may stand alone, with their ids."""
        vocabulary = self.tokenizer.get_vocab().items()
        return {token[:-4]: at for token, at in vocabulary if token.endswith("</w>")}

    def _tables(self, words: Mapping[str, Meaning]) -> dict[str, Tensor]:
        """The vectors that this tower has for words, one below the other in this order."""
        return {word: m.vectors[self.name] for word, m in words.items() if m.vectors}

    def _windows(self, marks: Sequence[_Mark], count: int) -> list[list[_Mark]]:
        """A prompt in so many windows of the tower's length; what is too long is cut."""
        given = self.tokenizer
        begin, end, pad = map(_Mark, (given.bos_token_id, given.eos_token_id, given.pad_token_id))
        shares = [marks[at * self._room : (at + 1) * self._room] for at in range(count)]
        return [[begin, *share, end, *[pad] * (self._room - len(share))] for share in shares]

    def _spell(self, prompt: str, words: Mapping[str, Meaning], reading: Reading) -> list[_Mark]:
        """The tokens of one prompt, however long."""
        said = rewrite(prompt, words)
        parts = spans(said) if reading.weights else (Span(said),)
        return [mark for part in parts for mark in self._of_span(part, words)]

    def _of_span(self, span: Span, words: Mapping[str, Meaning]) -> list[_Mark]:
        """The tokens of words that count alike."""
        tables = self._tables(words)
        rows, at = dict[str, range](), 0
        for word, table in tables.items():
            rows[word.lower()] = range(at, at := at + len(table))
        marks: list[_Mark] = []
        start = 0
        for match in pattern(tuple(tables)).finditer(span.text) if tables else ():
            marks += self._plain(span.text[start : match.start()], span.weight)
            word = next(word for word in tables if word.lower() == match.group().lower())
            stand_in = self.ids(words[word].text)[0]
            marks += [_Mark(stand_in, row, span.weight) for row in rows[word.lower()]]
            start = match.end()
        return marks + self._plain(span.text[start:], span.weight)

    def _plain(self, text: str, weight: float) -> list[_Mark]:
        return [_Mark(token, weight=weight) for token in self.ids(text)]


def told(
    towers: Sequence[TextTower],
    prompts: Sequence[str],
    words: Mapping[str, Meaning],
    reading: Reading,
) -> list[Told]:
    """What each of several towers makes of the same prompts, all in as many windows."""
    tokens = [tower.tokens(prompts, words, reading) for tower in towers]
    most = max(found.ids.shape[1] for found in tokens)
    if most > 1:
        tokens = [tower.tokens(prompts, words, reading, most) for tower in towers]
    return [tower.encode(found, reading) for tower, found in zip(towers, tokens, strict=True)]
