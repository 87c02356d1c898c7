"""Early stopping: training ends when the validation loss no longer improves.

The training loss cannot show this, because every step has other images, noise and timesteps. The
validation loss uses fixed samples, as in DVAR (arXiv:2302.04841). DVAR compares variances; this
rule compares the improvement, so that one threshold works for all methods.
"""

from collections.abc import Sequence
from statistics import fmean

# Number of fixed samples. Validation has no backward pass, which is two thirds of a step: with the
# intervals below it costs 4% of the time at the methods' default batch sizes, and at most 11%.
VALIDATION_SAMPLES = 8
_VALIDATIONS = 40  # in the number of steps that the method advises
_MIN_IMAGES_BETWEEN = 24
# Number of validation losses that are averaged, because single ones fluctuate.
_WINDOW = 12


def validation_interval(advised_steps: int, batch_size: int) -> int:
    """Steps between validation losses, for the number of steps that the method advises."""
    return max(1, round(advised_steps / _VALIDATIONS), -(-_MIN_IMAGES_BETWEEN // batch_size))


def converged(losses: Sequence[float], threshold: float) -> bool:
    """Whether the validation loss, measured from before the first step on, no longer improves.

    True if the mean of the last window is lower than that of the window before by less than
    `threshold` times the total improvement; always False with a threshold of 0.
    """
    if threshold <= 0 or len(losses) <= 2 * _WINDOW:
        return False
    previous, latest = fmean(losses[-2 * _WINDOW : -_WINDOW]), fmean(losses[-_WINDOW:])
    return previous - latest <= threshold * max(0.0, losses[0] - latest)
