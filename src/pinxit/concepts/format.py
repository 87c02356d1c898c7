"""What a format is: other programs' files, known by their content, read to a Concept and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pinxit.adapters.adapter import Part, word_widths
from pinxit.concepts.concept import Concept, Provenance, described
from pinxit.errors import ConceptError
from pinxit.files.atomic_write import replace, replace_tensors
from pinxit.files.open_any import Opened
from pinxit.models import modelspec

Numbers = Literal["fp32", "fp16", "bf16"]

# Under this a file of another program's layout carries what pinxit knows of it.
CARRIED = "pinxit.provenance"
# What others call the tables of the text towers, and what the towers are called here.
TOWERS = {"clip_l": "text", "clip_g": "text_2"}
_TOWERS_BACK = {tower: name for name, tower in TOWERS.items()}
# A lone table for a lone tower is best kept under this: all who read one tensor read it.
EMB_PARAMS = "emb_params"
# Keys of files that only their own name names.
NAMELESS = frozenset({*TOWERS, EMB_PARAMS, "emp_params", "*"})
# What a word of others stands on: its vectors are written over it, so any known word would do.
STAND_IN = "a"


@dataclass(frozen=True)
class Target:
    """Where to write; for tuned networks also the base that completes them, and in which numbers.

    Without a base it is the one they were trained on; without numbers all stay as they are.
    """

    out: Path
    base: str | None = None
    numbers: Numbers | None = None

    def must_be_plain(self) -> None:
        """ConceptError if what only tuned networks need was given for something else."""
        if self.base or self.numbers:
            raise ConceptError(
                f"{self.out} is to be written bit for bit as it was learned",
                "leave --base and --precision out: they are for tuned networks",
            )


class Format(ABC):
    """Files of one layout; `holds` words, networks, adapters; `used_by` is who opens them."""

    holds: ClassVar[tuple[str, ...]]
    endings: ClassVar[tuple[str, ...]]
    used_by: ClassVar[str]

    @abstractmethod
    def recognises(self, found: Opened) -> bool:
        """Whether the content has this layout, whatever the file is called."""

    @abstractmethod
    def read(self, found: Opened) -> Concept:
        """What the file holds; ConceptError if it is not whole."""

    @abstractmethod
    def write(self, concept: Concept, target: Target) -> None:
        """Write it whole or not at all; ConceptError if this layout cannot hold it."""


@dataclass(frozen=True)
class Word:
    """A word of a file: its name, "" if only the file has one, and its table (n, width) by tower.

    `told` is what the file says of it in its own terms.
    """

    name: str
    tables: Mapping[str, Tensor]
    told: Mapping[str, str]


class Embedding(Format):
    """A layout that holds words: subclasses say what is where."""

    holds = ("words",)

    @abstractmethod
    def unpack(self, found: Opened) -> Sequence[Word]:
        """The words of a file."""

    @abstractmethod
    def pack(self, word: Word) -> Mapping[str, object]:
        """The content of a file that holds the word."""

    def read(self, found: Opened) -> Concept:
        """A concept of the file's words."""
        words = self.unpack(found)
        for word in words:
            must_be_tables(found, word)
        carried = found.text(CARRIED)
        if carried:
            tables = {str(number): word.tables for number, word in enumerate(words)}
            return described(carried, tables, found.path)
        tokens = [word.name if word.name not in ("", "*") else found.path.stem for word in words]
        parts = [
            Part("new-word", {"word": token, "stand_in": STAND_IN}, word.tables)
            for token, word in zip(tokens, words, strict=True)
        ]
        return Concept(tuple(parts), Provenance.foreign(tokens[0], words[0].told))

    def write(self, concept: Concept, target: Target) -> None:
        """One word as one file; ConceptError if there are more, or tuned networks."""
        target.must_be_plain()
        write_packed(self.pack(only_word(concept)), concept, target.out)


def write_packed(content: Mapping[str, object], concept: Concept, out: Path) -> None:
    """A packed word as a torch file or, with a card of it in the metadata, as safetensors."""
    if out.suffix == ".pt":
        whole = {**content, CARRIED: concept.about}
        replace(out, lambda beside: torch.save(whole, beside))
        return
    tables = only_word(concept).tables
    kind = modelspec.fitting(list(word_widths(tables).values()))
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    card = modelspec.card(kind, out.stem, concept.token, "/textual-inversion")
    about = {"format": "pt", **card, CARRIED: concept.about}
    replace_tensors(out, tensors or packed(tables, EMB_PARAMS), about)


def only_word(concept: Concept) -> Word:
    """The one word of a concept; ConceptError if it holds something else."""
    words = [part for part in concept.parts if part.kind == "new-word"]
    if len(words) != 1 or len(concept.parts) != 1:
        held = ", ".join(part.settings.get("word") or part.kind for part in concept.parts)
        raise ConceptError(
            f"{concept.token} is no single learned word, it holds: {held}",
            "an embedding file holds one word; a LoRA goes to `kohya` or `diffusers-lora`, tuned "
            "networks to `diffusers` or `single-file`",
        )
    known = concept.provenance
    steps = {"step": str(known.steps)} if known.steps else {}
    return Word(words[0].settings["word"], words[0].tensors, {**steps, **known.told})


def unpacked(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Tables by tower of a file that keeps a lone one under `key`, several as others do."""
    names = {key: "text"} if key in tensors else TOWERS
    return {names[name]: flat(table) for name, table in tensors.items() if name in names}


def packed(tables: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """The reverse; ConceptError if others have no such tower."""
    strange = tables.keys() - _TOWERS_BACK.keys()
    if strange:
        raise ConceptError(
            f"the word has vectors for `{min(strange)}`, and this layout has no place for them",
            "keep it in the format it has, or in pinxit's own",
        )
    if set(tables) == {"text"}:
        return {key: tables["text"]}
    return {_TOWERS_BACK[tower]: table for tower, table in tables.items()}


def flat(table: Tensor) -> Tensor:
    """A table (n, width), also from a lone vector (width,)."""
    return table.reshape(1, -1) if table.ndim == 1 else table


def must_be_tables(found: Opened, word: Word) -> None:
    """ConceptError if what should be a word's tables are not (n, width) tables of one length."""
    tables = word.tables.values()
    good = all(t.ndim == 2 and t.numel() and t.is_floating_point() for t in tables)
    if not good or len({len(table) for table in tables}) != 1:
        shapes = ", ".join(str(tuple(table.shape)) for table in tables) or "none"
        raise ConceptError(
            f"{found.path} holds no word's vectors, but tensors of shapes {shapes}",
            "a word has a table of vectors for each text tower, all of one length",
        )
