"""The description of a concept in a file's metadata: its parts without tensors, and provenance.

It can be read without torch and without the tensors of the file.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pinxit import registry
from pinxit.errors import ConceptError
from pinxit.files.portable import last_name, numbered
from pinxit.files.safetensors_header import read_header_metadata

# The metadata keys of the description in pinxit's own files, and in files of other programs.
DESCRIPTION_KEY = "pinxit"
PROVENANCE_KEY = "pinxit.provenance"
# Files have a checksum from version 2 on.
_FORMAT_VERSION = 2
# Kinds of adapter that have older names in files.
_STORED_KINDS = {"embedding": "new-word", "full-weights": "tuned-weights"}
_KINDS = {stored: kind for kind, stored in _STORED_KINDS.items()}
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")


_version = cache(version)  # it reads a file


def library_versions() -> dict[str, str]:
    """The versions of the libraries that results may depend on."""
    return {name: _version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Provenance:
    """How a concept was trained: enough to repeat the training and to know which model it fits.

    `images` has the hash of each training image by number; early versions wrote its file name.
    `metadata` comes from another program's file, in that program's terms; other values are then
    empty. `scores` are those of the checkpoint if it was saved as the best one.
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
        except (ValueError, RecursionError):
            return {}

    def without_paths(self) -> "Provenance":
        """The provenance without paths and names of files, for files of other programs."""
        import tomli_w

        values = {**self.recipe_values}
        for key in ("images", "pictures", "base", "vae", "assistant", "preview_base"):
            if isinstance(values.get(key), str):
                values[key] = last_name(values[key])
        if encoders := values.get("text_encoders"):
            values["text_encoders"] = [last_name(str(name)) for name in encoders]
        recipe = tomli_w.dumps(values) if values else ""
        images = numbered(self.images)
        return replace(self, base=last_name(self.base), images=images, recipe=recipe)

    @classmethod
    def from_metadata(cls, token: str, metadata: Mapping[str, str], base: str = "") -> "Provenance":
        """The provenance of a file of another program, as far as its metadata states it."""
        steps = metadata.get("step") or metadata.get("ss_steps", "")
        num_steps = int(steps) if steps.isdecimal() else 0
        return cls(token, "", "", base, "", num_steps, {}, "", {}, metadata)


@dataclass(frozen=True)
class PartDescription:
    """A part of a concept without its tensors. `stored_kind` is its kind by the name in files."""

    stored_kind: Annotated[str, Field(alias="kind")]
    settings: dict[str, str]

    @classmethod
    def of(cls, kind: str, settings: dict[str, str]) -> "PartDescription":
        """The description of a part of a kind of adapter."""
        return cls(_STORED_KINDS.get(kind, kind), settings)

    @property
    def kind(self) -> str:
        """The kind of adapter, the name of a plug-in."""
        return _KINDS.get(self.stored_kind, self.stored_kind)


@dataclass(frozen=True)
class Description:
    """A concept without its tensors, as stored in a file's metadata."""

    format: int
    parts: list[PartDescription]
    provenance: Provenance

    @classmethod
    def of(cls, parts: list[PartDescription], provenance: Provenance) -> "Description":
        """A description in the current version of the format."""
        return cls(_FORMAT_VERSION, parts, provenance)

    def to_json(self) -> str:
        """The description as JSON; the inverse of `parse`."""
        values = _DESCRIPTION.dump_python(self, by_alias=True)
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str, path: Path) -> "Description":
        """Parse JSON from a file; ConceptError if it is damaged or of a newer version."""
        try:
            description = _DESCRIPTION.validate_json(text)
        except ValidationError as error:
            raise ConceptError(
                f"the description in {path} is damaged: {str(error).splitlines()[0]}",
                "use a copy of the file",
            ) from error
        known = registry.names("kinds")
        is_known = all(part.kind in known for part in description.parts)
        if description.format not in (1, _FORMAT_VERSION) or not is_known:
            raise ConceptError(
                f"concept {path} was written by a newer version of pinxit",
                "update pinxit to use it",
            )
        return description


# The keys `pictures` and `told` in files are older than the names of the fields.
_DESCRIPTION = TypeAdapter(Description)


def read_metadata(path: Path | str) -> Provenance:
    """The provenance in a safetensors file, without reading its tensors or verifying it.

    Raises ConceptError if the file has no description by pinxit, FileError if it is unreadable.
    """
    metadata = read_header_metadata(Path(path))
    text = metadata.get(DESCRIPTION_KEY) or metadata.get(PROVENANCE_KEY)
    if text is None:
        raise ConceptError(
            f"{path} has no description by pinxit", "give a file that pinxit has written"
        )
    return Description.parse(text, Path(path)).provenance
