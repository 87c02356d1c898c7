"""CLIP text encoders: prompts with placeholder tokens to token ids, and those to hidden states."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pinxit.errors import ModelError
from pinxit.models.loading import load_network
from pinxit.models.model import Placement
from pinxit.models.prompt import Placeholders
from pinxit.models.source import Source
from pinxit.models.text_encoder import (
    DEFAULT_PARSING,
    EncodedPrompt,
    PlaceholderEncoder,
    PromptParsing,
    Token,
    TokenPlan,
)
from pinxit.models.text_window import split_windows
from pinxit.models.tokenizers import clip_tokenizer, read_rare_tokens

# A byte-level tokenizer of this size splits any word into few tokens; a small vocabulary cannot.
_ROUNDING = 1e-5  # a mean below this share of the mean absolute value is 0
_LARGE_VOCABULARY = 10_000


class ClipEncoder(PlaceholderEncoder):
    """A CLIP text model with its tokenizer, both of transformers, for prompts of several chunks.

    `kind` is the class of the text model, and `number` is 1 for the first encoder of a base model.
    """

    def __init__(
        self,
        kind: type[Any],
        source: Source,
        number: int,
        placement: Placement,
        *,
        penultimate: bool = False,
        long_prompts: bool = True,
    ) -> None:
        suffix = f"_{number}" if number > 1 else ""
        network: Any = load_network(kind, source, f"text_encoder{suffix}", placement, lazy=True)
        self.tokenizer: Any = clip_tokenizer(source, f"tokenizer{suffix}")
        self.max_length: int = network.config.max_position_embeddings
        room = self.max_length - 2  # without the start and end tokens
        super().__init__(f"text{suffix}", network, self.tokenizer.backend_tokenizer, room)
        self._penultimate = penultimate
        self._supports_long_prompts = long_prompts
        self._rare_tokens = read_rare_tokens(source, f"tokenizer{suffix}")

    def _text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def has_word(self, word: str) -> bool:
        """Whether the vocabulary has the word; a large one can split any word into few tokens."""
        return len(self.ids(word)) == 1 or len(self.tokenizer.get_vocab()) >= _LARGE_VOCABULARY

    def rare_tokens(self) -> list[str]:
        """Short tokens with almost no meaning, best first (DreamBooth, section 3.2).

        A base model may list its own. Otherwise: a byte-pair vocabulary is sorted by frequency, so
        the rarest tokens are the last ones, and three consonants are a word of no language.
        """
        if self._rare_tokens:
            return list(self._rare_tokens)
        vocabulary = self.tokenizer.get_vocab()
        candidates = [t for t in vocabulary if re.fullmatch(r"[b-df-hj-np-tv-xz]{3}</w>", t)]
        by_rarity = sorted(candidates, key=lambda token: -vocabulary[token])
        return [token.removesuffix("</w>") for token in by_rarity]

    def truncated_text(
        self, prompt: str, placeholders: Placeholders, parsing: PromptParsing = DEFAULT_PARSING
    ) -> str:
        """The part of a prompt that is left out, "" if the whole prompt fits."""
        if parsing.long_prompts and self._supports_long_prompts:
            return ""
        return super().truncated_text(prompt, placeholders, parsing)

    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Placeholders,
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
        shape, device = (len(prompts), chunks, -1), self.device
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
            output = self.loaded(plan.ids.flatten(0, 1), output_hidden_states=hidden)
        states: Tensor = output.hidden_states[-layer] if hidden else output.last_hidden_state
        if hidden and not self._penultimate:
            network: Any = getattr(self.network, "text_model", self.network)
            states = network.final_layer_norm(states)
        states = states.float()
        if parsing.weights:
            states = self._apply_weights(states, plan.weights.flatten(0, 1))
        pooled: Tensor | None = getattr(output, "text_embeds", output.get("pooler_output"))
        if pooled is not None:
            pooled = pooled.float().unflatten(0, (batch_size, -1))[:, 0]
        return EncodedPrompt(states.reshape(batch_size, -1, states.shape[-1]), pooled)

    def _apply_weights(self, states: Tensor, weights: Tensor) -> Tensor:
        """States (N, L, D) times their weights, with the mean restored (docs/decisions/011)."""
        if bool((weights == 1).all()):
            return states
        weighted = states * weights[..., None]
        if self._penultimate:
            return weighted
        means = [tensor.mean((1, 2), keepdim=True) for tensor in (states, weighted)]
        # States with mean 0 have no mean to restore: its rounding errors would scale them.
        limit = _ROUNDING * weighted.abs().mean((1, 2), keepdim=True)
        known = (means[0].abs() > limit) & (means[1].abs() > limit)
        return torch.where(known, weighted * (means[0] / means[1]), weighted)

    def _windows(self, tokens: Sequence[Token], *, is_long: bool) -> list[list[Token]]:
        """The tokens of each window of a prompt, only the first window unless it may be long."""
        windows = [self._window(tokens)]
        if is_long:
            windows = split_windows([token.unit for token in tokens], self.room)
        return [[tokens[index] for index in window] for window in windows]

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids)

    def _chunks(self, windows: Sequence[list[Token]], count: int) -> list[list[Token]]:
        """A prompt in `count` chunks with start, end and padding tokens."""
        start = Token(self.tokenizer.bos_token_id)
        end = Token(self.tokenizer.eos_token_id)
        padding = Token(self.tokenizer.pad_token_id)
        contents = [*windows, *[[]] * (count - len(windows))]
        return [
            [start, *content, end, *[padding] * (self.room - len(content))] for content in contents
        ]
