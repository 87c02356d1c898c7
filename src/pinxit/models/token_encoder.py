"""What text encoders share in which placeholder tokens have embeddings of their own."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from pinxit.errors import ModelError
from pinxit.models.prompt import PromptPiece, TokenEmbedding, parse_prompt
from pinxit.models.text_encoder import DEFAULT_PARSING, PromptParsing, TokenPlan
from pinxit.models.text_window import Unit

_CACHED_PROMPTS = 4096


@dataclass(frozen=True)
class Token:
    """A token of a prompt. `row` is the row of the embedding that replaces its own, or -1.

    `unit` is the occurrence of a placeholder token that it belongs to.
    """

    id: int
    row: int = -1
    weight: float = 1.0
    unit: Unit = None


# A prompt, whether weights are parsed, and each placeholder token with its text and length.
_PromptKey = tuple[str, bool, tuple[tuple[str, str, int], ...]]


class TokenEncoder(ABC):
    """A text model with its tokenizer, which placeholder tokens do not change.

    The positions of a placeholder token are tokenized as a known filler token, and a hook that
    exists for one forward pass replaces the output of the embedding layer at these positions. A
    token without embeddings for this encoder is replaced by the text that it stands for.
    """

    def __init__(self, name: str, network: Any) -> None:
        self.name = name
        self.network = network
        self._ids = lru_cache(_CACHED_PROMPTS)(self._text_ids)
        self._tokenized: dict[_PromptKey, list[Token]] = {}

    @abstractmethod
    def _text_ids(self, text: str) -> list[int]:
        """The token ids of a text, without start and end tokens."""

    @abstractmethod
    def _decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""

    @abstractmethod
    def _window(self, tokens: Sequence[Token]) -> list[int]:
        """The indices of the tokens that stay in one window."""

    def truncated_text(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
    ) -> str:
        """The part of a prompt that is left out, "" if the whole prompt fits."""
        vectors = self._placeholder_vectors(placeholders)
        tokens = self._prompt_tokens(prompt, placeholders, parsing, vectors)
        stay = set(self._window(tokens))
        return self._decode([t.id for index, t in enumerate(tokens) if index not in stay])

    def token_texts(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
    ) -> list[str]:
        """The text of each token of a whole prompt; that of an embedding is the placeholder."""
        vectors = self._placeholder_vectors(placeholders)
        tokens = self._prompt_tokens(prompt, placeholders, parsing, vectors)
        return [
            token.unit[0] if token.unit and token.row >= 0 else self._decode([token.id])
            for token in tokens
        ]

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding layer."""
        return self.network.get_input_embeddings()

    @property
    def width(self) -> int:
        """Size of a token embedding."""
        return self.embedding.embedding_dim

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without start and end tokens."""
        return list(self._ids(text))

    def token_embeddings(self, text: str) -> Tensor:
        """A copy of the embeddings of a text's tokens, (tokens, width), fp32."""
        ids = torch.tensor(self.ids(text), device=self.embedding.weight.device)
        return self.embedding.weight.detach()[ids].to(torch.float32, copy=True)

    @contextmanager
    def _embeddings_applied(self, plan: TokenPlan) -> Generator[None]:
        """Replace the embeddings of placeholder tokens inside the context."""
        embeddings, rows = plan.embeddings, plan.embedding_rows.flatten(0, 1)
        if embeddings is None or not len(embeddings):
            yield
            return

        def replace(_layer: nn.Module, _ids: object, output: Tensor) -> Tensor:
            replacements = embeddings.to(output)[rows.clamp(min=0)]
            return torch.where(rows[..., None] >= 0, replacements, output)

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def _placeholder_vectors(self, placeholders: Mapping[str, TokenEmbedding]) -> dict[str, Tensor]:
        """The embeddings (n, width) of placeholder tokens for this encoder."""
        return {
            token: embedding.vectors[self.name]
            for token, embedding in placeholders.items()
            if self.name in embedding.vectors
        }

    def _pieces(
        self, prompt: str, placeholders: Mapping[str, TokenEmbedding], parsing: PromptParsing
    ) -> Sequence[PromptPiece]:
        """The pieces of a prompt with their attention weights."""
        return parse_prompt(prompt, placeholders, weights=parsing.weights)

    def _prompt_tokens(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing,
        vectors: Mapping[str, Tensor],
    ) -> list[Token]:
        """All tokens of a prompt, before it is split into chunks or truncated.

        They are cached: they depend on the numbers of vectors, but not on their values.
        """
        meanings = tuple(
            (token, embedding.text, len(vectors.get(token, ())))
            for token, embedding in placeholders.items()
        )
        key = (prompt, parsing.weights, meanings)
        if key not in self._tokenized:
            pieces = self._pieces(prompt, placeholders, parsing)
            if len(self._tokenized) >= _CACHED_PROMPTS:
                self._tokenized.clear()
            tokens = self._piece_tokens(pieces, vectors)
            self._check_embeddings(tokens)
            self._tokenized[key] = tokens
        return self._tokenized[key]

    def _check_embeddings(self, tokens: Sequence[Token]) -> None:
        """Raise ModelError if the text model has no embedding for a token."""
        rows = self.embedding.num_embeddings
        missing = next((token.id for token in tokens if token.id >= rows), None)
        if missing is not None:
            raise ModelError(
                f"the text encoder `{self.name}` has {rows} token embeddings, but its tokenizer "
                f"has a token with id {missing}",
                "copy or download the base model again: the two must be of the same model",
            )

    def _piece_tokens(
        self, pieces: Sequence[PromptPiece], vectors: Mapping[str, Tensor]
    ) -> list[Token]:
        """The tokens of a prompt's pieces; texts that touch are tokenized as one text."""
        rows: dict[str, range] = {}
        first_row = 0
        for token, embeddings in vectors.items():
            rows[token] = range(first_row, first_row + len(embeddings))
            first_row += len(embeddings)
        tokens: list[Token] = []
        numbered = enumerate(pieces)
        groups = groupby(numbered, lambda item: (item[1].weight, item[1].token in vectors))
        for (weight, has_vectors), group in groups:
            items = list(group)
            if not has_vectors:
                tokens += self._text_tokens(items, weight)
                continue
            for number, piece in items:
                filler_id, unit = self.ids(piece.text)[0], (piece.token, number)
                tokens += [Token(filler_id, row, weight, unit) for row in rows[piece.token]]
        return tokens

    def _text_tokens(self, pieces: Sequence[tuple[int, PromptPiece]], weight: float) -> list[Token]:
        """The tokens of numbered pieces of text with one weight."""
        ids = self.ids("".join(piece.text for _, piece in pieces))
        units: list[Unit] = [
            (piece.token, number) if piece.token else None
            for number, piece in pieces
            for _ in (self.ids(piece.text) if len(pieces) > 1 or piece.token else ids)
        ]
        if len(units) != len(ids):  # a text and an alias that touch share a token
            units = [None] * len(ids)
        return [Token(index, -1, weight, unit) for index, unit in zip(ids, units, strict=True)]
