# pyright: standard, reportPrivateImportUsage=false
"""Language models as text encoders: prompts in a chat template, of different lengths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from pinxit.models.loading import load_network
from pinxit.models.model import Placement
from pinxit.models.prompt import Placeholders, plain_text
from pinxit.models.source import Source
from pinxit.models.text_encoder import (
    DEFAULT_PARSING,
    EncodedPrompt,
    PromptParsing,
    TextEncoder,
    TokenPlan,
)
from pinxit.models.tokenizers import encoded, read_tokenizer


class LlmEncoder(TextEncoder):
    """A frozen language model, of which one layer's hidden states are used.

    `template` has `{}` where the prompt goes; templates of files are not used, because they are
    code. `layer` is counted from the end, 1 for the last. Prompts are truncated to `length` tokens
    with the template, and padding is marked by the mask. Placeholder tokens are replaced by the
    text that they stand for, and attention weights are ignored.
    """

    def __init__(
        self,
        kind: type[Any],
        source: Source,
        placement: Placement,
        template: str,
        *,
        layer: int,
        length: int,
    ) -> None:
        self.name = "text"
        self.network: Any = load_network(kind, source, "text_encoder", placement, lazy=True)
        self._tokenizer = read_tokenizer(source, "tokenizer")
        self._template = template
        self._layer = layer
        self._length = length
        self._device = placement.device

    @property
    def chat_template(self) -> str:
        """The template as transformers' tokenizers have it, for one message."""
        template = self._template.replace("{}", "{{ messages[0].content }}")
        return template.replace("\n", r"{{ '\n' }}")  # a line break at the end is removed else

    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Placeholders,
        parsing: PromptParsing = DEFAULT_PARSING,
        chunks: int = 1,  # noqa: ARG002
    ) -> TokenPlan:
        """Token ids of prompts in one chunk, (B, 1, L), whatever the number of `chunks`."""
        rows = [
            torch.tensor(self._ids(prompt, placeholders, parsing)[: self._length])
            for prompt in prompts
        ]
        ids = pad_sequence(rows, batch_first=True)[:, None].to(self._device)
        mask = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
        mask = mask[:, None].to(self._device)
        return TokenPlan(ids, torch.full_like(ids, -1), torch.ones_like(mask), None, mask)

    @torch.no_grad()
    def encode(self, plan: TokenPlan, parsing: PromptParsing = DEFAULT_PARSING) -> EncodedPrompt:  # noqa: ARG002
        """Hidden states (B, L, D) of tokenized prompts, 0 where the mask is."""
        assert plan.mask is not None
        mask = plan.mask[:, 0]
        output = self.loaded(plan.ids[:, 0], attention_mask=mask, output_hidden_states=True)
        states = output.hidden_states[-self._layer].float() * mask[..., None]
        return EncodedPrompt(states, None, mask)

    def truncated_text(
        self, prompt: str, placeholders: Placeholders, parsing: PromptParsing = DEFAULT_PARSING
    ) -> str:
        """The end of a prompt that is truncated, "" if the whole prompt fits."""
        return self._tokenizer.decode(self._ids(prompt, placeholders, parsing)[self._length :])

    def _ids(self, prompt: str, placeholders: Placeholders, parsing: PromptParsing) -> list[int]:
        text = self._template.format(plain_text(prompt, placeholders, weights=parsing.weights))
        return encoded(self._tokenizer, text).ids
