"""CLIP text encoders: prompts with placeholder tokens to token ids, and those to hidden states."""

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
from pinxit.models.prompt import (
    TokenEmbedding,
    WeightedText,
    expand_aliases,
    parse_weights,
    token_pattern,
)
from pinxit.models.text_encoder import DEFAULT_PARSING, EncodedPrompt, PromptParsing, TokenPlan

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
    """A token of a prompt. `row` is the row of the embedding that replaces its own, or -1."""

    id: int
    row: int = -1
    weight: float = 1.0


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
        """The end of a prompt that is truncated, "" if the whole prompt fits."""
        if parsing.long_prompts and self._supports_long_prompts:
            return ""
        vectors = self._placeholder_vectors(placeholders)
        tokens = self._prompt_tokens(prompt, placeholders, parsing, vectors)
        return self.tokenizer.decode([token.id for token in tokens[self._content_length :]])

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
        if parsing.long_prompts and self._supports_long_prompts:
            lengths = [len(tokens) for tokens in prompt_tokens]
            chunks = max(chunks, *(-(-length // self._content_length) for length in lengths))
        tokens = [
            [token for chunk in self._chunks(tokens, chunks) for token in chunk]
            for tokens in prompt_tokens
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

    def _chunks(self, tokens: Sequence[_Token], count: int) -> list[list[_Token]]:
        """A prompt in `count` chunks with start, end and padding tokens; the rest is truncated."""
        start = _Token(self.tokenizer.bos_token_id)
        end = _Token(self.tokenizer.eos_token_id)
        padding = _Token(self.tokenizer.pad_token_id)
        size = self._content_length
        contents = [tokens[index * size : (index + 1) * size] for index in range(count)]
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
            text = expand_aliases(prompt, placeholders)
            segments = parse_weights(text) if parsing.weights else (WeightedText(text),)
            if len(self._tokenized) >= _CACHED_PROMPTS:
                self._tokenized.clear()
            self._tokenized[key] = [
                token
                for segment in segments
                for token in self._segment_tokens(segment, placeholders, vectors)
            ]
        return self._tokenized[key]

    def _segment_tokens(
        self,
        segment: WeightedText,
        placeholders: Mapping[str, TokenEmbedding],
        vectors: Mapping[str, Tensor],
    ) -> list[_Token]:
        """The tokens of a text with one weight."""
        if not vectors:
            return self._text_tokens(segment.text, segment.weight)
        names: dict[str, str] = {}
        rows: dict[str, range] = {}
        first_row = 0
        for name, embeddings in vectors.items():
            names.setdefault(name.lower(), name)
            rows[name.lower()] = range(first_row, first_row + len(embeddings))
            first_row += len(embeddings)
        tokens: list[_Token] = []
        start = 0
        for match in token_pattern(tuple(vectors)).finditer(segment.text):
            tokens += self._text_tokens(segment.text[start : match.start()], segment.weight)
            key = match.group().lower()
            filler_id = self.ids(placeholders[names[key]].text)[0]
            tokens += [_Token(filler_id, row, segment.weight) for row in rows[key]]
            start = match.end()
        return tokens + self._text_tokens(segment.text[start:], segment.weight)

    def _text_tokens(self, text: str, weight: float) -> list[_Token]:
        return [_Token(index, weight=weight) for index in self.ids(text)]
