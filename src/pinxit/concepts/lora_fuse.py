"""Merge LoRAs into the weights of a base model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.lora_part import LoraPart
from pinxit.adapters.parts import FullWeightsPart, Part
from pinxit.concepts.base_weights import BaseWeights
from pinxit.concepts.concept import Concept
from pinxit.concepts.conversion import check_base, write_in_format
from pinxit.concepts.format import Format, Precision, Target
from pinxit.concepts.full_model_file import DTYPES, in_dtype
from pinxit.concepts.kohya_file import embedding_parts, write_embedding_files
from pinxit.concepts.lora_tools import one_strength, token_parts
from pinxit.concepts.read import ConceptReference
from pinxit.errors import ConceptError
from pinxit.progress import Progress, ProgressCallback


def fuse_loras(
    references: Sequence[ConceptReference],
    out: Path,
    base: str | None = None,
    format_name: str | None = None,
    precision: Precision | None = None,
    progress: ProgressCallback = lambda _: None,
) -> tuple[Concept, Format]:
    """Merge LoRAs into the weights of a base model, and write it as a file or a folder.

    Embeddings are written to files of their own beside it. Raises ConceptError if a LoRA does not
    fit the base model, if the format cannot store such a model, or if `out` exists.
    """
    concepts = [reference.open_finite() for reference in references]
    embedding_parts(token_parts(concepts), out)
    weights = BaseWeights(base, concepts[0])
    check_base(weights.source, out, format_name)
    dtype = DTYPES[precision] if precision else None
    concept = _merged_weights(concepts, weights, out.parent, dtype, progress)
    target = Target(out, weights.name, precision)
    model = write_embedding_files(concept, target)
    return concept, write_in_format(model, target, format_name)


def _merged_weights(
    concepts: Sequence[Concept],
    base: BaseWeights,
    scratch_folder: Path,
    dtype: torch.dtype | None,
    progress: ProgressCallback,
) -> Concept:
    """The base model's networks with the changes of LoRAs merged into the weights, in order.

    The new weights lie in a temporary file in the scratch folder; with a `dtype`, all weights do.
    Raises ConceptError if a LoRA does not fit the base model.
    """
    parts = [
        (part, one_strength(concept))
        for concept in concepts
        for part in concept.parts
        if part.tensors
    ]
    changed = {(network, name) for part, _ in parts for network, name in _changed_names(part)}
    for network, name in changed:
        base.check_has(network, name)
    networks = sorted({network for network, _ in changed})
    rewritten = [
        (network, name)
        for network in networks
        for name, weight in base.networks[network].items()
        if (network, name) in changed or (dtype and weight.is_floating_point())
    ]
    scratch = base.scratch(scratch_folder, rewritten, dtype)
    results = {network: dict(base.networks[network]) for network in networks}
    for done, (network, name) in enumerate(rewritten, 1):
        weight = base.networks[network][name]
        for part, strength in parts if (network, name) in changed else ():
            weight = base.changed(weight, part, name, strength)
        own = dtype or base.networks[network][name].dtype
        results[network][name] = scratch.store(in_dtype(weight, own, name), own)
        progress(Progress("weights", done, len(rewritten)))
    full = [FullWeightsPart(network, weights) for network, weights in results.items()]
    if not full:
        raise ConceptError(f"{concepts[0].token} has no LoRA", "give LoRA files or runs")
    provenance = replace(concepts[0].provenance, base=base.name)
    return Concept((*token_parts(concepts), *full), provenance)


def _changed_names(part: Part) -> Iterator[tuple[str, str]]:
    if isinstance(part, LoraPart):
        yield from ((part.network, f"{layer}.weight") for layer in part.layers)
    if isinstance(part, DifferencePart):
        yield from ((part.network, name) for name in part.weights)
