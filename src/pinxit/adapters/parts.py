"""The parts of a concept as data: what an adapter of each kind stores in a file."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from pinxit.errors import ConceptError
from pinxit.models.family import FamilyFacts, all_facts, family_of_denoiser

# Embedding vectors have norms of about 0.5; training does not reach this norm.
_HUGE_NORM = 1000.0


class Part(ABC):
    """An adapter as data. `kind` is its kind of adapter, the name of a plug-in.

    `has_strength` is True if a strength can scale its change of weights.
    """

    kind: ClassVar[str]
    has_strength: ClassVar[bool] = False

    @property
    @abstractmethod
    def settings(self) -> dict[str, str]:
        """The values that are not tensors, as stored in files."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors, as stored in files."""

    @classmethod
    @abstractmethod
    def from_stored(cls, settings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`.

        Raises KeyError if a setting is missing, ConceptError if a tensor is wrong.
        """

    @abstractmethod
    def describe(self) -> list[tuple[str, str]]:
        """What it contains and which base models it fits, as rows of a label and a text."""

    @property
    def key(self) -> str:
        """What the part belongs to; unique within a concept."""
        return self.replaces or f"word {''.join(self.tokens)}"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The placeholder tokens that it defines."""
        return ()

    @property
    def prompt_text(self) -> str:
        """What to write in a prompt to use the part; "" if it always has an effect."""
        return ""

    @property
    def replaces(self) -> str | None:
        """The network whose weights it replaces."""
        return None

    def problems(self) -> list[str]:
        """What a user should know before using the part."""
        return [problem for name in self.tensors if (problem := self._tensor_problem(name))]

    def _tensor_problem(self, name: str) -> str:
        return _not_finite(name, self.tensors[name])

    def check_finite(self) -> None:
        """ConceptError if a tensor has values that are infinite or NaN."""
        for name, tensor in self.tensors.items():
            if problem := _not_finite(name, tensor):
                raise ConceptError(
                    f"{problem}, in the part `{self.key}` of the concept",
                    "the file is damaged, or its training diverged: use another copy or an "
                    "earlier checkpoint",
                )


@dataclass(frozen=True)
class EmbeddingPart(Part):
    """A placeholder token with a table of vectors (n, width) for each text encoder.

    `filler` is the text that is tokenized in place of the token.
    """

    token: str
    filler: str
    tables: Mapping[str, Tensor]
    kind: ClassVar[str] = "embedding"

    @property
    def settings(self) -> dict[str, str]:
        """The token and its filler."""
        return {"word": self.token, "stand_in": self.filler}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tables by text encoder."""
        return self.tables

    @classmethod
    def from_stored(cls, settings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`; KeyError if a setting is missing."""
        return cls(settings["word"], settings["stand_in"], tensors)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token."""
        return (self.token,)

    @property
    def prompt_text(self) -> str:
        """The token."""
        return self.token

    @property
    def widths(self) -> dict[str, int]:
        """The embedding width for each text encoder, 0 where a table is not 2-D.

        Tables of other programs that pinxit does not use, with a `.` in their name, are left out.
        """
        tables = {name: table for name, table in sorted(self.tables.items()) if "." not in name}
        return {name: t.shape[1] if t.ndim == 2 else 0 for name, t in tables.items()}

    @property
    def families(self) -> list[FamilyFacts]:
        """The model families whose text encoders have these widths, oldest first.

        If no family has exactly these, those in which the token stands for nothing in an encoder.
        """
        widths = self.widths
        exact = [f for f in all_facts() if f.text_widths == tuple(widths.values())]
        return exact or [f for f in all_facts() if widths.items() <= f.encoder_widths.items()]

    def describe(self) -> list[tuple[str, str]]:
        """The token, the tables, and the base models that they fit."""
        rows = [("token", f"{self.token}, a new embedding")]
        for name, table in self.tables.items():
            size = " x ".join(map(str, table.shape))
            norms = f", norm {norm_range(table)}" if table.ndim == 2 else ""
            rows.append(("embedding", f"{size} for `{name}`{norms}"))
        titles = " or ".join(family.title for family in self.families)
        if titles and self.widths.keys() < {*self.families[0].encoder_widths}:
            titles += "; the token stands for nothing in the other text encoder"
        return [*rows, ("fits", titles or "only the base model that it was made for")]

    def _tensor_problem(self, name: str) -> str:
        problem = super()._tensor_problem(name)
        norms = self.tables[name].float().norm(dim=1)
        if problem or ((norms > 0).all() and (norms <= _HUGE_NORM).all()):
            unused = f"{name} is for the output of the text encoder; pinxit does not use it"
            return problem or (unused if "." in name else "")
        return f"{name} has vectors of norm {norm_range(self.tables[name])}"


@dataclass(frozen=True)
class AliasPart(Part):
    """A placeholder token that stands for a text."""

    token: str
    text: str
    kind: ClassVar[str] = "alias"

    @property
    def settings(self) -> dict[str, str]:
        """The token and its text."""
        return {"word": self.token, "text": self.text}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """An empty mapping: an alias has no tensors."""
        return {}

    @classmethod
    def from_stored(cls, settings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Self:  # noqa: ARG003
        """The inverse of `settings`; KeyError if one is missing."""
        return cls(settings["word"], settings["text"])

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token."""
        return (self.token,)

    @property
    def prompt_text(self) -> str:
        """The text that the token stands for."""
        return self.text

    def describe(self) -> list[tuple[str, str]]:
        """The token and its text."""
        return [("token", f"{self.token}, stands for `{self.text}`")]


@dataclass(frozen=True)
class NetworkPart(Part):
    """Tensors for the weights of a network, by the names of the weights."""

    network: str
    weights: Mapping[str, Tensor]

    @property
    def settings(self) -> dict[str, str]:
        """The name of the network."""
        return {"network": self.network}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by name."""
        return self.weights

    @classmethod
    def from_stored(cls, settings: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `settings` and `tensors`; KeyError if a setting is missing."""
        return cls(settings["network"], tensors)


@dataclass(frozen=True)
class FullWeightsPart(NetworkPart):
    """Weights by name that replace all weights of a network."""

    kind: ClassVar[str] = "full-weights"

    @property
    def replaces(self) -> str:
        """The network whose weights it replaces."""
        return self.network

    def describe(self) -> list[tuple[str, str]]:
        """The network, and the base models that it fits."""
        family = family_of_denoiser(self.weights)
        rows = [("network", f"{self.network}, {weight_count(self.weights.values())}")]
        return rows + ([("fits", family.title)] if family else [])


def _not_finite(name: str, tensor: Tensor) -> str:
    """How many values of a tensor are not finite, in words; "" if all are."""
    # float8 has few operators: it is compared as fp32.
    count = int((~(tensor.float() if tensor.itemsize == 1 else tensor).isfinite()).sum())
    return f"{count} values of {name} are infinite or NaN" if count else ""


def weight_count(tensors: Iterable[Tensor]) -> str:
    """The number of weights and their dtypes."""
    weights = list(tensors)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights})
    return f"{sum(tensor.numel() for tensor in weights):,} weights, {', '.join(dtypes)}"


def norm_range(table: Tensor) -> str:
    """The smallest and the largest norm of a table's vectors; one number if they are the same."""
    norms = table.float().norm(dim=1)
    low, high = f"{float(norms.min()):.3g}", f"{float(norms.max()):.3g}"
    return low if norms.min() == norms.max() else f"{low} to {high}"
