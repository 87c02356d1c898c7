"""CLIP text encoders: prompts with placeholder tokens to token ids, and those to hidden states."""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pinxit.errors import ModelError
from pinxit.models.prompt import PromptPiece, TokenEmbedding, parse_prompt
from pinxit.models.text_encoder import DEFAULT_PARSING, EncodedPrompt, PromptParsing, TokenPlan
from pinxit.models.text_window import Unit, split_windows, window_indices

# A byte-level tokenizer of this size splits any word into few tokens; a small vocabulary cannot.
_LARGE_VOCABULARY = 10_000
_CACHED_PROMPTS = 4096


class Tokenizer(Protocol):
    """The methods of a CLIP tokenizer that are used here."""

    bos_token_id: int
    eos_token_id: int
    pad_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a text."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        ...


class TextNetwork(Protocol):
    """The methods of a CLIP text model that are used here."""

    config: Any

    def get_input_embeddings(self) -> nn.Embedding:
        """The input embedding layer."""
        ...

    def __call__(self, ids: Tensor, *, output_hidden_states: bool) -> Any:
        """The model's output for token ids (B, L), optionally with all hidden states."""
        ...


@dataclass(frozen=True)
class _Token:
    """A token of a prompt. `row` is the row of the embedding that replaces its own, or -1.

    `unit` is the occurrence of a placeholder token that it belongs to.
    """

    id: int
    row: int = -1
    weight: float = 1.0
    unit: Unit = None


# A prompt, whether weights are parsed, and each placeholder token with its text and length.
_PromptKey = tuple[str, bool, tuple[tuple[str, str, int], ...]]


