"""The optimizer's work and state, divided among processes that train all weights of a network."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from torch import nn

from pinxit.models.ranks import Ranks
from pinxit.training.optimizer import in_memory


class Division:
    """Which process updates each weight, by number, and has its optimizer state.

    If nothing is divided, every process updates all. `complete` is False while a step has changed
    only the weights of this process: then there is nothing to save.
    """

    def __init__(self, ranks: Ranks, weights: Sequence[nn.Parameter], *, divided: bool) -> None:
        self.ranks, self._weights = ranks, weights
        self.divided = divided and ranks.size > 1
        self.complete = True
        self._owners: list[int] = []
        num_bytes = [0] * ranks.size
        for weight in weights if self.divided else ():
            owner = num_bytes.index(min(num_bytes))
            self._owners.append(owner)
            num_bytes[owner] += weight.nbytes

    @property
    def own_weights(self) -> list[nn.Parameter]:
        """The weights that this process updates."""
        if not self.divided:
            return list(self._weights)
        pairs = zip(self._weights, self._owners, strict=True)
        return [weight for weight, owner in pairs if owner == self.ranks.rank]

    @contextmanager
    def own_gradients(self) -> Generator[None]:
        """Let the block update only the weights of this process, then send them to all processes.

        Raises an error before the block, so that no process changes anything, if one has ended.
        """
        if not self.divided:
            yield
            return
        self.ranks.exchange(None)
        pairs = zip(self._weights, self._owners, strict=True)
        updated = [(weight, owner) for weight, owner in pairs if weight.grad is not None]
        for weight, owner in updated:
            if owner != self.ranks.rank:
                weight.grad = None
        self.complete = False
        yield
        self.ranks.share_weights([(in_memory(weight.detach()), owner) for weight, owner in updated])
        self.complete = True
