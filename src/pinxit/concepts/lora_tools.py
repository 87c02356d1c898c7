"""Merge LoRAs, reduce their ranks, and extract them from fine-tuned models."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pinxit.adapters.difference_part import DifferencePart
from pinxit.adapters.lora_part import ALPHA, LayerTensors, LoraPart, layer_rank
from pinxit.adapters.parts import FullWeightsPart, Part
from pinxit.concepts.base_weights import BaseWeights
from pinxit.concepts.concept import Concept
from pinxit.concepts.conversion import write_in_format
from pinxit.concepts.format import Format, Precision, Target
from pinxit.concepts.full_model_file import DTYPES, in_dtype
from pinxit.concepts.layer_errors import LayerError
from pinxit.concepts.low_rank import (
    LowRank,
    RankLimit,
    product_energy,
    reduced_matrix,
    reduced_product,
)
from pinxit.concepts.metadata import Provenance
from pinxit.concepts.read import ConceptReference
from pinxit.errors import ConceptError
from pinxit.files.mapped import forget_pages
from pinxit.files.portable import last_name
from pinxit.progress import Progress, ProgressCallback

_NO_LIMIT = RankLimit()
# Weights with two dimensions that are tables, not layers.
_TABLE = re.compile(r"(token_embedding|position_embedding|relative_attention_bias|shared)\.weight$")


@dataclass(frozen=True)
class _Change:
    """A plain LoRA of a layer with a factor for its whole change."""

    tensors: LayerTensors
    strength: float

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """The factors (outputs, rank) and (rank, inputs) in fp32; the first has the scale."""
        up, down = self.tensors["lora_B.weight"], self.tensors["lora_A.weight"]
        alpha = float(self.tensors.get(ALPHA, torch.tensor(float(len(down)))))
        return up.float().flatten(1) * (self.strength * alpha / len(down)), down.float().flatten(1)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sides of a convolution's kernel; () for a matrix."""
        return tuple(self.tensors["lora_A.weight"].shape[2:])


def merge_loras(
    references: Sequence[ConceptReference],
    limit: RankLimit = _NO_LIMIT,
    base: str | None = None,
    progress: ProgressCallback = lambda _: None,
) -> tuple[Concept, list[LayerError]]:
    """One LoRA with the sum of the changes of several, each scaled by its strength.

    Without a limit the ranks add up and the result is exact. One LoRA with a limit is reduced.
    DoRA, LoHa, LoKr and OFT become plain LoRAs of the rank that they have on the base model.
    Raises ConceptError if the files are no LoRAs, or are for different base models.
    """
    concepts = [reference.open_finite() for reference in references]
    tokens = token_parts(concepts)
    changes = _all_changes(concepts, base)
    layers: dict[str, dict[str, LayerTensors]] = {}
    errors: list[LayerError] = []
    for done, ((network, layer), of_layer) in enumerate(changes.items(), 1):
        tensors, total, lost = _sum(of_layer, limit, f"{network}.{layer}")
        layers.setdefault(network, {})[layer] = tensors
        errors.append(LayerError(network, layer, layer_rank(tensors), total, lost))
        progress(Progress("layers", done, len(changes)))
    loras = [LoraPart(network, "lora", layers[network]) for network in sorted(layers)]
    parts = (*tokens, *loras, *_differences(concepts))
    if not any(part.has_strength for part in parts):
        raise ConceptError(f"{references[0]} has no LoRA", "give LoRA files or runs")
    return Concept(parts, _provenance(references, concepts)), errors


def write_lora(
    concept: Concept,
    out: Path,
    format_name: str | None = None,
    precision: Precision | None = None,
    *,
    separate_embeddings: bool = False,
) -> Format:
    """Write a LoRA to a new file, with its weights in a number format; returns the file format."""
    dtype = DTYPES.get(precision or "")
    parts = [part if dtype is None else _converted(part, dtype) for part in concept.parts]
    target = Target(out, separate_embeddings=separate_embeddings)
    return write_in_format(replace(concept, parts=tuple(parts)), target, format_name)


