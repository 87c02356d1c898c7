"""What was learned: tensors, how they change a model, and where they came from, in one file."""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pinxit import registry
from pinxit.adapters.adapter import Adapter, Alias, NewWord, Part, TunedWeights
from pinxit.adapters.lora import PART, LowRank
from pinxit.errors import ConceptError, RequestError
from pinxit.files.atomic_write import replace_tensors
from pinxit.files.open_any import Opened, opened
from pinxit.models.model import Model

if TYPE_CHECKING:
    from pinxit.concepts.format import Format

# The kinds of parts, and the settings that each must have.
_KINDS: dict[str, type[Adapter]] = {
    "new-word": NewWord,
    "alias": Alias,
    "tuned-weights": TunedWeights,
    PART: LowRank,
}
_NEEDED = {
    "new-word": {"word", "stand_in"},
    "alias": {"word", "text"},
    "tuned-weights": {"network"},
    PART: {"target", "kind"},
}
# The second format has a seal.
_FORMAT = 2
# `FILE:STRENGTH`
_WEIGHED = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.DOTALL | re.IGNORECASE)
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")


def versions() -> dict[str, str]:
    """What a result may depend on, for its provenance."""
    return {name: version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Provenance:
    """Where a concept came from: enough to make it again, and to know what it fits.

    `told` is what another program's file says of it, in that program's own terms; what no file
    told is empty. `scores` are those that it was kept for.
    """

    token: str
    class_noun: str
    method: str
    base: str
    base_hash: str
    steps: int
    pictures: Mapping[str, str]
    recipe: str
    versions: Mapping[str, str] = field(default_factory=versions)
    told: Mapping[str, str] = field(default_factory=dict[str, str])
    scores: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def choices(self) -> Mapping[str, Any]:
        """What its recipe said, key by key; nothing if there is none that can be read."""
        try:
            return tomllib.loads(self.recipe)
        except tomllib.TOMLDecodeError:
            return {}

    @classmethod
    def foreign(cls, token: str, told: Mapping[str, str], base: str = "") -> "Provenance":
        """What a file of another program tells, and no more."""
        steps = told.get("step") or told.get("ss_steps", "")
        number = int(steps) if steps.isdecimal() else 0
        return cls(token, "", "", base, "", number, {}, "", {}, told)


@dataclass(frozen=True)
class _PartAbout:
    """A part without its tensors."""

    kind: str
    settings: dict[str, str]

    def __post_init__(self) -> None:
        missing = _NEEDED.get(self.kind, set()) - self.settings.keys()
        if missing:
            raise ValueError(f"a part of the kind {self.kind} lacks {', '.join(sorted(missing))}")


@dataclass(frozen=True)
class _About:
    """All there is to know of a concept besides its tensors."""

    format: int
    parts: list[_PartAbout]
    provenance: Provenance


@dataclass(frozen=True)
class Concept:
    """Something learned, ready to be put into a model.

    `nickname` is the name of the file it was opened from, which a prompt may use for its word.
    `strength` is how much of its LoRA counts: 0 is none of it, 1 is all.
    """

    parts: tuple[Part, ...]
    provenance: Provenance
    nickname: str = ""
    strength: float = 1.0

    @property
    def token(self) -> str:
        """The word to write in a prompt."""
        return self.provenance.token

    @property
    def tuned(self) -> bool:
        """Whether it replaces whole networks."""
        return any("network" in part.settings for part in self.parts)

    @property
    def weighable(self) -> bool:
        """Whether it changes single layers, so that more or less of it can count."""
        return any(part.kind == PART for part in self.parts)

    @property
    def words(self) -> list[str]:
        """Every word that it defines."""
        return [part.settings["word"] for part in self.parts if "word" in part.settings]

    @property
    def about(self) -> str:
        """Itself without its tensors, as JSON that `described` reads."""
        parts = [_PartAbout(part.kind, dict(part.settings)) for part in self.parts]
        about = _About(_FORMAT, parts, self.provenance)
        return json.dumps(asdict(about), ensure_ascii=False)

    def adapters(self, model: Model) -> tuple[Adapter, ...]:
        """The changes it makes to this model; ConceptError if it does not fit."""
        adapters = tuple(_KINDS[part.kind].restore(part, model) for part in self.parts)
        weighed = [adapter for adapter in adapters if isinstance(adapter, LowRank)]
        if self.strength != 1 and not weighed:
            raise ConceptError(
                f"{self.token} cannot have the strength {self.strength:g}: it holds no LoRA",
                f"leave the strength out; a word is weighed in the prompt: ({self.token}:1.2)",
            )
        for adapter in weighed:
            adapter.strength = self.strength
        return adapters

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            tensors |= {f"{number}.{name}": tensor for name, tensor in part.tensors.items()}
        replace_tensors(path, tensors, {"pinxit": self.about}, seal=True)

    @classmethod
    def load(cls, path: Path | str) -> "Concept":
        """A concept from a file of any format, or from a run's folder; ConceptError if none."""
        found = opened(Path(path))
        return recognised(found).read(found).opened_as(Path(path))

    def at(self, strength: float) -> "Concept":
        """Itself with another strength."""
        return replace(self, strength=strength)

    def opened_as(self, path: Path) -> "Concept":
        """Itself with the nickname that a file gives it, and a folder does not."""
        return replace(self, nickname="" if path.is_dir() else path.stem)


@dataclass(frozen=True)
class Pick:
    """A concept as it is asked for: where it is, and how much of its LoRA is to count."""

    path: Path
    strength: float = 1.0

    @classmethod
    def of(cls, given: str | Path) -> "Pick":
        """From `FILE` or `FILE:STRENGTH`; what is there is meant by its whole name."""
        path, drive = Path(given), Path(given).drive
        found = _WEIGHED.fullmatch(str(given).removeprefix(drive))
        if found is None or path.exists():
            return cls(path)
        strength = float(found[2])
        if not math.isfinite(strength):
            raise RequestError(f"`{given}` has no strength that can be", "take one such as 0.7")
        return cls(Path(drive + found[1]), strength)

    def __str__(self) -> str:
        written = str(self.path)
        whole = self.strength == 1 and not _WEIGHED.fullmatch(written)
        return written if whole else f"{written}:{self.strength!r}"

    def open(self) -> Concept:
        """The concept; ConceptError if there is none."""
        return Concept.load(self.path).at(self.strength)


def recognised(found: Opened) -> "Format":
    """The format of a file by its content; ConceptError if no format has such content."""
    for name in registry.names("formats"):
        format_: Format = registry.load("formats", name)()
        if format_.recognises(found):
            return format_
    held = sorted(found.content) or ["nothing known"]
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    raise ConceptError(
        f"{found.path} has no layout that pinxit knows: it holds {', '.join(held[:3])}{more}",
        f"formats that it reads: {', '.join(registry.names('formats'))}",
    )


def described(about: str, tables: Mapping[str, Mapping[str, Tensor]], path: Path) -> Concept:
    """The concept that `about` was written for, with its tensors; ConceptError if it is damaged.

    The tensors are given by the number of their part, or by what it is of: a network, a network
    and a kind of change (`text.lora`), a word (`word <toy>`).
    """
    try:
        found = TypeAdapter(_About).validate_json(about)
    except ValidationError as trouble:
        raise ConceptError(
            f"what {path} says of itself is damaged: {str(trouble).splitlines()[0]}",
            "take the file from a copy",
        ) from trouble
    if found.format not in (1, _FORMAT) or any(part.kind not in _KINDS for part in found.parts):
        raise ConceptError(
            f"concept {path} was written by a later pinxit", "update pinxit to use it"
        )
    parts: list[Part] = []
    for number, part in enumerate(found.parts):
        own = tables.get(str(number)) or tables.get(_place(part.settings), {})
        parts.append(Part(part.kind, part.settings, own))
    return Concept(tuple(parts), found.provenance)


def _place(settings: Mapping[str, str]) -> str:
    """What a part is of, which no other part of its concept is."""
    if "target" in settings:
        return f"{settings['target']}.{settings['kind']}"
    return settings.get("network") or f"word {settings.get('word', '')}"


def combined(concepts: Sequence[Concept], model: Model) -> tuple[Adapter, ...]:
    """The changes of several concepts together, those that replace whole networks first.

    ConceptError if two of them want the same network.
    """
    tuned: dict[str, str] = {}
    for concept in concepts:
        for part in concept.parts:
            network = part.settings.get("network")
            if network is not None and tuned.setdefault(network, concept.token) != concept.token:
                raise ConceptError(
                    f"{tuned[network]} and {concept.token} each replace the whole `{network}`",
                    "use one of them, with words learned by textual inversion beside it",
                )
    adapters = [adapter for concept in concepts for adapter in concept.adapters(model)]
    return tuple(sorted(adapters, key=_added) + nicknames(concepts))


def _added(adapter: Adapter) -> bool:
    """Whether it adds to weights that another may replace."""
    return isinstance(adapter, LowRank)


def nicknames(concepts: Sequence[Concept]) -> list[Adapter]:
    """Words named as their files are, but for names that are taken or stand for two."""
    taken = [word.lower() for concept in concepts for word in concept.words]
    taken += [concept.nickname.lower() for concept in concepts]
    meant = [(concept.nickname, part) for concept in concepts for part in concept.parts[:1]]
    return [
        Alias(nickname, part.settings.get("text") or part.settings["word"])
        for nickname, part in meant
        if nickname and "word" in part.settings and taken.count(nickname.lower()) == 1
    ]
