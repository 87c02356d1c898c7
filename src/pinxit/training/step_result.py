"""The result of one training step. Without torch, since the training log is read without it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StepResult:
    """The losses and gradient norms of one training step, one for each concept in `concepts`.

    `number` counts steps from 1. `concepts` are numbers of concepts in the session; those that
    have finished or failed are missing.
    """

    number: int
    total: int
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    learning_rate: float
    seconds: float
    concepts: tuple[int, ...] = (0,)

    @property
    def loss(self) -> float:
        """The mean loss of the concepts."""
        return sum(self.losses) / len(self.losses)

    def is_due(self, every: int, *, last: bool) -> bool:
        """Whether something that is done every `every` steps (0: never) is due after this step."""
        return every > 0 and (self.number % every == 0 or last)

    def per_concept(self) -> Iterator[tuple[int, "StepResult"]]:
        """The number of each concept and its own result, with an equal part of the time."""
        seconds = self.seconds / max(1, len(self.concepts))
        for concept, loss, norm in zip(self.concepts, self.losses, self.norms, strict=True):
            result = replace(self, losses=(loss,), norms=(norm,), seconds=seconds, concepts=(0,))
            yield concept, result