def _converted(part: Part, dtype: torch.dtype) -> Part:
    """A LoRA or differences in another number format; alphas and other parts stay."""
    if not part.has_strength:
        return part
    alpha = f".{ALPHA}"
    tensors = {
        name: tensor if name.endswith(alpha) else in_dtype(tensor, dtype, name)
        for name, tensor in part.tensors.items()
    }
    return part.from_stored(part.settings, tensors)


def extract_lora(
    tuned: Path | str,
    limit: RankLimit = _NO_LIMIT,
    base: str | None = None,
    progress: ProgressCallback = lambda _: None,
    *,
    all_weights: bool = False,
) -> tuple[Concept, list[LayerError], list[LayerError]]:
    """A LoRA with the difference between a fine-tuned model and its base model.

    The last list is of weights that no LoRA can change, such as biases; with `all_weights` they
    are stored as differences. Raises ConceptError if the models do not match or are the same.
    """
    concept = ConceptReference(Path(tuned)).open_finite()
    if not concept.has_full_weights:
        raise ConceptError(f"{tuned} is no fine-tuned model", "give a checkpoint or a run")
    own_base = concept.provenance.base if concept.provenance.method else ""
    original = BaseWeights(base or own_base, concept)
    layers: dict[str, dict[str, LayerTensors]] = {}
    differences: dict[str, dict[str, Tensor]] = {}
    errors: list[LayerError] = []
    others: list[LayerError] = []
    for network, name, change in _weight_changes(concept, original, progress):
        layer, _, leaf = name.rpartition(".")
        if change.ndim not in (2, 4) or _TABLE.search(name) or leaf != "weight":
            energy, is_stored = float(change.double().square().sum()), leaf in ("weight", "bias")
            lost = 0.0 if all_weights and is_stored else energy
            others.append(LayerError(network, name, 0, energy, lost))
            if is_stored:
                differences.setdefault(network, {})[name] = change
            continue
        low = reduced_matrix(change.flatten(1), limit)
        layers.setdefault(network, {})[layer] = _tensors(low, tuple(change.shape[2:]))
        errors.append(LayerError(network, layer, len(low.down), low.total, low.lost))
    if not layers:
        raise ConceptError(
            f"no layer of {tuned} differs from {original.name}",
            "give the model that it was fine-tuned from with --base",
        )
    loras = [LoraPart(network, "lora", layers[network]) for network in layers]
    rest = [DifferencePart(*item) for item in differences.items() if all_weights]
    provenance = replace(concept.provenance, base=original.name)
    return Concept((*token_parts([concept]), *loras, *rest), provenance), errors, others


def _all_changes(
    concepts: Sequence[Concept], base: str | None
) -> dict[tuple[str, str], list[_Change]]:
    """The plain LoRAs of each layer; adapters of other kinds are computed on the base model."""
    weights: BaseWeights | None = None
    changes: dict[tuple[str, str], list[_Change]] = {}
    strengths = [one_strength(concept) for concept in concepts]
    full = next((concept for concept in concepts if concept.has_full_weights), None)
    if full:
        raise ConceptError(
            f"{full.token} has full weights and is no LoRA",
            "extract a LoRA from it first: pinxit lora extract",
        )
    for concept, strength in zip(concepts, strengths, strict=True):
        for part in concept.parts_of(LoraPart):
            if part.variant != "lora":
                weights = weights or BaseWeights(base or concept.provenance.base, concept)
            for layer in part.layers:
                tensors = _plain(part, layer, weights)
                changes.setdefault((part.network, layer), []).append(_Change(tensors, strength))
    return changes


def _plain(part: LoraPart, layer: str, weights: BaseWeights | None) -> LayerTensors:
    """A layer's tensors as those of a plain LoRA with the same change."""
    if part.variant == "lora" or weights is None:
        return part.layers[layer]
    change = weights.difference(part, layer)
    return _tensors(reduced_matrix(change.flatten(1), _NO_LIMIT), tuple(change.shape[2:]))


