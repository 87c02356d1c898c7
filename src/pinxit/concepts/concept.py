"""A trained concept as data: its parts, which change a model, and their provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from pinxit.adapters.adapter import Adapter, adapter_type
from pinxit.adapters.parts import AliasPart, Part
from pinxit.adapters.strength import Strength, check_groups, strength_text
from pinxit.concepts.metadata import Description, PartDescription, Provenance
from pinxit.errors import ConceptError
from pinxit.models.model import Model

_P = TypeVar("_P", bound=Part)


@dataclass(frozen=True)
class Concept:
    """A trained concept, independent of a model; `adapters` makes it usable in one.

    `nickname` is the name of the file it was read from, which a prompt may use instead of the
    token. `strength` scales its LoRA: 0 is no change, 1 the full change; it may be one number for
    each group of layers.
    """

    parts: tuple[Part, ...]
    provenance: Provenance
    nickname: str = ""
    strength: Strength = 1.0

    def __repr__(self) -> str:
        """One line without tensors."""
        origin = self.provenance
        trained = f", {origin.method}, {origin.steps} steps" if origin.method else ""
        base = f" on {origin.base}" if origin.base else ""
        return f"<Concept {self.token}: {self.content}{trained}{base}>"

    @property
    def token(self) -> str:
        """The placeholder token to write in a prompt."""
        return self.provenance.token

    @property
    def has_full_weights(self) -> bool:
        """Whether it replaces all weights of a network."""
        return any(part.replaces for part in self.parts)

    @property
    def has_strength(self) -> bool:
        """Whether it has a LoRA, so that a strength can scale it."""
        return any(part.has_strength for part in self.parts)

    @property
    def content(self) -> str:
        """What a format must be able to store: "full weights", "adapters" or "embeddings"."""
        if self.has_full_weights:
            return "full weights"
        return "adapters" if self.has_strength else "embeddings"

    def parts_of(self, kind: type[_P]) -> list[_P]:
        """The parts of one type."""
        return [part for part in self.parts if isinstance(part, kind)]

    @property
    def tokens(self) -> list[str]:
        """All placeholder tokens that it defines."""
        return [token for part in self.parts for token in part.tokens]

    @property
    def description(self) -> str:
        """The concept without its tensors as JSON; the inverse of `from_description`."""
        return self._describe(self.provenance)

    @property
    def shared_description(self) -> str:
        """The description for files of other programs, without paths and names of files."""
        return self._describe(self.provenance.without_paths())

    def _describe(self, provenance: Provenance) -> str:
        parts = [PartDescription.of(part.kind, part.settings) for part in self.parts]
        return Description.of(parts, provenance).to_json()

    def adapters(self, model: Model) -> tuple[Adapter, ...]:
        """The adapters of all parts for this model; ConceptError if one does not fit."""
        self.check_finite()
        check_groups(self.strength, model)
        adapters = tuple(adapter_type(part.kind).restore(part, model) for part in self.parts)
        for part, adapter in zip(self.parts, adapters, strict=True):
            if part.has_strength:
                adapter.strength = self.strength
        return adapters

    def check_finite(self) -> None:
        """ConceptError if a tensor has values that are infinite or NaN."""
        for part in self.parts:
            part.check_finite()

    def with_strength(self, strength: Strength) -> "Concept":
        """The concept with another strength; ConceptError if it has no LoRA."""
        if strength != 1 and not self.has_strength:
            raise ConceptError(
                f"a strength (`:{strength_text(strength)}`) works for LoRAs only; "
                f"{self.token} has no LoRA",
                f"leave out the strength; in a prompt, write a weight as ({self.token}:1.2)",
            )
        return replace(self, strength=strength)

    def with_nickname(self, path: Path) -> "Concept":
        """The concept with the name of its file as nickname; a folder gives none."""
        return replace(self, nickname="" if path.is_dir() else path.stem)


def from_description(text: str, tables: Mapping[str, Mapping[str, Tensor]], path: Path) -> Concept:
    """The concept with this description and these tensors; ConceptError if it is damaged.

    The keys of `tables` are the numbers of the parts, or what the parts belong to: a network, a
    network and an adapter kind (`text.lora`), a token (`word <toy>`).
    """
    description = Description.parse(text, path)
    parts: list[Part] = []
    for number, part in enumerate(description.parts):
        part_type = adapter_type(part.kind).part_type
        try:
            described = part_type.from_stored(part.settings, {})
            tensors = tables.get(str(number)) or tables.get(described.key, {})
            parts.append(part_type.from_stored(part.settings, tensors))
        except KeyError as error:
            raise ConceptError(
                f"the description in {path} is damaged: a part of kind {part.stored_kind} has no "
                f"{error.args[0]}",
                "use a copy of the file",
            ) from error
        except ConceptError as error:
            raise ConceptError(f"{path}: {error.message}", error.hint) from error
    return Concept(tuple(parts), description.provenance)


def check_combination(concepts: Sequence[Concept]) -> None:
    """Raise ConceptError if two concepts replace the same network."""
    owners: dict[str, str] = {}
    for concept in concepts:
        for part in concept.parts:
            network = part.replaces
            if network and owners.setdefault(network, concept.token) != concept.token:
                raise ConceptError(
                    f"{owners[network]} and {concept.token} both replace all weights of the "
                    f"network `{network}`",
                    "use only one of them, together with LoRAs or embeddings",
                )


def combined_adapters(concepts: Sequence[Concept], model: Model) -> tuple[Adapter, ...]:
    """The adapters of several concepts for one model, full weights before LoRAs.

    Raises ConceptError if two concepts replace the same network.
    """
    check_combination(concepts)
    adapters = [adapter for concept in concepts for adapter in _fitted(concept, model)]
    adapters.sort(key=lambda adapter: adapter.part_type.has_strength)
    return (*adapters, *nickname_aliases(concepts, model))


def _fitted(concept: Concept, model: Model) -> Sequence[Adapter]:
    """The adapters of a concept; an error also says what the concept was trained on."""
    try:
        return concept.adapters(model)
    except ConceptError as error:
        base = concept.provenance.base
        where = f"; {concept.token} was trained on {base}" if base else ""
        raise ConceptError(error.message, error.hint + where) from error


def nickname_aliases(concepts: Sequence[Concept], model: Model) -> list[Adapter]:
    """Aliases from file names to tokens, except for names that are tokens or not unique."""
    names = [token.lower() for concept in concepts for token in concept.tokens]
    names += [concept.nickname.lower() for concept in concepts]
    aliases = [
        AliasPart(concept.nickname, part.prompt_text)
        for concept in concepts
        for part in concept.parts[:1]
        if concept.nickname and part.prompt_text and names.count(concept.nickname.lower()) == 1
    ]
    return [adapter_type(part.kind).restore(part, model) for part in aliases]
