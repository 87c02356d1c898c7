"""Files with LoRA, DoRA, LoHa and LoKr weights: check and complete their content."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pinxit.adapters.adapter import Part
from pinxit.adapters.lora import LORA_PART
from pinxit.adapters.peft_layers import WEIGHT_NAMES, split_name
from pinxit.concepts.concept import Concept, from_description
from pinxit.concepts.format import FILLER_TOKEN, Format, StoredEmbedding, check_tables
from pinxit.concepts.metadata import PROVENANCE_KEY, Provenance
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile
from pinxit.models import modelspec
from pinxit.models.family import FamilyFacts, all_facts

LayerTensors = dict[str, Tensor]
# By network and adapter kind, then by layer.
NetworkChanges = dict[tuple[str, str], dict[str, LayerTensors]]

ALPHA, MAGNITUDE = "alpha", "lora_magnitude_vector"
# The metadata key for ranks and alphas in files of diffusers.
PEFT_METADATA_KEY = "lora_adapter_metadata"
DAMAGED_HINT = "the file is damaged, or of an unknown kind; pinxit reads LoRA, DoRA, LoHa and LoKr"
# The two factors of a layer's change, and the core between them (Tucker, convolutions only).
_FACTORS = (
    ("lora_B.weight", "lora_A.weight", ""),
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b", ""),
    ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
# The product of the second dimensions of these is the number of inputs of a layer.
_INPUT_FACTORS = {"lora_A.weight", "hada_w1_b", "lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b"}
_MAX_ALPHA = 1e6  # larger than any useful alpha


@dataclass(frozen=True)
class LayerChanges:
    """The content of a file: tensors by network and layer with peft's names, and embeddings."""

    layers: dict[tuple[str, str], LayerTensors] = field(
        default_factory=dict[tuple[str, str], LayerTensors]
    )
    embeddings: dict[str, LayerTensors] = field(default_factory=dict[str, LayerTensors])


class AdapterFormat(Format):
    """A format for LoRAs and embeddings; subclasses define the names of the tensors.

    `kinds` are the adapter kinds that other programs read in this format.
    """

    contents = ("adapters",)
    kinds: ClassVar[frozenset[str]]

    @abstractmethod
    def unpack(self, file: OpenedFile) -> LayerChanges:
        """The layer tensors and embeddings in a file."""

    def read(self, file: OpenedFile) -> Concept:
        """Read the embeddings, and a part for each network and adapter kind."""
        content = self.unpack(file)
        changes: dict[tuple[str, str], LayerTensors] = {}
        for (network, layer), tensors in content.layers.items():
            where = f"{file.path}: the layer `{layer}` of `{network}`"
            kind, complete = _complete_layer(tensors, where)
            named = {f"{layer}.{name}": tensor for name, tensor in complete.items()}
            changes.setdefault((network, kind), {}).update(named)
        for token, tables in content.embeddings.items():
            check_tables(file, StoredEmbedding(token, tables, {}))
        description = file.text(PROVENANCE_KEY)
        if description:
            keyed = {f"{network}.{kind}": changes[network, kind] for network, kind in changes}
            keyed |= {f"word {token}": tables for token, tables in content.embeddings.items()}
            concept = from_description(description, keyed, file.path)
            # Other programs merge files and keep the description of one of them.
            if len(keyed) == sum(bool(part.tensors) for part in concept.parts):
                return concept
        return self._undescribed(file, content, changes)

    def _undescribed(
        self, file: OpenedFile, content: LayerChanges, changes: dict[tuple[str, str], LayerTensors]
    ) -> Concept:
        """The concept in a file that has no description by pinxit."""
        parts = [
            Part("new-word", {"word": token or file.path.stem, "stand_in": FILLER_TOKEN}, tables)
            for token, tables in content.embeddings.items()
        ]
        token = parts[0].settings["word"] if parts else file.path.stem
        for (network, kind), tensors in changes.items():
            parts.append(Part(LORA_PART, {"target": network, "kind": kind}, tensors))
        names = file.metadata.keys() - {"format", PEFT_METADATA_KEY, PROVENANCE_KEY}
        metadata = {name: file.metadata[name] for name in sorted(names)}
        return Concept(tuple(parts), Provenance.from_metadata(token, metadata))

    def changes(self, concept: Concept) -> NetworkChanges:
        """The layer changes of a concept; ConceptError if this format cannot store it."""
        parts = [part for part in concept.parts if part.kind == LORA_PART]
        if concept.has_full_weights or not parts:
            kind = "has full weights" if concept.has_full_weights else "is an embedding"
            raise ConceptError(
                f"{concept.token} {kind}, but this format stores LoRAs",
                "write it with --format emb-params, diffusers or single-file",
            )
        unsupported = {part.settings["kind"] for part in parts} - self.kinds
        if unsupported:
            others = "kohya or pinxit" if unsupported <= {"loha", "lokr"} else "pinxit"
            raise ConceptError(
                f"{concept.token} has an adapter of kind {min(unsupported)}, which no program "
                "reads in files of this format",
                f"write it with --format {others}",
            )
        changes: NetworkChanges = {}
        for part in parts:
            layers = tensors_by_layer(part)
            changes[part.settings["target"], part.settings["kind"]] = {
                name: _complete_layer(layers[name], f"{concept.token}: the layer `{name}`")[1]
                for name in layers
            }
        return changes


