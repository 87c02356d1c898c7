"""The file format protocol: recognize a file by its content, read it and write it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pinxit import registry
from pinxit.adapters.parts import EmbeddingPart
from pinxit.concepts.concept import Concept, from_description
from pinxit.concepts.metadata import PROVENANCE_KEY, Provenance
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import write_bytes
from pinxit.files.open_any import OpenedFile
from pinxit.files.safetensors_file import write_tensors
from pinxit.models.modelspec import modelspec_metadata
from pinxit.models.source import Source

CERTAIN, LIKELY, POSSIBLE = 1.0, 0.9, 0.5
Precision = Literal["fp32", "fp16", "bf16"]

# Table names in other programs' files, and the names of the text encoders in pinxit.
TEXT_ENCODER_KEYS = {"clip_l": "text", "clip_g": "text_2"}
_KEYS_BY_ENCODER = {text_encoder: key for key, text_encoder in TEXT_ENCODER_KEYS.items()}
# The most portable key for a single table: every program that reads one tensor reads this one.
EMB_PARAMS = "emb_params"
# Keys that are not tokens: the token of such a file is its file name.
_TABLE_KEYS = (*TEXT_ENCODER_KEYS, EMB_PARAMS, "emp_params")
KEYS_WITHOUT_TOKEN = frozenset({*_TABLE_KEYS, *(f"{key}_out" for key in _TABLE_KEYS), "*"})
# The filler of embeddings from other programs; its own embedding is never used.
FILLER_TOKEN = "a"


@dataclass(frozen=True)
class Target:
    """The output path; for full weights also the base model and the precision of the file.

    Without `base`, the base model that was trained is used; without `precision`, tensors keep
    their dtype. `separate_embeddings` writes the embeddings of a LoRA to files beside it.
    """

    out: Path
    base: str | None = None
    precision: Precision | None = None
    separate_embeddings: bool = False

    def check_no_conversion(self) -> None:
        """Raise ConceptError if options for full weights are set for another kind of concept."""
        if self.base or self.precision:
            raise ConceptError(
                f"{self.out} keeps the exact trained values: --base and --precision do not apply",
                "leave out --base and --precision: they are for full weights only",
            )


class Format(ABC):
    """A file format.

    `contents` are the kinds of concepts that it can store, `suffixes` the suffixes of its files
    ("" for a folder), and `used_by` the programs that open them. `preferred_for` are the kinds of
    concepts and the suffixes for which it is the default.
    """

    contents: ClassVar[tuple[str, ...]]
    preferred_for: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    suffixes: ClassVar[tuple[str, ...]]
    used_by: ClassVar[str]
    writes_config: ClassVar[bool] = False  # a .yaml file beside the file, for some base models

    @abstractmethod
    def confidence(self, file: OpenedFile) -> float:
        """How certainly the content has this format, whatever the file name is: 0 to 1.

        0 means that it does not. CERTAIN is for a mark of the format, LIKELY for its names, and
        POSSIBLE for content that other formats may contain too.
        """

    def stores(self, concept: Concept) -> bool:
        """Whether it can store this kind of concept."""
        return concept.content in self.contents

    def check_base(self, source: Source) -> None:  # noqa: B027
        """Raise ConceptError if it cannot store complete models that are made from a base model."""

    @abstractmethod
    def read(self, file: OpenedFile) -> Concept:
        """Read the concept in the file; ConceptError if it is incomplete or damaged."""

    @abstractmethod
    def write(self, concept: Concept, target: Target) -> None:
        """Write a concept atomically; ConceptError if this format cannot store it."""


@dataclass(frozen=True)
class StoredEmbedding:
    """An embedding in a file: its token and a table (n, width) for each text encoder.

    The token is "" if only the file name states it. `metadata` are the file's own values.
    """

    token: str
    tables: Mapping[str, Tensor]
    metadata: Mapping[str, str]


class EmbeddingFormat(Format):
    """A format for embeddings; subclasses define the keys of the file."""

    contents = ("embeddings",)

    @abstractmethod
    def unpack(self, file: OpenedFile) -> Sequence[StoredEmbedding]:
        """The embeddings in a file."""

    @abstractmethod
    def pack(self, embedding: StoredEmbedding) -> Mapping[str, object]:
        """The content of a file with this embedding."""

    def stores(self, concept: Concept) -> bool:
        """Whether it is a single embedding."""
        return len(concept.parts) == 1 and isinstance(concept.parts[0], EmbeddingPart)

    def read(self, file: OpenedFile) -> Concept:
        """Read the embeddings of the file as one concept."""
        embeddings = self.unpack(file)
        for embedding in embeddings:
            check_tables(file, embedding)
        description = file.text(PROVENANCE_KEY)
        if description:
            tables = {str(i): embedding.tables for i, embedding in enumerate(embeddings)}
            return from_description(description, tables, file.path)
        # Without a name that can be typed, the token is the name of the file.
        names = ["".join(filter(str.isprintable, e.token)).strip() for e in embeddings]
        tokens = [name if name not in ("", "*") else file.path.stem for name in names]
        parts = [
            EmbeddingPart(token, FILLER_TOKEN, embedding.tables)
            for token, embedding in zip(tokens, embeddings, strict=True)
        ]
        return Concept(tuple(parts), Provenance.from_metadata(tokens[0], embeddings[0].metadata))

    def write(self, concept: Concept, target: Target) -> None:
        """Write the concept's embedding; ConceptError if it has several, or other parts."""
        target.check_no_conversion()
        write_embedding(self.pack(single_embedding(concept)), concept, target.out)


