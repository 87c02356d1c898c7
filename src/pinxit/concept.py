"""What was learned: tensors, how they change a model, and where they came from, in one file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pinxit.adapter import Adapter, Alias, NewWord, Part, TunedWeights
from pinxit.durable import replace_tensors
from pinxit.errors import ConceptError
from pinxit.model import Model

_KINDS: dict[str, type[Adapter]] = {
    "new-word": NewWord,
    "alias": Alias,
    "tuned-weights": TunedWeights,
}
_KEY = "pinxit"
_FORMAT = 1
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")


def versions() -> dict[str, str]:
    """What a result may depend on, for its provenance."""
    return {name: version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Provenance:
    """Where a concept came from: enough to make it again, and to know what it fits."""

    token: str
    class_noun: str
    method: str
    base: str
    base_hash: str
    steps: int
    pictures: Mapping[str, str]
    recipe: str
    versions: Mapping[str, str] = field(default_factory=versions)


@dataclass(frozen=True)
class Concept:
    """Something learned, ready to be put into a model."""

    parts: tuple[Part, ...]
    provenance: Provenance

    @property
    def token(self) -> str:
        """The word to write in a prompt."""
        return self.provenance.token

    def adapters(self, model: Model) -> tuple[Adapter, ...]:
        """The changes it makes to this model; ConceptError if it does not fit."""
        return tuple(_KINDS[part.kind].restore(part, model) for part in self.parts)

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for number, part in enumerate(self.parts):
            tensors |= {f"{number}.{name}": tensor for name, tensor in part.tensors.items()}
        parts = [{"kind": part.kind, "settings": dict(part.settings)} for part in self.parts]
        about = {"format": _FORMAT, "parts": parts, "provenance": asdict(self.provenance)}
        replace_tensors(path, tensors, {_KEY: json.dumps(about, ensure_ascii=False)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """A concept from its file or from the folder of its run; ConceptError if it is none."""
        path = Path(path)
        file = path / "concept.safetensors" if path.is_dir() else path
        if not file.is_file():
            kind = "a run without a result so far" if path.is_dir() else "not there"
            raise ConceptError(
                f"concept {path} is {kind}", "give a run folder or its concept.safetensors"
            )
        tensors, about = _read(file)
        parts = tuple(
            Part(part["kind"], part["settings"], _of_part(tensors, number))
            for number, part in enumerate(about["parts"])
        )
        unknown = [part.kind for part in parts if part.kind not in _KINDS]
        if about["format"] != _FORMAT or unknown:
            raise ConceptError(
                f"concept {file} was written by a later pinxit", "update pinxit to use it"
            )
        return cls(parts, Provenance(**about["provenance"]))


def combined(concepts: Sequence[Concept], model: Model) -> tuple[Adapter, ...]:
    """The changes of several concepts together; ConceptError if two want the same network."""
    tuned: dict[str, str] = {}
    for concept in concepts:
        for part in concept.parts:
            network = part.settings.get("network")
            if network is not None and tuned.setdefault(network, concept.token) != concept.token:
                raise ConceptError(
                    f"{tuned[network]} and {concept.token} each replace the whole `{network}`",
                    "use one of them, with words learned by textual inversion beside it",
                )
    return tuple(adapter for concept in concepts for adapter in concept.adapters(model))


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a concept's file."""
    try:
        with safe_open(file, framework="pt") as opened:
            described: str | None = (opened.metadata() or {}).get(_KEY)
            names: list[str] = list(opened.keys())
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as trouble:
        raise ConceptError(
            f"concept {file} cannot be read: {trouble}", "it is damaged or no safetensors file"
        ) from trouble
    if described is None:
        raise ConceptError(
            f"{file} is a safetensors file that pinxit did not write",
            "give a run folder or its concept.safetensors",
        )
    return tensors, json.loads(described)


def _of_part(tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    start = f"{number}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