def _sum(
    changes: Sequence[_Change], limit: RankLimit, where: str
) -> tuple[LayerTensors, float, float]:
    """The tensors of the sum of a layer's changes, its squared norm, and that of what was lost."""
    rank = sum(layer_rank(change.tensors) for change in changes)
    # An alpha of 0 would be read as none.
    if len(changes) == 1 and limit.keeps(rank) and changes[0].strength:
        tensors, strength = changes[0].tensors, changes[0].strength
        alpha = torch.tensor(float(tensors.get(ALPHA, float(rank))) * strength)
        return {**tensors, ALPHA: alpha}, product_energy(*changes[0].matrices), 0.0
    ups, downs = zip(*(change.matrices for change in changes), strict=True)
    sizes = {(len(up), down.shape[1]) for up, down in zip(ups, downs, strict=True)}
    if len(sizes) > 1:
        raise ConceptError(
            f"the layer `{where}` has different sizes in these LoRAs: "
            f"{', '.join(f'{a} x {b}' for a, b in sorted(sizes))}",
            "merge LoRAs of the same kind of base model",
        )
    up, down = torch.cat(ups, dim=1), torch.cat(downs)
    low = LowRank(up, down, product_energy(up, down))
    if not limit.keeps(rank):
        low = reduced_product(up, down, limit)
    kernel = max((change.kernel for change in changes), key=len)
    return _tensors(low, kernel), low.total, low.lost


def _tensors(low: LowRank, kernel: tuple[int, ...]) -> LayerTensors:
    """The tensors of a plain LoRA with scale 1, for a layer with this kernel."""
    down = low.down.reshape(len(low.down), -1, *kernel)
    up = low.up.reshape(*low.up.shape, *(1 for _ in kernel))
    return {"lora_A.weight": down, "lora_B.weight": up, ALPHA: torch.tensor(float(len(down)))}


def _weight_changes(
    concept: Concept, base: BaseWeights, progress: ProgressCallback
) -> Iterator[tuple[str, str, Tensor]]:
    """The difference in fp32 of each weight that differs from the base model's."""
    parts = concept.parts_of(FullWeightsPart)
    total, done = sum(len(part.weights) for part in parts), 0
    for part in parts:
        for name, tensor in part.weights.items():
            base.check_has(part.network, name)
            original = base.networks[part.network][name]
            base.check_shape(part.network, name, tensor)
            # Compared in the dtype of the file: a difference by rounding alone is not a change.
            change = tensor.float() - original.to(tensor.dtype).float()
            forget_pages(tensor.nbytes + original.nbytes)
            done += 1
            progress(Progress("weights", done, total))
            if change.any():
                yield part.network, name, change


def _differences(concepts: Sequence[Concept]) -> Iterator[DifferencePart]:
    """The sums of the concepts' differences of weights, each scaled by the strength."""
    sums: dict[str, dict[str, Tensor]] = {}
    for concept in concepts:
        for part in concept.parts_of(DifferencePart):
            weights = sums.setdefault(part.network, {})
            for name, tensor in part.weights.items():
                scaled = one_strength(concept) * tensor.float()
                weights[name] = weights[name] + scaled if name in weights else scaled
    yield from (DifferencePart(network, weights) for network, weights in sums.items())


def token_parts(concepts: Sequence[Concept]) -> list[Part]:
    """The parts with placeholder tokens; ConceptError if two concepts define one differently."""
    parts: list[Part] = []
    for part in (part for concept in concepts for part in concept.parts if part.tokens):
        same = next((other for other in parts if other.tokens == part.tokens), None)
        if same is None:
            parts.append(part)
        elif part.tensors or same.settings != part.settings:
            raise ConceptError(
                f"two files define the token {part.tokens[0]}",
                "train one of them again with another --token",
            )
    return parts


def one_strength(concept: Concept) -> float:
    """The strength of a concept, one number for all layers; ConceptError if there are several."""
    if isinstance(concept.strength, tuple):
        raise ConceptError(
            f"{concept.token} has strengths for groups of layers", "give one number, as FILE:0.7"
        )
    return concept.strength


def _provenance(references: Sequence[ConceptReference], concepts: Sequence[Concept]) -> Provenance:
    """The provenance of a merged LoRA: that of a single file, or the names of several files."""
    first, *others = (concept.provenance for concept in concepts)
    if not others:
        return first
    bases = {concept.provenance.base for concept in concepts}
    names = ", ".join(last_name(str(reference)) for reference in references)
    base = first.base if len(bases) == 1 else ""
    return Provenance.from_metadata(first.token, {"merged from": names}, base)