class ClipEncoder:
    """A CLIP text model with its tokenizer.

    Placeholder tokens change neither of the two: their positions are tokenized as a known filler
    token, and a hook that exists for one forward pass replaces the output of the embedding layer
    at these positions.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        network: TextNetwork,
        *,
        penultimate: bool = False,
        long_prompts: bool = True,
        rare_tokens: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.network = network
        self.max_length: int = network.config.max_position_embeddings
        self._content_length = self.max_length - 2  # without the start and end tokens
        self._penultimate = penultimate
        self._supports_long_prompts = long_prompts
        self._rare_tokens = tuple(rare_tokens)
        self._ids = lru_cache(_CACHED_PROMPTS)(partial(tokenizer.encode, add_special_tokens=False))
        self._tokenized: dict[_PromptKey, list[_Token]] = {}

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

    def has_word(self, word: str) -> bool:
        """Whether the vocabulary has the word; a large one can split any word into few tokens."""
        return len(self.ids(word)) == 1 or len(self.tokenizer.get_vocab()) >= _LARGE_VOCABULARY

    def spelling_hint(self, word: str) -> str:
        """A hint for a word that is not in the vocabulary: the most similar word that is."""
        known_words = [known for known in self._whole_word_ids() if len(known) > 2]
        similar = get_close_matches(word.lower(), known_words, n=1)
        return f"did you mean {similar[0]}?" if similar else "use a more common word"

    def token_embeddings(self, text: str) -> Tensor:
        """A copy of the embeddings of a text's tokens, (tokens, width), fp32."""
        ids = torch.tensor(self.ids(text), device=self.embedding.weight.device)
        return self.embedding.weight.detach()[ids].to(torch.float32, copy=True)

    def rare_tokens(self) -> list[str]:
        """Short tokens with almost no meaning, best first (DreamBooth, section 3.2).

        A base model may list its own. Otherwise: a byte-pair vocabulary is sorted by frequency, so
        the rarest tokens are the last ones, and three consonants are a word of no language.
        """
        if self._rare_tokens:
            return list(self._rare_tokens)
        word_ids = self._whole_word_ids()
        candidates = [word for word in word_ids if re.fullmatch(r"[b-df-hj-np-tv-xz]{3}", word)]
        return sorted(candidates, key=lambda word: -word_ids[word])

    def truncated_text(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
    ) -> str:
        """The part of a prompt that is left out, "" if the whole prompt fits."""
        if parsing.long_prompts and self._supports_long_prompts:
            return ""
        vectors = self._placeholder_vectors(placeholders)
        tokens = self._prompt_tokens(prompt, placeholders, parsing, vectors)
        stay = set(window_indices([token.unit for token in tokens], self._content_length))
        cut = [token.id for index, token in enumerate(tokens) if index not in stay]
        return self.tokenizer.decode(cut)

    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
        chunks: int = 1,
    ) -> TokenPlan:
        """Token ids of prompts with the positions of placeholder tokens, in at least `chunks`."""
        vectors = self._placeholder_vectors(placeholders)
        prompt_tokens = [
            self._prompt_tokens(prompt, placeholders, parsing, vectors) for prompt in prompts
        ]
        is_long = parsing.long_prompts and self._supports_long_prompts
        contents = [self._windows(tokens, is_long=is_long) for tokens in prompt_tokens]
        chunks = max(chunks, *map(len, contents))
        tokens = [
            [token for chunk in self._chunks(windows, chunks) for token in chunk]
            for windows in contents
        ]
        shape, device = (len(prompts), chunks, -1), self.embedding.weight.device
        ids = torch.tensor([[token.id for token in row] for row in tokens], device=device)
        rows = torch.tensor([[token.row for token in row] for row in tokens], device=device)
        weights = torch.tensor([[token.weight for token in row] for row in tokens], device=device)
        embeddings = torch.cat(list(vectors.values())) if vectors else None
        return TokenPlan(ids.view(shape), rows.view(shape), weights.view(shape), embeddings)

    def encode(self, plan: TokenPlan, parsing: PromptParsing = DEFAULT_PARSING) -> EncodedPrompt:
        """Hidden states and pooled states of tokenized prompts.

        Raises ModelError if `clip_skip` is larger than the number of layers.
        """
        layer = parsing.clip_skip or (2 if self._penultimate else 1)
        if layer > self.network.config.num_hidden_layers:
            raise ModelError(
                f"clip skip {layer} is more than the {self.network.config.num_hidden_layers} "
                f"layers of the text encoder `{self.name}`",
                "use --clip-skip 1 or 2",
            )
        batch_size = len(plan.ids)
        hidden = self._penultimate or layer > 1
        with self._embeddings_applied(plan):
            output = self.network(plan.ids.flatten(0, 1), output_hidden_states=hidden)
        states: Tensor = output.hidden_states[-layer] if hidden else output.last_hidden_state
        if hidden and not self._penultimate:
            network: Any = getattr(self.network, "text_model", self.network)
            states = network.final_layer_norm(states)
        states = self._apply_weights(states.float(), plan.weights.flatten(0, 1))
        pooled: Tensor | None = getattr(output, "text_embeds", None)
        if pooled is not None:
            pooled = pooled.float().unflatten(0, (batch_size, -1))[:, 0]
        return EncodedPrompt(states.reshape(batch_size, -1, states.shape[-1]), pooled)

    @contextmanager
    def _embeddings_applied(self, plan: TokenPlan) -> Generator[None]:
        """Replace the embeddings of placeholder tokens inside the context."""
        embeddings, rows = plan.embeddings, plan.embedding_rows.flatten(0, 1)
        if embeddings is None:
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

    def _apply_weights(self, states: Tensor, weights: Tensor) -> Tensor:
        """States (N, L, D) times their weights, with the mean restored (docs/decisions/011)."""
        if bool((weights == 1).all()):
            return states
        weighted = states * weights[..., None]
        if self._penultimate:
            return weighted
        return weighted * (states.mean((1, 2)) / weighted.mean((1, 2)))[:, None, None]

    def _whole_word_ids(self) -> dict[str, int]:
        """The tokens that are whole words, with their ids."""
        vocabulary = self.tokenizer.get_vocab().items()
        return {token[:-4]: index for token, index in vocabulary if token.endswith("</w>")}

    def _placeholder_vectors(self, placeholders: Mapping[str, TokenEmbedding]) -> dict[str, Tensor]:
        """The embeddings (n, width) of placeholder tokens for this encoder."""
        return {
            token: embedding.vectors[self.name]
            for token, embedding in placeholders.items()
            if embedding.vectors
        }

    def _windows(self, tokens: Sequence[_Token], *, is_long: bool) -> list[list[_Token]]:
        """The tokens of each window of a prompt, only the first window unless it may be long."""
        units = [token.unit for token in tokens]
        if is_long:
            windows = split_windows(units, self._content_length)
            return [[tokens[index] for index in window] for window in windows]
        return [[tokens[index] for index in window_indices(units, self._content_length)]]

    def _chunks(self, windows: Sequence[list[_Token]], count: int) -> list[list[_Token]]:
        """A prompt in `count` chunks with start, end and padding tokens."""
        start = _Token(self.tokenizer.bos_token_id)
        end = _Token(self.tokenizer.eos_token_id)
        padding = _Token(self.tokenizer.pad_token_id)
        size = self._content_length
        contents = [*windows, *[[]] * (count - len(windows))]
        return [[start, *content, end, *[padding] * (size - len(content))] for content in contents]

    def _prompt_tokens(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing,
        vectors: Mapping[str, Tensor],
    ) -> list[_Token]:
        """All tokens of a prompt, before it is split into chunks or truncated.

        They are cached: they depend on the numbers of vectors, but not on their values.
        """
        meanings = tuple(
            (token, embedding.text, len(vectors.get(token, ())))
            for token, embedding in placeholders.items()
        )
        key = (prompt, parsing.weights, meanings)
        if key not in self._tokenized:
            pieces = parse_prompt(prompt, placeholders, weights=parsing.weights)
            if len(self._tokenized) >= _CACHED_PROMPTS:
                self._tokenized.clear()
            self._tokenized[key] = self._piece_tokens(pieces, vectors)
        return self._tokenized[key]

    def _piece_tokens(
        self, pieces: Sequence[PromptPiece], vectors: Mapping[str, Tensor]
    ) -> list[_Token]:
        """The tokens of a prompt's pieces; texts that touch are tokenized as one text."""
        rows: dict[str, range] = {}
        first_row = 0
        for token, embeddings in vectors.items():
            rows[token] = range(first_row, first_row + len(embeddings))
            first_row += len(embeddings)
        tokens: list[_Token] = []
        numbered = enumerate(pieces)
        groups = groupby(numbered, lambda item: (item[1].weight, item[1].token in vectors))
        for (weight, has_vectors), group in groups:
            items = list(group)
            if not has_vectors:
                tokens += self._text_tokens(items, weight)
                continue
            for number, piece in items:
                filler_id, unit = self.ids(piece.text)[0], (piece.token, number)
                tokens += [_Token(filler_id, row, weight, unit) for row in rows[piece.token]]
        return tokens

    def _text_tokens(
        self, pieces: Sequence[tuple[int, PromptPiece]], weight: float
    ) -> list[_Token]:
        """The tokens of numbered pieces of text with one weight."""
        ids = self.ids("".join(piece.text for _, piece in pieces))
        units: list[Unit] = [
            (piece.token, number) if piece.token else None
            for number, piece in pieces
            for _ in (self.ids(piece.text) if len(pieces) > 1 or piece.token else ids)
        ]
        if len(units) != len(ids):  # a text and an alias that touch share a token
            units = [None] * len(ids)
        return [_Token(index, -1, weight, unit) for index, unit in zip(ids, units, strict=True)]
