"""How sure a figure is: bootstrap intervals over the things it was measured on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A figure, and the ends of the interval that holds 95% of its bootstrap draws."""

    value: float
    low: float
    high: float


def mean(rows: Rows) -> float:
    """The mean of all numbers."""
    return float(rows.mean())


def mean_share(rows: Rows) -> float:
    """The share of the way from floor to ceiling, from rows of (value, floor, ceiling).

    A ratio of means: a thing whose floor lies near its ceiling does not decide alone.
    """
    value, floor, ceiling = rows.mean(0)
    return float((value - floor) / (ceiling - floor))


def bootstrap(rows: Rows, statistic: Callable[[Rows], float] = mean, seed: int = 0) -> Interval:
    """A statistic of rows, one for each thing measured, drawn anew with replacement."""
    draws = np.random.default_rng(seed).integers(len(rows), size=(_DRAWS, len(rows)))
    drawn = [statistic(rows[chosen]) for chosen in draws]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(statistic(rows), float(low), float(high))
