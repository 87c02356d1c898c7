# pyright: standard, reportPrivateImportUsage=false
"""T5 text encoders: prompts of one fixed length."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pinxit.models.loading import load_network
from pinxit.models.model import Placement
from pinxit.models.prompt import Placeholders, PromptPiece
from pinxit.models.source import Source
from pinxit.models.text_encoder import (
    DEFAULT_PARSING,
    EncodedPrompt,
    PlaceholderEncoder,
    PromptParsing,
    Token,
    TokenPlan,
)
from pinxit.models.text_window import Unit
from pinxit.models.tokenizers import encoded, read_tokenizer


class T5Encoder(PlaceholderEncoder):
    """T5's encoder with its tokenizer, which is read from tokenizer.json only.

    Prompts are truncated or padded to `length` tokens, and attention weights are ignored. With
    `masked`, the padding is not read, and the mask is returned.
    """

    has_weights = False

    def __init__(
        self,
        source: Source,
        number: int,
        placement: Placement,
        length: int,
        *,
        masked: bool = False,
    ) -> None:
        from transformers import T5EncoderModel

        self._length = length
        self._masked = masked
        suffix = f"_{number}" if number > 1 else ""
        tokenizer = read_tokenizer(source, f"tokenizer{suffix}")
        # The hidden states exceed the range of fp16.
        own = replace(placement, precision="bf16") if placement.precision == "fp16" else placement
        folder = f"text_encoder{suffix}"
        network: Any = load_network(T5EncoderModel, source, folder, own, lazy=True)
        # They are two layers with the same weights; as one layer, both are changed together.
        network.encoder.embed_tokens = network.shared
        super().__init__(f"text{suffix}", network, tokenizer, length - 1)  # and an end token

    def has_word(self, word: str) -> bool:  # noqa: ARG002
        """True: the vocabulary has pieces for every word."""
        return True

    def rare_tokens(self) -> list[str]:
        """An empty list: every rare word is split into several tokens."""
        return []

    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Placeholders,
        parsing: PromptParsing = DEFAULT_PARSING,
        chunks: int = 1,  # noqa: ARG002
    ) -> TokenPlan:
        """Token ids of prompts in one chunk, (B, 1, L), whatever the number of `chunks`."""
        config, shape = self.network.config, (len(prompts), 1, self._length)
        ids = torch.full(shape, config.pad_token_id, device=self.device)
        rows, mask = torch.full_like(ids, -1), torch.zeros(shape, device=self.device)
        vectors = self._placeholder_vectors(placeholders)
        for index, prompt in enumerate(prompts):
            all_tokens = self._prompt_tokens(prompt, placeholders, parsing, vectors)
            tokens = [all_tokens[position] for position in self._window(all_tokens)]
            text_ids = [*(token.id for token in tokens), config.eos_token_id]
            ids[index, 0, : len(text_ids)] = torch.tensor(text_ids)
            mask[index, 0, : len(text_ids)] = 1
            rows[index, 0, : len(tokens)] = torch.tensor([token.row for token in tokens])
        embeddings = torch.cat(list(vectors.values())) if vectors else None
        weights = torch.ones(shape, device=ids.device)
        return TokenPlan(ids, rows, weights, embeddings, mask if self._masked else None)

    def encode(self, plan: TokenPlan, parsing: PromptParsing = DEFAULT_PARSING) -> EncodedPrompt:  # noqa: ARG002
        """Hidden states (B, L, D) of tokenized prompts, with those of the padding."""
        mask = None if plan.mask is None else plan.mask[:, 0]
        with self._embeddings_applied(plan):
            output = self.loaded(plan.ids[:, 0], attention_mask=mask)
        return EncodedPrompt(output.last_hidden_state.float(), None, mask)

    def _decode(self, token_ids: list[int]) -> str:
        return self.backend.decode(token_ids)

    def _text_ids(self, text: str) -> list[int]:
        return encoded(self.backend, text).ids

    def _text_tokens(self, pieces: Sequence[tuple[int, PromptPiece]], weight: float) -> list[Token]:
        """The tokens of numbered pieces of text, each with the placeholder that it touches."""
        text = "".join(piece.text for _, piece in pieces)
        encoding = encoded(self.backend, text)
        owners: list[Unit] = [
            (piece.token, number) if piece.token else None
            for number, piece in pieces
            for _ in piece.text
        ]
        units = [next(filter(None, owners[start:end]), None) for start, end in encoding.offsets]
        tokens = zip(encoding.ids, units, strict=True)
        return [Token(index, -1, weight, unit) for index, unit in tokens]
