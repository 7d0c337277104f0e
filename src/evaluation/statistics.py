"""Statistics of results: means over seeds, Welch's test, intervals.

Standard deviations divide by n - 1 (`ddof=1`), the unbiased estimate of the variance over seeds;
that of a single value is not known and is `nan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1).

    >>> mean_std([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("mean_std of no values")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test that two means are equal; `nan` below two values each.

    Where neither sample varies at all (exact returns can) there is nothing to test: 1 if they are
    the same number, else 0.
    """
    if min(len(first), len(second)) < 2:
        return math.nan
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    gap = abs(a.mean() - b.mean())
    errors = np.array([a.var(ddof=1) / a.size, b.var(ddof=1) / b.size])  # of the means, squared
    if errors.sum() == 0:
        return 1.0 if gap < 1e-12 else 0.0
    from scipy.stats import t  # the distribution alone: its ttest_ind warns of exact returns

    freedom = errors.sum() ** 2 / (errors**2 / [a.size - 1, b.size - 1]).sum()
    return float(2 * t.sf(gap / np.sqrt(errors.sum()), freedom))


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share: right at 0 and 1 too, where the normal one has no width.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if n <= 0:
        raise ValueError("wilson's interval needs at least one trial")
    z = _normal_quantile(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    values: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean. The same values give the same interval."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("bootstrap of no values")
    rng = np.random.default_rng(seed)
    means = [
        array[rng.integers(array.size, size=(block, array.size))].mean(axis=1)
        for block in _blocks(resamples, max(1, 2_000_000 // array.size))  # bounds the memory
    ]
    low, high = np.quantile(np.concatenate(means), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def normal_interval(mean: float, std: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of which only mean, standard deviation and number are known."""
    half = _normal_quantile(0.5 + level / 2) * std / math.sqrt(n)
    return mean - half, mean + half


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist  # the standard library's, not this module

    return NormalDist().inv_cdf(p)


def _blocks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])
