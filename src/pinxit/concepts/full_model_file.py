"""Full weights in other programs' files: complete models that contain the trained networks."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pinxit.adapters.parts import AliasPart, FullWeightsPart
from pinxit.concepts.concept import Concept, from_description
from pinxit.concepts.format import Precision, Target, formats_hint
from pinxit.concepts.metadata import PROVENANCE_KEY, Provenance
from pinxit.errors import ConceptError
from pinxit.files.open_any import OpenedFile
from pinxit.models.family import family_of_denoiser, network_folders, trainable_networks
from pinxit.models.hub import check_consent
from pinxit.models.modelspec import modelspec_metadata
from pinxit.models.open_base import find_base
from pinxit.models.original_names import without_prefix
from pinxit.models.source import Source

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BASE_HINT = "give the base model that it was trained on with --base"


def base_source(concept: Concept, target: Target) -> Source:
    """The base model for a concept with full weights; ConceptError for other concepts."""
    if not concept.has_full_weights:
        kind = "a LoRA" if concept.has_strength else "an embedding"
        raise ConceptError(
            f"{concept.token} is {kind}, but {target.out} would be a complete model",
            formats_hint(concept),
        )
    return find_base(base_path(concept, target))


def base_path(concept: Concept, target: Target) -> str:
    """The base model for a file that needs one; ConceptError if none is known or allowed."""
    base = target.base or concept.provenance.base
    if not base:
        raise ConceptError(
            f"{concept.token} does not state the base model that it was trained on", BASE_HINT
        )
    if not target.base:
        check_consent([base], concept.token, "to download it, add --base {name}")
    return base


def read_full_model(file: OpenedFile, description: str | None) -> Concept:
    """Read a complete model as a concept.

    With pinxit's `description`, the concept has the networks that were trained, otherwise all
    networks that could be.
    """
    networks = trainable_weights(find_base(str(file.path)))
    if description:
        return from_description(description, networks, file.path)
    parts = [FullWeightsPart(name, weights) for name, weights in networks.items()]
    base = str(file.path.resolve())
    return Concept(tuple(parts), Provenance.from_metadata(file.path.stem, {}, base))


def trainable_weights(source: Source) -> dict[str, dict[str, Tensor]]:
    """The weights that can be trained, by network and name without prefix."""
    return {
        network: {
            without_prefix(name): tensor
            for name, tensor in source.weights(folder).items()
            if _is_weight(name)
        }
        for folder, network in trainable_networks().items()
        if source.has(folder)
    }


def completed_networks(
    concept: Concept, source: Source, precision: Precision | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each network of the base model by folder, with the concept's weights where it has some."""
    parts = {part.replaces: part for part in concept.parts if part.replaces}
    for folder in filter(source.has, network_folders()):
        weights = source.weights(folder)
        part = parts.pop(trainable_networks().get(folder, ""), None)
        if part is not None:
            weights = _with_new_weights(weights, part.tensors, f"`{folder}` of {source.name}")
        dtype = DTYPES[precision] if precision else None
        yield folder, {name: in_dtype(weight, dtype, name) for name, weight in weights.items()}
    if parts:
        raise ConceptError(
            f"{source.name} has no `{min(parts)}`, which the concept replaces", BASE_HINT
        )


def full_model_metadata(
    concept: Concept, source: Source, weights: Mapping[str, Tensor], title: str
) -> dict[str, str]:
    """The metadata of a complete model; `weights` must include those of the denoiser."""
    texts = [part.text for part in concept.parts_of(AliasPart)]
    velocity = source.config("scheduler").get("prediction_type") == "v_prediction"
    family = family_of_denoiser(weights)
    fields = modelspec_metadata(family, title, ", ".join(texts), velocity=velocity)
    return {"format": "pt", **fields, PROVENANCE_KEY: concept.shared_description}


def _with_new_weights(
    weights: Mapping[str, Tensor], new_weights: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The new weights under the network's names; ConceptError if names or shapes differ."""
    names = {without_prefix(name): name for name in weights if _is_weight(name)}
    tensors = {without_prefix(name): tensor for name, tensor in new_weights.items()}
    shapes = {name: weights[own_name].shape for name, own_name in names.items()}
    different = shapes.items() ^ {name: tensor.shape for name, tensor in tensors.items()}.items()
    if different:
        name, _ = min(different)
        raise ConceptError(
            f"{where} is not the network that was trained: `{name}` differs", BASE_HINT
        )
    return {names[name]: tensor for name, tensor in tensors.items()}


def in_dtype(weight: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """A weight in a number format, if one is given; ConceptError if it cannot store the values."""
    if dtype is None or not weight.is_floating_point():
        return weight
    converted = weight.to(dtype)
    if weight.dtype != dtype and (converted.isinf() & ~weight.isinf()).any():
        raise ConceptError(
            f"`{name}` has the value {float(weight.abs().max()):.3g}, which is too large for "
            f"{str(dtype).removeprefix('torch.')}",
            "choose bf16 or fp32 with --precision",
        )
    return converted


def _is_weight(name: str) -> bool:
    """False for the position indices that old text encoders store among their weights."""
    return not name.endswith("position_ids")
