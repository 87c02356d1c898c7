"""Bootstrap confidence intervals of metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A statistic and the ends of its 95% bootstrap confidence interval."""

    value: float
    low: float
    high: float


def mean(rows: Rows) -> float:
    """The mean of all values."""
    return float(rows.mean())


def bootstrap(rows: Rows, statistic: Callable[[Rows], float] = mean, seed: int = 0) -> Interval:
    """A statistic of rows and its interval, from rows resampled with replacement."""
    samples = np.random.default_rng(seed).integers(len(rows), size=(_RESAMPLES, len(rows)))
    statistics = [statistic(rows[indices]) for indices in samples]
    low, high = np.percentile(statistics, (2.5, 97.5))
    return Interval(statistic(rows), float(low), float(high))