def all_formats() -> dict[str, Format]:
    """All formats by name."""
    return {name: registry.load("formats", name)() for name in registry.names("formats")}


def formats_hint(concept: Concept) -> str:
    """A hint with the names of all formats that can store a concept."""
    *others, last = (name for name, one in all_formats().items() if one.stores(concept))
    choices = f"{', '.join(others)} or {last}" if others else last
    return f"write it with --format {choices}"


def default_format(concept: Concept, suffix: str) -> str:
    """The name of the preferred format for a concept in a file with this suffix."""
    formats = all_formats()
    preferred = [
        name
        for preferred_suffix in (suffix, ".safetensors", "")
        for name, format_ in formats.items()
        if (concept.content, preferred_suffix) in format_.preferred_for
    ]
    storing = (name for name in preferred if formats[name].stores(concept))
    return next(storing, preferred[0])


def write_embedding(content: Mapping[str, object], concept: Concept, out: Path) -> None:
    """Write packed content as a torch file (`.pt`) or as safetensors with modelspec metadata."""
    if out.suffix == ".pt":
        # The name of a file would become part of its content: a buffer gives equal bytes each time.
        buffer = BytesIO()
        # AUTOMATIC1111 and Forge take all values of a file for two text encoders for tensors.
        is_shared = content.keys() & TEXT_ENCODER_KEYS.keys()
        description = {} if is_shared else {PROVENANCE_KEY: concept.shared_description}
        torch.save({**content, **description}, buffer)
        write_bytes(out, [buffer.getvalue()])
        return
    part = _only_embedding(concept)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    # Later families with the same text encoders can use the embedding too.
    family = next(iter(part.families), None)
    fields = modelspec_metadata(family, out.stem, concept.token, "/textual-inversion")
    metadata = {"format": "pt", **fields, PROVENANCE_KEY: concept.shared_description}
    write_tensors(out, tensors or tables_to_keys(part.tables, EMB_PARAMS), metadata)


def single_embedding(concept: Concept) -> StoredEmbedding:
    """The only embedding of a concept; ConceptError if it has several, or other parts."""
    part, provenance = _only_embedding(concept), concept.provenance
    steps = {"step": str(provenance.steps)} if provenance.steps else {}
    return StoredEmbedding(part.token, part.tables, {**steps, **provenance.metadata})


def _only_embedding(concept: Concept) -> EmbeddingPart:
    part, *others = concept.parts
    if others or not isinstance(part, EmbeddingPart):
        names = ", ".join("".join(part.tokens) or part.kind for part in concept.parts)
        raise ConceptError(
            f"{concept.token} is not a single embedding: it has the parts {names}",
            f"an embedding file stores one embedding; {formats_hint(concept)}",
        )
    return part


def tables_from_keys(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Tables by text encoder from a file with `key` for a single table, else `clip_l`, `clip_g`.

    Vectors for the output of a text encoder (OneTrainer) have `.out` after its name.
    """
    names = {key: "text"} if key in tensors else TEXT_ENCODER_KEYS
    outputs = {key: "text", **TEXT_ENCODER_KEYS}.items()
    names = {**names, **{f"{key}_out": f"{name}.out" for key, name in outputs}}
    return {names[name]: as_table(table) for name, table in tensors.items() if name in names}


def tables_to_keys(tables: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The inverse of `tables_from_keys`; ConceptError for a text encoder without a key."""
    unknown = tables.keys() - _KEYS_BY_ENCODER.keys()
    if unknown:
        raise ConceptError(
            f"the embedding has vectors for `{min(unknown)}`, which this format cannot store",
            "keep the format that the file has, or use --format pinxit",
        )
    if set(tables) == {"text"}:
        return {key: tables["text"]}
    return {_KEYS_BY_ENCODER[name]: table for name, table in tables.items()}


def as_table(vectors: Tensor) -> Tensor:
    """A table (n, width), also from a single vector (width,)."""
    return vectors.reshape(1, -1) if vectors.ndim == 1 else vectors


def check_tables(file: OpenedFile, embedding: StoredEmbedding) -> None:
    """Raise ConceptError unless all tables have the shape (n, width) with the same n.

    Vectors for outputs of text encoders are not used, and may be fewer or more.
    """
    tables = [table for name, table in embedding.tables.items() if "." not in name]
    if embedding.tables and not tables:
        raise ConceptError(
            f"{file.path} has vectors for the output of text encoders only, an output embedding of "
            "OneTrainer",
            "pinxit uses vectors for the input: train it without `output embedding`",
        )
    are_tables = all(t.ndim == 2 and t.numel() and t.is_floating_point() for t in tables)
    if not are_tables or len({len(table) for table in tables}) != 1:
        shapes = ", ".join(str(tuple(table.shape)) for table in tables) or "none"
        raise ConceptError(
            f"{file.path} contains no valid embedding: its tensors have the shapes {shapes}",
            "an embedding needs one table (n, width) for each text encoder, with the same n; "
            "the file may be damaged",
        )
