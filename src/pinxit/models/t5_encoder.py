# pyright: standard, reportPrivateImportUsage=false
"""T5 text encoders: prompts of one fixed length, without placeholder tokens of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from pinxit.errors import ModelError
from pinxit.models.loading import load_network
from pinxit.models.model import Placement
from pinxit.models.prompt import PromptPiece, TokenEmbedding, parse_prompt
from pinxit.models.source import Source, read_json
from pinxit.models.text_encoder import DEFAULT_PARSING, EncodedPrompt, PromptParsing, TokenPlan
from pinxit.models.text_window import Unit, window_indices


class T5Encoder:
    """T5's encoder with its tokenizer, which is read from tokenizer.json only.

    Prompts are truncated or padded to `length` tokens. Placeholder tokens are replaced by the text
    that they stand for, and attention weights are ignored.
    """

    def __init__(self, source: Source, number: int, placement: Placement, length: int) -> None:
        from transformers import T5EncoderModel

        self.name = f"text_{number}"
        self._length = length
        self._tokenizer = _read_tokenizer(source, f"tokenizer_{number}")
        # The hidden states exceed the range of fp16.
        dtype = torch.bfloat16 if placement.precision == "fp16" else placement.dtype
        folder = f"text_encoder_{number}"
        self.network: Any = load_network(T5EncoderModel, source, folder, placement, dtype)
        self._device = placement.device

    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
        chunks: int = 1,  # noqa: ARG002
    ) -> TokenPlan:
        """Token ids of prompts in one chunk, (B, 1, L), whatever the number of `chunks`."""
        config, shape = self.network.config, (len(prompts), 1, self._length)
        ids = torch.full(shape, config.pad_token_id, device=self._device)
        for row, prompt in zip(ids[:, 0], prompts, strict=True):
            pieces = parse_prompt(prompt, placeholders, weights=parsing.weights)
            text_ids = [*self._window_ids(pieces), config.eos_token_id]
            row[: len(text_ids)] = torch.tensor(text_ids)
        return TokenPlan(ids, torch.full_like(ids, -1), torch.ones(shape, device=ids.device), None)

    def _window_ids(self, pieces: Sequence[PromptPiece]) -> list[int]:
        """The token ids of a prompt that stay in the window, without the end token."""
        text = "".join(piece.text for piece in pieces)
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        owners: list[Unit] = [
            (piece.token, number) if piece.token else None
            for number, piece in enumerate(pieces)
            for _ in piece.text
        ]
        units = [next(filter(None, owners[start:end]), None) for start, end in encoded.offsets]
        return [encoded.ids[index] for index in window_indices(units, self._length - 1)]

    @torch.no_grad()
    def encode(self, plan: TokenPlan, parsing: PromptParsing = DEFAULT_PARSING) -> EncodedPrompt:  # noqa: ARG002
        """Hidden states (B, L, D) of tokenized prompts, with those of the padding."""
        return EncodedPrompt(self.network(plan.ids[:, 0]).last_hidden_state.float(), None)


def _read_tokenizer(source: Source, part: str) -> Tokenizer:
    """The tokenizer of a part; ModelError if its file is invalid."""
    file = source.tokenizer(part) / "tokenizer.json"
    read_json(file, file.parent)  # checks the size and depth, which the tokenizers library does not
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises no more specific class
        raise ModelError(
            f"{file} is not a valid tokenizer: {str(error).splitlines()[0]}",
            "copy it again from the model's page, or remove text_encoder_3: T5 is optional",
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
