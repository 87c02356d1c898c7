"""Aliases: placeholder tokens that stand for a text, such as DreamBooth's rare token."""

from contextlib import AbstractContextManager
from typing import Self

from pinxit.adapters.adapter import Adapter, placeholder
from pinxit.adapters.parts import AliasPart
from pinxit.models.model import Model
from pinxit.models.prompt import Placeholders, TokenEmbedding


class AliasAdapter(Adapter):
    """A placeholder token that is replaced by a text."""

    part_type = AliasPart

    def __init__(self, token: str, text: str) -> None:
        self.token = token
        self.text = text

    def applied(self, model: Model) -> AbstractContextManager[None]:
        """Define the token; ConceptError if the model has such a token already."""
        return placeholder(model, self.token, self.placeholders()[self.token])

    def placeholders(self) -> Placeholders:
        """The token and its text."""
        return {self.token: TokenEmbedding(self.text)}

    def part(self) -> AliasPart:
        """The token and its text as data."""
        return AliasPart(self.token, self.text)

    @classmethod
    def restore(cls, part: AliasPart, model: Model) -> Self:  # noqa: ARG003
        """The alias, which fits every model."""
        return cls(part.token, part.text)
