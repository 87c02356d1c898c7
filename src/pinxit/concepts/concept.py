"""A trained concept as data: its tensors, how they change a model, and their provenance."""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import (
    Adapter,
    AliasAdapter,
    EmbeddingAdapter,
    FullWeightsAdapter,
    Part,
)
from pinxit.adapters.lora import LORA_PART, LoraAdapter
from pinxit.errors import ConceptError, RequestError
from pinxit.files.atomic_write import write_tensors
from pinxit.files.open_any import OpenedFile, open_any
from pinxit.models.model import Model

if TYPE_CHECKING:
    from pinxit.concepts.format import Format

# The adapter class for each kind of part, and the settings that such a part must have.
_ADAPTER_TYPES: dict[str, type[Adapter]] = {
    "new-word": EmbeddingAdapter,
    "alias": AliasAdapter,
    "tuned-weights": FullWeightsAdapter,
    LORA_PART: LoraAdapter,
}
_REQUIRED_SETTINGS = {
    "new-word": {"word", "stand_in"},
    "alias": {"word", "text"},
    "tuned-weights": {"network"},
    LORA_PART: {"target", "kind"},
}
# Files have a checksum from version 2 on.
_FORMAT_VERSION = 2
# `FILE:STRENGTH`
_PATH_WITH_STRENGTH = re.compile(
    r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.DOTALL | re.IGNORECASE
)
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that results may depend on."""
    return {name: version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Provenance:
    """How a concept was trained: enough to repeat the training and to know which model it fits.

    `images` has the hash of each training image by name. `metadata` comes from another program's
    file, in that program's terms; other values are then empty. `scores` are those of the
    checkpoint if it was saved as the best one.
    """

    token: str
    class_noun: str
    method: str
    base: str
    base_hash: str
    steps: int
    images: Annotated[Mapping[str, str], Field(alias="pictures")]
    recipe: str
    versions: Mapping[str, str] = field(default_factory=library_versions)
    metadata: Annotated[Mapping[str, str], Field(alias="told")] = field(
        default_factory=dict[str, str]
    )
    scores: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def recipe_values(self) -> Mapping[str, Any]:
        """The options in the recipe; empty without a recipe or if it is not valid TOML."""
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}

    @classmethod
    def from_metadata(cls, token: str, metadata: Mapping[str, str], base: str = "") -> "Provenance":
        """The provenance of a file of another program, as far as its metadata states it."""
        steps = metadata.get("step") or metadata.get("ss_steps", "")
        num_steps = int(steps) if steps.isdecimal() else 0
        return cls(token, "", "", base, "", num_steps, {}, "", {}, metadata)


@dataclass(frozen=True)
class _PartDescription:
    """A part of a concept without its tensors, as stored in a file's metadata."""

    kind: str
    settings: dict[str, str]

    def __post_init__(self) -> None:
        missing = _REQUIRED_SETTINGS.get(self.kind, set()) - self.settings.keys()
        if missing:
            raise ValueError(f"a part of kind {self.kind} has no {', '.join(sorted(missing))}")


@dataclass(frozen=True)
class _Description:
    """A concept without its tensors, as stored in a file's metadata."""

    format: int
    parts: list[_PartDescription]
    provenance: Provenance


# The keys `pictures` and `told` in files are older than the names of the fields.
_DESCRIPTION = TypeAdapter(_Description)


@dataclass(frozen=True)
class Concept:
    """A trained concept, independent of a model; `adapters` makes it usable in one.

    `nickname` is the name of the file it was read from, which a prompt may use instead of the
    token. `strength` scales its LoRA: 0 is no change, 1 the full change.
    """

    parts: tuple[Part, ...]
    provenance: Provenance
    nickname: str = ""
    strength: float = 1.0

    @property
    def token(self) -> str:
        """The placeholder token to write in a prompt."""
        return self.provenance.token

    @property
    def has_full_weights(self) -> bool:
        """Whether it replaces all weights of a network."""
        return any("network" in part.settings for part in self.parts)

    @property
    def has_strength(self) -> bool:
        """Whether it has a LoRA, so that a strength can scale it."""
        return any(part.kind == LORA_PART for part in self.parts)

    @property
    def tokens(self) -> list[str]:
        """All placeholder tokens that it defines."""
        return [part.settings["word"] for part in self.parts if "word" in part.settings]

    @property
    def description(self) -> str:
        """The concept without its tensors as JSON; the inverse of `from_description`."""
        parts = [_PartDescription(part.kind, dict(part.settings)) for part in self.parts]
        description = _Description(_FORMAT_VERSION, parts, self.provenance)
        values = _DESCRIPTION.dump_python(description, by_alias=True)
        return json.dumps(values, ensure_ascii=False)

    def adapters(self, model: Model) -> tuple[Adapter, ...]:
        """The adapters of all parts for this model; ConceptError if one does not fit."""
        adapters = tuple(_ADAPTER_TYPES[part.kind].restore(part, model) for part in self.parts)
        loras = [adapter for adapter in adapters if isinstance(adapter, LoraAdapter)]
        if self.strength != 1 and not loras:
            raise ConceptError(
                f"a strength (`:{self.strength:g}`) works for LoRAs only; {self.token} has no LoRA",
                f"leave out the strength; in a prompt, write a weight as ({self.token}:1.2)",
            )
        for lora in loras:
            lora.strength = self.strength
        return adapters

    def save(self, path: Path) -> None:
        """Write the concept atomically as one safetensors file with a checksum."""
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            tensors |= {f"{number}.{name}": tensor for name, tensor in part.tensors.items()}
        write_tensors(path, tensors, {"pinxit": self.description}, checksum=True)

    @classmethod
    def load(cls, path: Path | str) -> "Concept":
        """Read a concept from a file or run folder; ConceptError if there is none."""
        file = open_any(Path(path))
        return recognize_format(file).read(file).with_nickname(Path(path))

    def with_strength(self, strength: float) -> "Concept":
        """The concept with another strength."""
        return replace(self, strength=strength)

    def with_nickname(self, path: Path) -> "Concept":
        """The concept with the name of its file as nickname; a folder gives none."""
        return replace(self, nickname="" if path.is_dir() else path.stem)


