"""Tuned networks as parts of a whole base, as other programs keep them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pinxit.adapters.adapter import Part
from pinxit.concepts.concept import Concept, Provenance, described
from pinxit.concepts.format import CARRIED, Numbers, Target
from pinxit.errors import ConceptError
from pinxit.files.open_any import Opened
from pinxit.models import modelspec
from pinxit.models.model import find_base
from pinxit.models.original_names import bare
from pinxit.models.source import Source

# What diffusers' folders call the networks that a concept may tune, and the others.
PARTS = {
    "unet": "denoiser",
    "transformer": "denoiser",
    "text_encoder": "text",
    "text_encoder_2": "text_2",
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OTHERS = ("text_encoder_3", "vae")
_BASE_HINT = "give the base that it was trained on with --base"


def source_of(concept: Concept, target: Target) -> Source:
    """The base that completes a concept of tuned networks; ConceptError if it is none."""
    base = target.base or concept.provenance.base
    if not concept.tuned:
        what, name = ("a LoRA", "kohya") if concept.weighable else ("a word", "emb-params")
        raise ConceptError(
            f"{concept.token} is {what}, and {target.out} would be a whole base",
            f"write it with --format {name} or another one for its kind",
        )
    if not base:
        raise ConceptError(f"{concept.token} does not say which base it was tuned on", _BASE_HINT)
    return find_base(base)


def tuned(found: Opened, carried: str | None) -> Concept:
    """The concept of a whole base: the networks it says were tuned, or all that could be."""
    source = find_base(str(found.path))
    networks = {
        network: {bare(name): t for name, t in source.weights(part).items() if _trained(name)}
        for part, network in PARTS.items()
        if source.has(part)
    }
    if carried:
        return described(carried, networks, found.path)
    parts = [Part("tuned-weights", {"network": name}, held) for name, held in networks.items()]
    base = str(found.path.resolve())
    return Concept(tuple(parts), Provenance.foreign(found.path.stem, {}, base))


def completed(
    concept: Concept, source: Source, numbers: Numbers | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each network of the base with its weights, the tuned ones in place of its own."""
    ours = {part.settings["network"]: part for part in concept.parts if "network" in part.settings}
    for part in filter(source.has, (*PARTS, *_OTHERS)):
        weights = source.weights(part)
        own = ours.pop(PARTS.get(part, ""), None)
        if own is not None:
            weights = _replaced(weights, own.tensors, f"`{part}` of {source.name}")
        yield part, {name: _rounded(tensor, numbers) for name, tensor in weights.items()}
    if ours:
        raise ConceptError(f"{source.name} has no `{min(ours)}`, which was tuned", _BASE_HINT)


def metadata(
    concept: Concept, source: Source, weights: Mapping[str, Tensor], title: str
) -> dict[str, str]:
    """What a file of a tuned base says of itself; `weights` are the denoiser's, or more."""
    texts = [part.settings["text"] for part in concept.parts if "text" in part.settings]
    card = modelspec.card(modelspec.attending(weights), title, ", ".join(texts))
    if source.config("scheduler").get("prediction_type") == "v_prediction":
        card = modelspec.predicting_velocity(card)
    return {"format": "pt", **card, CARRIED: concept.about}


def _replaced(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """A network's weights with the tuned ones; ConceptError if it has others, or other shapes."""
    names = {bare(name): name for name in weights if _trained(name)}
    told = {bare(name): tensor for name, tensor in own.items()}
    strange = names.keys() ^ told.keys()
    strange |= {n for n in names.keys() - strange if weights[names[n]].shape != told[n].shape}
    if strange:
        raise ConceptError(
            f"{where} is not the network that was tuned: `{min(strange)}` differs", _BASE_HINT
        )
    return {names[name]: tensor for name, tensor in told.items()}


def _rounded(tensor: Tensor, numbers: Numbers | None) -> Tensor:
    return tensor.to(_DTYPES[numbers]) if numbers and tensor.is_floating_point() else tensor


def _trained(name: str) -> bool:
    """Old text encoders keep the numbers of their positions as if they were weights."""
    return not name.endswith("position_ids")
