"""Files of LoRAs and their kin: what they hold is made whole, or refused."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pinxit.adapters.adapter import Part
from pinxit.adapters.lora import PART
from pinxit.adapters.peft_layers import WEIGHTS, split
from pinxit.concepts.concept import Concept, Provenance, described
from pinxit.concepts.format import CARRIED, STAND_IN, Format, Word, must_be_tables
from pinxit.errors import ConceptError
from pinxit.files.open_any import Opened
from pinxit.models import modelspec
from pinxit.models.modelspec import Kind

Layer = dict[str, Tensor]
Changes = dict[tuple[str, str], dict[str, Layer]]  # by network and kind, then by layer

ALPHA, MAGNITUDE = "alpha", "lora_magnitude_vector"
# What diffusers' files say of ranks and alphas under.
SETTINGS = "lora_adapter_metadata"
DAMAGED = "it is damaged, or a kind that pinxit does not read: it reads LoRA, DoRA, LoHa and LoKr"
# The factors of a layer's change, and what may stand between them in a convolution.
_FACTORS = (
    ("lora_B.weight", "lora_A.weight", ""),
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b", ""),
    ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
# The factors' sides that multiply to how much a layer takes in.
_TAKING = {"lora_A.weight", "hada_w1_b", "lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b"}
# Layers as wide as what a denoiser reads, or as a text tower.
_TELLING = {"denoiser": "attn2.to_k", "text": "self_attn.q_proj", "text_2": "self_attn.q_proj"}
_HUGE = 1e6  # no training leaves such an alpha


@dataclass(frozen=True)
class Held:
    """What a file holds: tensors by network and layer under peft's names, and words' tables."""

    layers: dict[tuple[str, str], Layer] = field(default_factory=dict[tuple[str, str], Layer])
    words: dict[str, Layer] = field(default_factory=dict[str, Layer])


class AdapterFile(Format):
    """A layout for changes to single layers and words beside them; subclasses say what is where.

    `kinds` are the kinds of change that others read in it.
    """

    holds = ("adapters",)
    kinds: ClassVar[frozenset[str]]

    @abstractmethod
    def unpack(self, found: Opened) -> Held:
        """What is in a file."""

    def read(self, found: Opened) -> Concept:
        """The words, and a part for each network and kind of change."""
        held = self.unpack(found)
        tables: dict[tuple[str, str], Layer] = {}
        for (target, layer), tensors in held.layers.items():
            kind, whole = _whole(tensors, f"{found.path}: the layer `{layer}` of `{target}`")
            named = {f"{layer}.{name}": tensor for name, tensor in whole.items()}
            tables.setdefault((target, kind), {}).update(named)
        for word, vectors in held.words.items():
            must_be_tables(found, Word(word, vectors, {}))
        carried = found.text(CARRIED)
        if carried:
            places = {f"{target}.{kind}": tables[target, kind] for target, kind in tables}
            places |= {f"word {word}": vectors for word, vectors in held.words.items()}
            concept = described(carried, places, found.path)
            # Others merge such files, and keep what one of them said.
            if len(places) == sum(bool(part.tensors) for part in concept.parts):
                return concept
        parts = [
            Part("new-word", {"word": word or found.path.stem, "stand_in": STAND_IN}, vectors)
            for word, vectors in held.words.items()
        ]
        token = parts[0].settings["word"] if parts else found.path.stem
        for (target, kind), tensors in tables.items():
            parts.append(Part(PART, {"target": target, "kind": kind}, tensors))
        news = found.metadata.keys() - {"format", SETTINGS, CARRIED}
        told = {name: found.metadata[name] for name in sorted(news)}
        return Concept(tuple(parts), Provenance.foreign(token, told))

    def changes(self, concept: Concept) -> Changes:
        """What a concept changes; ConceptError if this layout cannot hold it."""
        parts = [part for part in concept.parts if part.kind == PART]
        if concept.tuned or not parts:
            what = "a tuned base" if concept.tuned else "a word"
            raise ConceptError(
                f"{concept.token} is {what}, and files of this layout hold changes to layers",
                "write it with --format emb-params, diffusers or single-file",
            )
        strange = {part.settings["kind"] for part in parts} - self.kinds
        if strange:
            others = "kohya or pinxit" if strange <= {"loha", "lokr"} else "pinxit"
            raise ConceptError(
                f"{concept.token} has changes of the kind {min(strange)}, which nobody reads in "
                "files of this layout",
                f"write it with --format {others}",
            )
        found: Changes = {}
        for part in parts:
            layers = by_layer(part)
            whole = {n: _whole(layers[n], f"{concept.token}: the layer `{n}`")[1] for n in layers}
            found[part.settings["target"], part.settings["kind"]] = whole
        return found


def by_layer(part: Part) -> dict[str, Layer]:
    """A part's tensors by layer; ConceptError for names that no change has."""
    layers: dict[str, Layer] = {}
    for name, tensor in part.tensors.items():
        layer, leaf = split(name) or ("", "")
        if not layer:
            raise ConceptError(f"`{name}` is no tensor of a change to a layer", DAMAGED)
        layers.setdefault(layer, {})[leaf] = tensor
    return layers


