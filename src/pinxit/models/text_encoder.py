"""Text encoders: the interface, from prompts with placeholder tokens to hidden states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pinxit.models.prompt import TokenEmbedding


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


class TextEncoder(Protocol):
    """A text model with its tokenizer. Prompts are tokenized first, and then encoded."""

    name: str

    @property
    def network(self) -> Any:
        """The text model, a module."""
        ...

    def tokenize(
        self,
        prompts: Sequence[str],
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
        chunks: int = 1,
    ) -> TokenPlan:
        """Token ids of prompts with the positions of placeholder tokens, in at least `chunks`."""
        ...

    def encode(self, plan: TokenPlan, parsing: PromptParsing = DEFAULT_PARSING) -> EncodedPrompt:
        """Hidden states and pooled states of tokenized prompts."""
        ...

    def truncated_text(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
    ) -> str:
        """The end of a prompt that is truncated, "" if the whole prompt fits."""
        ...


class PlaceholderEncoder(TextEncoder, Protocol):
    """A text encoder in which embeddings of placeholder tokens can be trained."""

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding layer."""
        ...

    @property
    def width(self) -> int:
        """Size of a token embedding."""
        ...

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, without start and end tokens."""
        ...

    def token_texts(
        self,
        prompt: str,
        placeholders: Mapping[str, TokenEmbedding],
        parsing: PromptParsing = DEFAULT_PARSING,
    ) -> list[str]:
        """The text of each token of a whole prompt; that of an embedding is the placeholder."""
        ...

    def has_word(self, word: str) -> bool:
        """Whether the vocabulary has the word, or can split it into few tokens."""
        ...

    def token_embeddings(self, text: str) -> Tensor:
        """A copy of the embeddings of a text's tokens, (tokens, width), fp32."""
        ...

    def rare_tokens(self) -> list[str]:
        """Short tokens with almost no meaning, best first."""
        ...


def encode_prompts(
    text_encoders: Sequence[TextEncoder],
    prompts: Sequence[str],
    placeholders: Mapping[str, TokenEmbedding],
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
