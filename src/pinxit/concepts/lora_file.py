"""Files with LoRA, DoRA, LoHa and LoKr weights: check and complete their content."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.lora_part import (
    ALPHA,
    DAMAGED_HINT,
    LoraPart,
    LoraVariant,
    factor_rank,
    layer_rank,
    layer_variant,
    lora_family,
)
from pinxit.adapters.parts import AliasPart, EmbeddingPart, Part
from pinxit.concepts.adapter_reader import LayerChanges, LayerTensors, read_layers
from pinxit.concepts.concept import Concept, from_description
from pinxit.concepts.format import FILLER_TOKEN, Format, StoredEmbedding, check_tables, formats_hint
from pinxit.concepts.metadata import PROVENANCE_KEY, Provenance
from pinxit.concepts.peft_settings import PEFT_METADATA_KEY
from pinxit.errors import ConceptError
from pinxit.files.open_any import PEFT_CONFIG, OpenedFile
from pinxit.models import modelspec
from pinxit.models.family import FamilyFacts, family_of_denoiser

_MAX_ALPHA = 1e6  # larger than any useful alpha


class AdapterFormat(Format):
    """A format for LoRAs and embeddings; subclasses define the names of the tensors.

    `variants` are those that other programs read in this format.
    """

    contents = ("adapters",)
    variants: ClassVar[frozenset[LoraVariant]]

    def stores(self, concept: Concept) -> bool:
        """Whether it has LoRAs of supported variants, and no full weights."""
        variants = {part.variant for part in concept.parts_of(LoraPart)}
        return super().stores(concept) and variants <= self.variants

    def unpack(self, file: OpenedFile) -> LayerChanges:
        """The layer tensors and embeddings in a file."""
        return read_layers(file)

    def read(self, file: OpenedFile) -> Concept:
        """Read the embeddings, a part for each network and variant, and differences."""
        content = self.unpack(file)
        layers: dict[tuple[str, LoraVariant], dict[str, LayerTensors]] = {}
        for (network, layer), tensors in content.layers.items():
            where = f"{file.path}: the layer `{layer}` of `{network}`"
            variant, complete = _complete_layer(tensors, where)
            layers.setdefault((network, variant), {})[layer] = complete
        for token, tables in content.embeddings.items():
            check_tables(file, StoredEmbedding(token, tables, {}))
        parts: list[Part] = [
            EmbeddingPart(token or file.path.stem, FILLER_TOKEN, tables)
            for token, tables in content.embeddings.items()
        ]
        parts += [LoraPart(*key, layers[key]) for key in layers]
        parts += [DifferencePart(*item) for item in content.differences.items()]
        if not parts:
            raise ConceptError(f"{file.path} changes no layer: it has only scales", DAMAGED_HINT)
        description = file.text(PROVENANCE_KEY)
        if description:
            tensors_by_key = {part.key: part.tensors for part in parts}
            concept = from_description(description, tensors_by_key, file.path)
            # Other programs merge files and keep the description of one of them.
            if len(parts) == sum(bool(part.tensors) for part in concept.parts):
                return concept
        token = next((token for part in parts for token in part.tokens), file.path.stem)
        names = file.metadata.keys() - {"format", PEFT_METADATA_KEY, PROVENANCE_KEY}
        names = {name for name in names if not name.endswith(PEFT_CONFIG)}
        metadata = {name: file.metadata[name] for name in sorted(names)}
        return Concept(tuple(parts), Provenance.from_metadata(token, metadata))

    def lora_parts(self, concept: Concept) -> list[LoraPart]:
        """The LoRAs of a concept, with an alpha in each layer.

        Raises ConceptError if this format cannot store the concept.
        """
        parts = concept.parts_of(LoraPart)
        if concept.has_full_weights or not concept.has_strength:
            kind = "has full weights" if concept.has_full_weights else "is an embedding"
            raise ConceptError(
                f"{concept.token} {kind}, but this format stores LoRAs", formats_hint(concept)
            )
        unsupported = {part.variant for part in parts} - self.variants
        if unsupported:
            raise ConceptError(
                f"{concept.token} has an adapter of kind {min(unsupported)}, which no program "
                "reads in files of this format",
                formats_hint(concept),
            )
        return [_complete(part, concept.token) for part in parts]


def modelspec_metadata(concept: Concept, out: Path) -> dict[str, str]:
    """modelspec fields and pinxit's description for a file; fields of the origin have priority."""
    trigger = ", ".join(alias_texts(concept) or concept.tokens)
    fields = modelspec.modelspec_metadata(adapter_family(concept.parts), out.stem, trigger, "/lora")
    original_fields = {
        name: value
        for name, value in concept.provenance.metadata.items()
        if name.startswith("modelspec.")
    }
    return {"format": "pt", **fields, **original_fields, PROVENANCE_KEY: concept.shared_description}


def adapter_family(parts: Sequence[Part]) -> FamilyFacts | None:
    """The model family whose layers have the widths of adapters; None if unknown."""
    differences = (part.weights for part in parts if isinstance(part, DifferencePart))
    families = (family_of_denoiser(weights) for weights in differences)
    return lora_family(parts) or next(filter(None, families), None)


def alias_texts(concept: Concept) -> list[str]:
    """The texts that stand for the concept's tokens in prompts."""
    return [part.text for part in concept.parts_of(AliasPart)]


def _complete(part: LoraPart, token: str) -> LoraPart:
    """A LoRA with an alpha in each layer."""
    layers = {
        name: _complete_layer(tensors, f"{token}: the layer `{name}`")[1]
        for name, tensors in part.layers.items()
    }
    return LoraPart(part.network, part.variant, layers)


def _complete_layer(tensors: Mapping[str, Tensor], where: str) -> tuple[LoraVariant, LayerTensors]:
    """The variant of a layer's tensors, and the tensors with alpha as an fp32 scalar."""
    variant = layer_variant(tensors, where)
    if variant == "oft":
        raise ConceptError(f"{where} has weights of the kind oft", DAMAGED_HINT)
    has_alpha = ALPHA in tensors and factor_rank(tensors)
    alpha = float(tensors[ALPHA].real) if has_alpha else 0.0
    if not abs(alpha) <= _MAX_ALPHA:
        raise ConceptError(f"{where} has an alpha of {alpha:g}", DAMAGED_HINT)
    # Without alpha, with alpha 0, or without factors, the scale is 1.
    return variant, {**tensors, ALPHA: torch.tensor(alpha or float(layer_rank(tensors)))}