def fits(parts: Sequence[Part]) -> Kind | None:
    """The kind of base that has layers of such widths; None if that is not told."""
    widths: dict[str, int] = {}
    for part in parts:
        target = part.settings.get("target", "")
        for layer, tensors in by_layer(part).items() if target in _TELLING else ():
            if layer.endswith(_TELLING[target]):
                sides = [t.shape[1:2].numel() for n, t in tensors.items() if n in _TAKING]
                widths[target] = math.prod(sides)
    if "denoiser" in widths:
        return modelspec.reading(widths["denoiser"])
    return modelspec.fitting([widths[target] for target in sorted(widths)])


def card(concept: Concept, out: Path) -> dict[str, str]:
    """modelspec's fields for a file, and what pinxit knows; other programs' words are kept."""
    texts = [part.settings["text"] for part in concept.parts if "text" in part.settings]
    trigger = ", ".join(texts or concept.words)
    fields = modelspec.card(fits(concept.parts), out.stem, trigger, "/lora")
    kept = {n: said for n, said in concept.provenance.told.items() if n.startswith("modelspec.")}
    return {"format": "pt", **fields, **kept, CARRIED: concept.about}


def rank_of(tensors: Layer) -> int:
    """How many directions a layer's change has; one without factors counts as if it had one."""
    return next((len(tensors[right]) for _, right, _ in _FACTORS if right in tensors), 1)


def _whole(tensors: Layer, where: str) -> tuple[str, Layer]:
    """The kind of a layer's change, and its tensors with the alpha that counts."""
    names = tensors.keys() - {ALPHA}
    kind = next((kind for kind, sets in WEIGHTS.items() if names in sets), "oft")
    if kind == "oft":
        raise ConceptError(f"{where} has {', '.join(sorted(names)) or 'no weights'}", DAMAGED)
    if not _match(tensors):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in sorted(tensors.items()))
        raise ConceptError(f"{where} has tensors that do not match: {shapes}", DAMAGED)
    alpha = float(tensors[ALPHA].real) if ALPHA in tensors else 0.0
    if not abs(alpha) <= _HUGE:
        raise ConceptError(f"{where} has an alpha of {alpha:g}", DAMAGED)
    # Without alpha, or with none, a change counts once.
    return kind, {**tensors, ALPHA: torch.tensor(alpha or float(rank_of(tensors)))}


def _match(tensors: Layer) -> bool:
    """Whether all are numbers, and the factors have one rank."""
    flat = (ALPHA, MAGNITUDE)
    for name, tensor in tensors.items():
        sides = tensor.ndim >= 2 or name in flat
        if not (sides and tensor.numel() and (tensor.is_floating_point() or name == ALPHA)):
            return False
    ranks: set[int] = set()
    for left, right, between in _FACTORS:
        if right in tensors:
            core = tensors.get(between)
            ranks |= {len(tensors[right]), tensors[left].shape[1 if core is None else 0]}
            ranks |= set(core.shape[:2]) if core is not None else set()
    sizes = {ALPHA: 1, MAGNITUDE: len(tensors.get("lora_B.weight", ()))}
    return len(ranks) <= 1 and all(tensors[n].numel() == sizes[n] for n in flat if n in tensors)