@dataclass(frozen=True)
class ConceptReference:
    """The path of a concept and the strength of its LoRA."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str | Path) -> "ConceptReference":
        """Parse `FILE` or `FILE:STRENGTH`; an existing path is taken as it is, without strength."""
        path, drive = Path(text), Path(text).drive
        match = _PATH_WITH_STRENGTH.fullmatch(str(text).removeprefix(drive))
        if match is None or path.exists():
            return cls(path)
        strength = float(match[2])
        if not math.isfinite(strength):
            raise RequestError(
                f"the strength in `{text}` is not a finite number", "choose one such as 0.7"
            )
        return cls(Path(drive + match[1]), strength)

    def __str__(self) -> str:
        path = str(self.path)
        if self.strength == 1 and not _PATH_WITH_STRENGTH.fullmatch(path):
            return path
        return f"{path}:{self.strength!r}"

    def open(self) -> Concept:
        """Read the concept; ConceptError if there is none."""
        return Concept.load(self.path).with_strength(self.strength)


def recognize_format(file: OpenedFile) -> "Format":
    """The format of a file, recognized by its content; ConceptError if no format matches."""
    for name in registry.names("formats"):
        format_: Format = registry.load("formats", name)()
        if format_.recognizes(file):
            return format_
    keys = sorted(file.content) or ["nothing"]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    raise ConceptError(
        f"{file.path} has an unknown format: it contains {', '.join(keys[:3])}{more}",
        f"pinxit reads the formats {', '.join(registry.names('formats'))}",
    )


def from_description(text: str, tables: Mapping[str, Mapping[str, Tensor]], path: Path) -> Concept:
    """The concept with this description and these tensors; ConceptError if it is damaged.

    The keys of `tables` are the numbers of the parts, or what the parts belong to: a network, a
    network and an adapter kind (`text.lora`), a token (`word <toy>`).
    """
    try:
        description = _DESCRIPTION.validate_json(text)
    except ValidationError as error:
        raise ConceptError(
            f"the description in {path} is damaged: {str(error).splitlines()[0]}",
            "use a copy of the file",
        ) from error
    is_known = all(part.kind in _ADAPTER_TYPES for part in description.parts)
    if description.format not in (1, _FORMAT_VERSION) or not is_known:
        raise ConceptError(
            f"concept {path} was written by a newer version of pinxit", "update pinxit to use it"
        )
    parts: list[Part] = []
    for number, part in enumerate(description.parts):
        tensors = tables.get(str(number)) or tables.get(_part_key(part.settings), {})
        parts.append(Part(part.kind, part.settings, tensors))
    return Concept(tuple(parts), description.provenance)


def _part_key(settings: Mapping[str, str]) -> str:
    """What a part belongs to; unique within a concept."""
    if "target" in settings:
        return f"{settings['target']}.{settings['kind']}"
    return settings.get("network") or f"word {settings.get('word', '')}"


def combined_adapters(concepts: Sequence[Concept], model: Model) -> tuple[Adapter, ...]:
    """The adapters of several concepts for one model, full weights before LoRAs.

    Raises ConceptError if two concepts replace the same network.
    """
    owners: dict[str, str] = {}
    for concept in concepts:
        for part in concept.parts:
            network = part.settings.get("network")
            if network is not None and owners.setdefault(network, concept.token) != concept.token:
                raise ConceptError(
                    f"{owners[network]} and {concept.token} both replace all weights of the "
                    f"network `{network}`",
                    "use only one of them, together with LoRAs or embeddings",
                )
    adapters = [adapter for concept in concepts for adapter in concept.adapters(model)]
    return tuple(sorted(adapters, key=_is_additive) + nickname_aliases(concepts))


def _is_additive(adapter: Adapter) -> bool:
    """Whether the adapter adds to weights that another adapter may replace."""
    return isinstance(adapter, LoraAdapter)


def nickname_aliases(concepts: Sequence[Concept]) -> list[Adapter]:
    """Aliases from file names to tokens, except for names that are tokens or not unique."""
    names = [token.lower() for concept in concepts for token in concept.tokens]
    names += [concept.nickname.lower() for concept in concepts]
    first_parts = [(concept.nickname, part) for concept in concepts for part in concept.parts[:1]]
    return [
        AliasAdapter(nickname, part.settings.get("text") or part.settings["word"])
        for nickname, part in first_parts
        if nickname and "word" in part.settings and names.count(nickname.lower()) == 1
    ]
