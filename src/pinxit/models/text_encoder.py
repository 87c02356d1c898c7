"""Text encoders: from prompts with placeholder tokens to hidden states."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pinxit.errors import ModelError
from pinxit.models.prompt import Placeholders, PromptPiece, parse_prompt
from pinxit.models.text_window import Unit, window_indices

_CACHED_PROMPTS = 4096


@dataclass(frozen=True)
class PromptParsing:
    """How prompts are parsed. The defaults take the text literally and use one chunk.

    `weights`: parse attention weights, such as `(word:1.2)`. `long`: use as many chunks as the
    prompt needs, instead of truncating it. `clip_skip`: use the N-th last hidden layer; None for
    the layer the base model was trained with.
    """

    weights: bool = False
    long_prompts: bool = False
    clip_skip: int | None = None


DEFAULT_PARSING = PromptParsing()
CLIP_SKIP = "use the N-th last layer of the CLIP text encoder, as in A1111 (1 = last layer)"


@dataclass(frozen=True)
class TokenPlan:
    """Tokenized prompts in chunks of the encoder's length, (B, chunks, L).

    `embedding_rows` are the rows of `embeddings` (rows, D) that replace the token's own embedding,
    -1 where the token keeps it. `weights` are the attention weights. `mask` is 0 for padding that
    is not part of the prompt; None without such padding.
    """

    ids: Tensor
    embedding_rows: Tensor
    weights: Tensor
    embeddings: Tensor | None
    mask: Tensor | None = None


@dataclass(frozen=True)
class EncodedPrompt:
    """Output of a text encoder: hidden states (B, chunks * L, D) and pooled states (B, P).

    `mask` (B, chunks * L) is 0 for padding that is not part of the prompt.
    """

    states: Tensor
    pooled: Tensor | None
    mask: Tensor | None = None


class TextEncoder(ABC):
    """A text model with its tokenizer. Prompts are tokenized first, and then encoded.

    The weights of `network` may be released. `load` is given by the model, and returns a network
    with its weights in memory.
    """

    name: str
    network: Any
    load: Callable[[str], Any] | None = None

    @property
    def loaded(self) -> Any:
        """The network with its weights in memory."""
        return self.load(self.name) if self.load else self.network

    @abstractmethod
    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Placeholders,
        parsing: PromptParsing = DEFAULT_PARSING,
        chunks: int = 1,
    ) -> TokenPlan:
        """Token ids of prompts with the positions of placeholder tokens, in at least `chunks`."""

    @abstractmethod
    def encode(self, plan: TokenPlan, parsing: PromptParsing = DEFAULT_PARSING) -> EncodedPrompt:
        """Hidden states and pooled states of tokenized prompts."""

    @abstractmethod
    def truncated_text(
        self, prompt: str, placeholders: Placeholders, parsing: PromptParsing = DEFAULT_PARSING
    ) -> str:
        """The part of a prompt that is left out, "" if the whole prompt fits."""


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


class PlaceholderEncoder(TextEncoder):
    """A text encoder in which embeddings of placeholder tokens can be trained.

    They change neither the text model nor its tokenizer: the positions of a placeholder token are
    tokenized as a known filler token, and a hook that exists for one forward pass replaces the
    output of the embedding layer at these positions. A token without embeddings for this encoder is
    replaced by the text that it stands for.

    `backend` is the tokenizer without the rules for placeholder tokens, and `room` the number of
    tokens of a prompt that fit into one window. Without `has_weights`, attention weights of prompts
    are ignored.
    """

    has_weights: ClassVar[bool] = True

    def __init__(self, name: str, network: Any, backend: Tokenizer, room: int) -> None:
        self.name = name
        self.network = network
        self.backend = backend
        self.room = room
        self._ids = lru_cache(_CACHED_PROMPTS)(self._text_ids)
        self._tokenized: dict[_PromptKey, list[Token]] = {}

    @abstractmethod
    def has_word(self, word: str) -> bool:
        """Whether the vocabulary has the word, or can split it into few tokens."""

    @abstractmethod
    def rare_tokens(self) -> list[str]:
        """Short tokens with almost no meaning, best first."""

    @abstractmethod
    def _text_ids(self, text: str) -> list[int]:
        """The token ids of a text, without start and end tokens."""

    @abstractmethod
    def _decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""

    def _window(self, tokens: Sequence[Token]) -> list[int]:
        """The indices of the tokens that stay in one window."""
        return window_indices([token.unit for token in tokens], self.room)

    def truncated_text(
        self, prompt: str, placeholders: Placeholders, parsing: PromptParsing = DEFAULT_PARSING
    ) -> str:
        """The part of a prompt that is left out, "" if the whole prompt fits."""
        tokens = self._prompt_tokens(prompt, placeholders, parsing)
        stay = set(self._window(tokens))
        return self._decode([t.id for index, t in enumerate(tokens) if index not in stay])

    def token_texts(
        self, prompt: str, placeholders: Placeholders, parsing: PromptParsing = DEFAULT_PARSING
    ) -> list[str]:
        """The text of each token of a whole prompt; that of an embedding is the placeholder."""
        tokens = self._prompt_tokens(prompt, placeholders, parsing)
        return [
            token.unit[0] if token.unit and token.row >= 0 else self._decode([token.id])
            for token in tokens
        ]

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding layer, with its weights in memory."""
        return self.loaded.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """The text model's device."""
        return self.network.get_input_embeddings().weight.device

    @property
    def width(self) -> int:
        """Size of a token embedding."""
        return self.network.get_input_embeddings().embedding_dim

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without start and end tokens."""
        return list(self._ids(text))

    def token_embeddings(self, text: str) -> Tensor:
        """A copy of the embeddings of a text's tokens, (tokens, width), fp32."""
        ids = torch.tensor(self.ids(text), device=self.device)
        return self.embedding.weight.detach()[ids].to(torch.float32, copy=True)

    @contextmanager
    def _embeddings_applied(self, plan: TokenPlan) -> Generator[None]:
        """Replace the embeddings of placeholder tokens inside the context."""
        embeddings, rows = plan.embeddings, plan.embedding_rows.flatten(0, 1)
        if embeddings is None or not len(embeddings):
            yield
            return

        def with_rows(_layer: nn.Module, _ids: object, output: Tensor) -> Tensor:
            replacements = embeddings.to(output)[rows.clamp(min=0)]
            return torch.where(rows[..., None] >= 0, replacements, output)

        handle = self.embedding.register_forward_hook(with_rows)
        try:
            yield
        finally:
            handle.remove()

    def _placeholder_vectors(self, placeholders: Placeholders) -> dict[str, Tensor]:
        """The embeddings (n, width) of placeholder tokens for this encoder."""
        return {
            token: embedding.vectors[self.name]
            for token, embedding in placeholders.items()
            if self.name in embedding.vectors
        }

    def _prompt_tokens(
        self,
        prompt: str,
        placeholders: Placeholders,
        parsing: PromptParsing,
        vectors: Mapping[str, Tensor] | None = None,
    ) -> list[Token]:
        """All tokens of a prompt, before it is split into chunks or truncated.

        They are cached: they depend on the numbers of vectors, but not on their values. `vectors`
        are those of the placeholder tokens, if they are known.
        """
        vectors = self._placeholder_vectors(placeholders) if vectors is None else vectors
        meanings = tuple(
            (token, embedding.text, len(vectors.get(token, ())))
            for token, embedding in placeholders.items()
        )
        key = (prompt, parsing.weights, meanings)
        if key not in self._tokenized:
            pieces = parse_prompt(prompt, placeholders, weights=parsing.weights)
            if not self.has_weights:
                pieces = [replace(piece, weight=1.0) for piece in pieces]
            if len(self._tokenized) >= _CACHED_PROMPTS:
                self._tokenized.clear()
            tokens = self._piece_tokens(pieces, vectors)
            self._check_embeddings(tokens)
            self._tokenized[key] = tokens
        return self._tokenized[key]

    def _check_embeddings(self, tokens: Sequence[Token]) -> None:
        """Raise ModelError if the text model has no embedding for a token."""
        rows = self.network.get_input_embeddings().num_embeddings
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
        ends = accumulate(map(len, vectors.values()))
        sizes = zip(vectors.items(), ends, strict=True)
        rows = {token: range(end - len(table), end) for (token, table), end in sizes}
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


def encode_prompts(
    text_encoders: Sequence[TextEncoder],
    prompts: Sequence[str],
    placeholders: Placeholders,
    parsing: PromptParsing,
) -> list[EncodedPrompt]:
    """The output of each text encoder for the same prompts, all with the same number of chunks."""
    plans = [encoder.tokenize(prompts, placeholders, parsing) for encoder in text_encoders]
    chunks = max(plan.ids.shape[1] for plan in plans)
    if chunks > 1:
        plans = [
            encoder.tokenize(prompts, placeholders, parsing, chunks) for encoder in text_encoders
        ]
    return [
        encoder.encode(plan, parsing) for encoder, plan in zip(text_encoders, plans, strict=True)
    ]
