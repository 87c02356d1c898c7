"""LoRAs under the names of the authors' code of a transformer, in which layers are joined."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pinxit.adapters.lora_part import ALPHA, MAGNITUDE, LoraPart, layer_rank
from pinxit.adapters.parts import Part
from pinxit.concepts.concept import Concept
from pinxit.concepts.lora_file import adapter_family
from pinxit.errors import ConceptError
from pinxit.models.family import FamilyFacts, all_facts
from pinxit.models.joined_layers import LayerTable, modulation_swapped

LayerTensors = dict[str, Tensor]

_A, _B = "lora_A.weight", "lora_B.weight"
_HINT = "write it with --format diffusers-lora, which has a name for each layer"


def only_denoiser_lora(concept: Concept, loras: Sequence[LoraPart]) -> LoraPart | None:
    """The denoiser's LoRA; None if a concept has anything else."""
    stored = [part for part in concept.parts if part.tensors]
    return loras[0] if loras and len(stored) == 1 and loras[0].network == "denoiser" else None


def original_table(parts: Sequence[Part]) -> LayerTable | None:
    """The names of the authors' code for the layers of adapters; None if they have no such names.

    The family follows from widths, or else from layers that only one family has.
    """
    family = adapter_family(parts) or _family_of_names(parts)
    return LayerTable(family.original_layers) if family and family.original_layers else None


def original_layers(part: LoraPart, table: LayerTable) -> dict[str, LayerTensors]:
    """The tensors of a denoiser's LoRA or DoRA by original layer, with peft's names and alphas.

    Layers that the authors' code joins are one LoRA with the ranks of all, whose up factor is
    block-diagonal: the same change, and reading separates them again. If they have one down factor,
    as in files of other programs, it stays one. Raises ConceptError if layers to join have
    different ranks or alphas, or if the table lacks a layer.
    """
    layers: dict[str, LayerTensors] = {}
    for layer in part.layers:
        original = table.original(layer)
        if original is None:
            raise ConceptError(f"this format has no name for the layer `{layer}`", _HINT)
        if original not in layers:
            layers[original] = _joined(part.layers, table.parts(original), original)
    return layers


def _joined(
    layers: Mapping[str, Mapping[str, Tensor]], parts: Sequence[tuple[str, int]], original: str
) -> LayerTensors:
    """The tensors of one original layer; those of a layer that was not trained are 0."""
    members = [layers.get(name) for name, _ in parts]
    trained = [member for member in members if member is not None]
    if len(parts) == 1:
        return modulation_swapped(parts[0][0], trained[0])
    if len({(layer_rank(tensors), float(tensors[ALPHA])) for tensors in trained}) > 1:
        raise ConceptError(
            f"the layers joined in `{original}` have different ranks or alphas", _HINT
        )
    has_magnitudes = MAGNITUDE in trained[0]
    if has_magnitudes and len(trained) < len(members):
        raise ConceptError(f"a DoRA of a part of the layer `{original}` cannot be joined", _HINT)
    downs = [tensors[_A] for tensors in trained]
    if len(trained) == len(members) and all(torch.equal(down, downs[0]) for down in downs):
        ups = torch.cat([tensors[_B] for tensors in trained])
        joined = {_A: downs[0], _B: ups, ALPHA: trained[0][ALPHA]}
    else:
        ups = _block_diagonal(layers, parts, trained)
        joined = {_A: torch.cat(downs), _B: ups, ALPHA: trained[0][ALPHA] * len(trained)}
    if has_magnitudes:
        joined[MAGNITUDE] = torch.cat([tensors[MAGNITUDE] for tensors in trained])
    return joined


def _block_diagonal(
    layers: Mapping[str, Mapping[str, Tensor]],
    parts: Sequence[tuple[str, int]],
    trained: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    """The up factors of all layers, each with columns of its own."""
    width, rank = trained[0][_A].shape[1], layer_rank(trained[0])
    blocks: list[Tensor] = []
    start = 0
    for name, factor in parts:
        up = layers[name][_B] if name in layers else None
        rows = width * factor if up is None else len(up)
        block = trained[0][_B].new_zeros(rows, rank * len(trained))
        if up is not None:
            block[:, start : start + rank] = up
            start += rank
        blocks.append(block)
    return torch.cat(blocks)


def _family_of_names(parts: Sequence[Part]) -> FamilyFacts | None:
    """The family of adapters with a layer that only this family has; None if there is none."""
    loras = [part for part in parts if isinstance(part, LoraPart) and part.network == "denoiser"]
    layers = [layer for part in loras for layer in part.layers]
    families = (
        facts
        for facts in all_facts()
        if any(re.fullmatch(facts.denoiser_layers, layer) for layer in layers)
    )
    return next(families, None)
