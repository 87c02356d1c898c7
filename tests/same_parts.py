"""Whether two concepts are equal to the bit."""

import torch
from torch import Tensor

from pinxit.concepts.concept import Concept


def same_parts(one: Concept, other: Concept) -> bool:
    """Whether all tensors are equal; kinds, settings and names of tensors must be."""
    assert [(part.kind, dict(part.settings)) for part in one.parts] == [
        (part.kind, dict(part.settings)) for part in other.parts
    ]
    pairs = list(zip(one.parts, other.parts, strict=True))
    assert all(a.tensors.keys() == b.tensors.keys() for a, b in pairs)
    return all(_identical(a.tensors[name], b.tensors[name]) for a, b in pairs for name in a.tensors)


def _identical(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the bit, also for NaN."""
    bits = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)
