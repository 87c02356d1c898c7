"""Gradients and optimizer state, divided among processes that train all weights of a network."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pinxit.models.ranks import Ranks
from pinxit.training.optimizer import chunk_norms, in_memory, norms_without_gradient


class Division:
    """Which process updates each weight, by number, and has its summed gradient and its state.

    If nothing is divided, `owners` is empty, and every process updates all. `complete` is False
    while a step has changed only the weights of this process: then there is nothing to save.
    """

    def __init__(self, ranks: Ranks, weights: Sequence[nn.Parameter], *, divided: bool) -> None:
        self.ranks, self._weights = ranks, weights
        self.divided = divided and ranks.size > 1
        self.complete = True
        self.owners: list[int] = []
        num_bytes = [0] * ranks.size
        for weight in weights if self.divided else ():
            owner = num_bytes.index(min(num_bytes))
            self.owners.append(owner)
            num_bytes[owner] += weight.nbytes
        self._no_norms = [norms_without_gradient(weight, whole=self.divided) for weight in weights]

    @property
    def own_weights(self) -> list[nn.Parameter]:
        """The weights that this process updates."""
        if not self.divided:
            return list(self._weights)
        pairs = zip(self._weights, self.owners, strict=True)
        return [weight for weight, owner in pairs if owner == self.ranks.rank]

    def gradient_norms(self) -> Sequence[Tensor]:
        """The norms of the chunks of each gradient, also where another process has it.

        Without a gradient they are zero or empty.
        """
        pairs = zip(self._weights, self._no_norms, strict=True)
        norms = [
            none if weight.grad is None else chunk_norms(weight.grad) for weight, none in pairs
        ]
        if not self.divided:
            return norms
        own = torch.cat(norms)
        parts = self.ranks.exchange(own.tolist())  # zero but in one process, so the sum is exact
        return own.new_tensor(parts).sum(dim=0).split(list(map(len, norms)))

    @contextmanager
    def sharing(self) -> Generator[None]:
        """Send the weights that each process has updated in the block to all processes.

        Raises an error before the block, so that no process changes anything, if one has ended.
        """
        if not self.divided:
            yield
            return
        self.ranks.exchange(None)
        self.complete = False
        yield
        pairs = zip(self._weights, self.owners, strict=True)
        self.ranks.share_weights([(in_memory(weight.detach()), owner) for weight, owner in pairs])
        self.complete = True
