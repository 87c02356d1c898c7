"""Encoded prompts, as the denoiser gets them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: states (B, L, D) and pooled states (B, P).

    `mask` (B, L) is 1 where states are those of a prompt and 0 where they are padding; None means
    no padding. `more_states` are those of further layers of the text encoder, (B, L, D) each.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    more_states: tuple[Tensor, ...] = ()

    @classmethod
    def stack(cls, batches: Sequence["Conditioning"]) -> "Conditioning":
        """Several batches as one, padded to the longest with a mask if their lengths differ."""
        length = max(batch.states.shape[1] for batch in batches)
        if any(one.mask is not None or one.states.shape[1] < length for one in batches):
            batches = [batch._padded(length) for batch in batches]
        pooled = [batch.pooled for batch in batches if batch.pooled is not None]
        masks = [batch.mask for batch in batches if batch.mask is not None]
        layers = zip(*(batch.more_states for batch in batches), strict=True)
        return cls(
            torch.cat([batch.states for batch in batches]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
            tuple(torch.cat(layer) for layer in layers),
        )

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """The same conditioning in another dtype."""
        return self._with_each(lambda tensor: tensor.to(dtype))

    def mixed(self, share: float) -> "Conditioning":
        """The first of two rows with a share of the second; both must have the same mask."""
        return self._with_each(lambda rows: torch.lerp(rows[:1], rows[1:], share))

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return self._with_each(lambda tensor: tensor[index])

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        return Conditioning(
            change(self.states),
            None if self.pooled is None else change(self.pooled),
            None if self.mask is None else change(self.mask),
            tuple(map(change, self.more_states)),
        )

    def _padded(self, length: int) -> "Conditioning":
        """The same conditioning with zeros up to this length, and with a mask."""
        added = length - self.states.shape[1]
        mask = self.states.new_ones(self.states.shape[:2]) if self.mask is None else self.mask
        return Conditioning(
            F.pad(self.states, (0, 0, 0, added)),
            self.pooled,
            F.pad(mask, (0, added)),
            tuple(F.pad(states, (0, 0, 0, added)) for states in self.more_states),
        )
