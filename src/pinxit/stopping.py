"""When a run has learned enough: the loss of samples that stay the same has settled.

The loss of a step says nothing of this, for it is of other pictures, noise and times each time.
"""

from collections.abc import Sequence

# How many samples stay the same, and how much of a step's work a look at them may take: a look
# needs no backward pass, which is two thirds of a step.
SAMPLES = 8
_SHARE = 1 / 24


def steps_between_looks(batch_size: int) -> int:
    """How often to look, so that it takes about 4% of the time."""
    return max(1, round(SAMPLES / 3 / _SHARE / batch_size))


def settled(losses: Sequence[float], share: float) -> bool:
    """Whether losses of the same samples have settled."""
    return False