def tensors_by_layer(part: Part) -> dict[str, LayerTensors]:
    """A part's tensors by layer; ConceptError for unknown tensor names."""
    layers: dict[str, LayerTensors] = {}
    for name, tensor in part.tensors.items():
        layer, leaf = split_name(name) or ("", "")
        if not layer:
            raise ConceptError(f"the tensor `{name}` belongs to no kind of adapter", DAMAGED_HINT)
        layers.setdefault(layer, {})[leaf] = tensor
    return layers


def matching_base(parts: Sequence[Part]) -> FamilyFacts | None:
    """The model family whose layers have the widths of these parts; None if unknown."""
    return next((facts for facts in all_facts() if _widths_match(parts, facts)), None)


def _widths_match(parts: Sequence[Part], facts: FamilyFacts) -> bool:
    """Whether the layers that show the family have its context width, or its text widths."""
    widths: dict[str, int] = {}
    for part in parts:
        network = part.settings.get("target", "")
        suffix = facts.context_layer if network == "denoiser" else facts.text_layer
        for layer, tensors in tensors_by_layer(part).items() if network else ():
            if layer.endswith(suffix):
                inputs = [t.shape[1:2].numel() for n, t in tensors.items() if n in _INPUT_FACTORS]
                widths[network] = math.prod(inputs)
    if "denoiser" in widths:
        return widths["denoiser"] == facts.context_width
    return tuple(widths[network] for network in sorted(widths)) == facts.text_widths


def modelspec_metadata(concept: Concept, out: Path) -> dict[str, str]:
    """modelspec fields and pinxit's description for a file; fields of the origin have priority."""
    texts = [part.settings["text"] for part in concept.parts if "text" in part.settings]
    trigger = ", ".join(texts or concept.tokens)
    fields = modelspec.modelspec_metadata(matching_base(concept.parts), out.stem, trigger, "/lora")
    original_fields = {
        name: value
        for name, value in concept.provenance.metadata.items()
        if name.startswith("modelspec.")
    }
    return {"format": "pt", **fields, **original_fields, PROVENANCE_KEY: concept.description}


def layer_rank(tensors: LayerTensors) -> int:
    """The rank of a layer's change; 1 if it is stored without factors."""
    return next((len(tensors[right]) for _, right, _ in _FACTORS if right in tensors), 1)


def _complete_layer(tensors: LayerTensors, where: str) -> tuple[str, LayerTensors]:
    """The adapter kind of a layer's tensors, and the tensors with alpha as an fp32 scalar."""
    names = tensors.keys() - {ALPHA}
    kind = next((kind for kind, sets in WEIGHT_NAMES.items() if names in sets), "oft")
    if kind == "oft":
        raise ConceptError(
            f"{where} has no complete set of weights: {', '.join(sorted(names)) or 'none'}",
            DAMAGED_HINT,
        )
    if not _shapes_match(tensors):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in sorted(tensors.items()))
        raise ConceptError(f"{where} has tensors that do not match: {shapes}", DAMAGED_HINT)
    alpha = float(tensors[ALPHA].real) if ALPHA in tensors else 0.0
    if not abs(alpha) <= _MAX_ALPHA:
        raise ConceptError(f"{where} has an alpha of {alpha:g}", DAMAGED_HINT)
    # Without alpha, or with alpha 0, the scale is 1.
    return kind, {**tensors, ALPHA: torch.tensor(alpha or float(layer_rank(tensors)))}


def _shapes_match(tensors: LayerTensors) -> bool:
    """Whether all tensors are floating point and not empty, and all factors have the same rank."""
    vectors = (ALPHA, MAGNITUDE)
    for name, tensor in tensors.items():
        has_dimensions = tensor.ndim >= 2 or name in vectors
        has_type = tensor.is_floating_point() or name == ALPHA
        if not (has_dimensions and has_type and tensor.numel()):
            return False
    ranks: set[int] = set()
    for left, right, between in _FACTORS:
        if right in tensors:
            core = tensors.get(between)
            ranks |= {len(tensors[right]), tensors[left].shape[1 if core is None else 0]}
            ranks |= set(core.shape[:2]) if core is not None else set()
    sizes = {ALPHA: 1, MAGNITUDE: len(tensors.get("lora_B.weight", ()))}
    return len(ranks) <= 1 and all(tensors[n].numel() == sizes[n] for n in vectors if n in tensors)
