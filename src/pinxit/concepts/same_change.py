"""Check that a file that was written changes a model as the concept does."""

from pathlib import Path

import torch
from torch import Tensor

from pinxit.adapters.lora_part import ALPHA, MAGNITUDE, LayerTensors, LoraPart, layer_rank
from pinxit.concepts.concept import Concept
from pinxit.concepts.read import read_concept
from pinxit.errors import ConceptError

# What two orders of the same operations in fp32 differ by, relative to the largest value.
_TOLERANCE = 1e-5


def check_same_change(concept: Concept, file: Path) -> None:
    """Open a file again and compare the change of each layer of its LoRAs and DoRAs.

    Raises ConceptError, and leaves the file for inspection, if a layer is missing or changes an
    input in another way. Files without LoRAs, such as differences of weights, are not compared.
    """
    expected = _layers(concept)
    actual = _layers(read_concept(file)) if expected else {}
    for name, tensors in expected.items() if actual else ():
        if name not in actual or not _is_same(tensors, actual[name]):
            what = "another change of" if name in actual else "no change of"
            raise ConceptError(
                f"{file} was written, but has {what} the layer `{name[1]}` of `{name[0]}`",
                "do not use the file; write it with --format diffusers-lora",
            )


def _layers(concept: Concept) -> dict[tuple[str, str], LayerTensors]:
    return {
        (part.network, layer): tensors
        for part in concept.parts
        if isinstance(part, LoraPart) and part.variant in ("lora", "dora")
        for layer, tensors in part.layers.items()
    }


def _is_same(one: LayerTensors, other: LayerTensors) -> bool:
    """Whether two layers change an input in the same way, and have the same magnitudes."""
    first, second = _effect(one), _effect(other)
    same = first.shape == second.shape and torch.allclose(
        first, second, rtol=0, atol=float(first.abs().max()) * _TOLERANCE
    )
    magnitudes = [tensors.get(MAGNITUDE) for tensors in (one, other)]
    if magnitudes[0] is None or magnitudes[1] is None:
        return same and magnitudes[0] is magnitudes[1]
    return same and torch.equal(magnitudes[0].flatten(), magnitudes[1].flatten())


def _effect(tensors: LayerTensors) -> Tensor:
    """What a layer's change makes of one input."""
    down, up = tensors["lora_A.weight"].float().flatten(1), tensors["lora_B.weight"].float()
    probe = torch.linspace(-1, 1, down.shape[1])
    scale = float(tensors[ALPHA]) / layer_rank(tensors) if ALPHA in tensors else 1.0
    return up.flatten(1) @ (down @ probe) * scale
