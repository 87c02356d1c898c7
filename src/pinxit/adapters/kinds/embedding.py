"""Embeddings: placeholder tokens with their own vectors (textual inversion, arXiv:2208.01618)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor, nn

from pinxit.adapters.adapter import Adapter, on_cpu, placeholder
from pinxit.adapters.parts import EmbeddingPart
from pinxit.errors import ConceptError, RecipeError
from pinxit.models.model import Model
from pinxit.models.prompt import Placeholders, TokenEmbedding


class EmbeddingAdapter(Adapter):
    """A placeholder token with its own embeddings (textual inversion, arXiv:2208.01618).

    `tables` has a table (n, width) for each text encoder. `filler` is the text that is tokenized
    in place of the token; its embeddings are replaced.
    """

    part_type = EmbeddingPart
    changes_conditioning = True

    def __init__(self, token: str, filler: str, tables: Mapping[str, Tensor]) -> None:
        self.token = token
        self.filler = filler
        self.tables = {name: nn.Parameter(table) for name, table in tables.items()}
        self.vectors: Mapping[str, Tensor] = self.tables

    @staticmethod
    def check_trainable(model: Model) -> None:
        """Raise RecipeError if the model has no text encoder for embeddings."""
        if not model.text_encoders:
            raise RecipeError(
                f"{model.name} has no text encoder in which the embedding of a token can be "
                "trained: a language model reads its prompts",
                "train a LoRA, whose token stands for a trigger word: pinxit train lora",
            )

    @classmethod
    def of(cls, model: Model, token: str, noun: str, num_vectors: int) -> Self:
        """A trainable embedding of `num_vectors` vectors, initialized from the noun's embeddings.

        If the noun has fewer tokens than that, its vectors repeat. If it has more, each vector
        starts as the mean of a group of neighbouring tokens. Raises RecipeError if the model has
        no text encoder for embeddings.
        """
        cls.check_trainable(model)
        tables: dict[str, Tensor] = {}
        for name, text_encoder in model.text_encoders.items():
            vectors = text_encoder.token_embeddings(noun)
            groups = vectors.tensor_split(min(num_vectors, len(vectors)))
            means = [group.mean(0) for group in groups]
            tables[name] = torch.stack([means[i % len(means)] for i in range(num_vectors)])
        return cls(token, noun, tables)

    def applied(self, model: Model) -> AbstractContextManager[None]:
        """Define the token; ConceptError if the model has such a token already."""
        return placeholder(model, self.token, self.placeholders()[self.token])

    def placeholders(self) -> Placeholders:
        """The token with its vectors."""
        return {self.token: TokenEmbedding(self.filler, self.vectors)}

    def weights(self) -> Mapping[str, nn.Parameter]:
        """The embedding tables by text encoder."""
        return self.tables

    def part(self) -> EmbeddingPart:
        """The token, its filler and the vectors as data."""
        return EmbeddingPart(self.token, self.filler, on_cpu(self.vectors))

    @classmethod
    def restore(cls, part: EmbeddingPart, model: Model) -> Self:
        """The embedding for this model.

        In a text encoder for which the file has no vectors, the token stands for nothing.
        Raises ConceptError if the model has other text encoders, or other embedding widths.
        """
        widths, titles = part.widths, [family.title for family in part.families]
        models = " or ".join(titles) or "the kind of base model it was trained on"
        hint = f"it fits {models}: choose such a base model with --base"
        if not widths or widths.keys() - model.text_encoders.keys():
            raise ConceptError(
                f"{part.token} has embeddings for the text encoders "
                f"{', '.join(widths) or '(none)'}, but {model.name} has "
                f"{', '.join(model.text_encoders)}",
                hint,
            )
        tables: dict[str, Tensor] = {}
        for name, text_encoder in model.text_encoders.items():
            width = text_encoder.width
            table = part.tables.get(name, torch.zeros(0, width)).to(model.device)
            if table.shape[1] != width:
                raise ConceptError(
                    f"the embeddings of {part.token} are {table.shape[1]} wide, but those of "
                    f"{model.name} are {width} wide",
                    hint,
                )
            # float8 has few operators.
            tables[name] = table.float() if table.itemsize == 1 else table
        return cls(part.token, part.filler, tables)
