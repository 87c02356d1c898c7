"""When a run has learned enough: the loss of samples that stay the same falls no further.

The loss of a step says nothing of this, for it is of other pictures, noise and times each time.
That samples must stay the same is DVAR's insight (arXiv:2302.04841); its rule compares variances,
ours the fall, which needs no threshold of its own for each method.
"""

from collections.abc import Sequence
from statistics import fmean

# How many samples stay the same. A look at them has no backward pass, which is two thirds of a
# step: with the looks below it is 4% of the work at the methods' own batch sizes, at most 11%.
SAMPLES = 8
_LOOKS = 40  # in as many steps as the method advises
_LEARNED_BETWEEN = 24  # pictures at least
# How many looks are taken together, against the swings of single steps.
_WINDOW = 12


def steps_between_looks(advised: int, batch_size: int) -> int:
    """How often to look, in a run for which a method advises so many steps."""
    return max(1, round(advised / _LOOKS), -(-_LEARNED_BETWEEN // batch_size))


def settled(losses: Sequence[float], share: float) -> bool:
    """Whether losses of the same samples, from before the first step on, have settled.

    They have when the mean of the last window is lower than that of the window before by less
    than this share of all it has fallen; never with a share of 0.
    """
    if share <= 0 or len(losses) <= 2 * _WINDOW:
        return False
    before, now = fmean(losses[-2 * _WINDOW : -_WINDOW]), fmean(losses[-_WINDOW:])
    return before - now <= share * max(0.0, losses[0] - now)
