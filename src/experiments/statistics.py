"""Statistics of results: means over seeds, Welch's test, intervals.

Standard deviations divide by n - 1 (`ddof=1`), the unbiased estimate of the variance over seeds;
that of a single value is not known and is `nan`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import NormalDist  # the standard library's, not this module

import numpy as np
from scipy import stats


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof 1).

    >>> mean_std([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    array = np.asarray(values, dtype=float)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test that two means are equal; `nan` below two values each.

    Where neither sample varies at all (exact returns can) there is nothing to test: 1 if they are
    the same number, else 0.
    """
    if min(len(first), len(second)) < 2:
        return math.nan
    if np.std(first) == np.std(second) == 0:
        return 1.0 if abs(np.mean(first) - np.mean(second)) < 1e-12 else 0.0
    with warnings.catch_warnings(action="ignore"):  # exact returns are nearly identical
        return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share: right at 0 and 1 too, where the normal one has no width.

    By hand: scipy's (`binomtest`) takes whole numbers of successes alone.

    >>> tuple(round(x, 3) for x in wilson(8, 10))
    (0.49, 0.943)
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, of 10,000 resamples; repeatable."""
    array = np.asarray(values, dtype=float)
    if array.size == 1:
        return float(array[0]), float(array[0])
    drawn = stats.bootstrap(
        (array,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).bootstrap_distribution
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def normal_interval(mean: float, std: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of which only mean, standard deviation and number are known.

    >>> tuple(round(x, 3) for x in normal_interval(10.0, 2.0, 16))
    (9.02, 10.98)
    """
    half = NormalDist().inv_cdf(0.5 + level / 2) * std / math.sqrt(n)
    return mean - half, mean + half


def sampling_interval(test: Mapping[str, float], metric: str, share: bool) -> tuple[float, float]:
    """95 % interval of one test's mean, as far as the drawing of its episodes goes.

    share: the metric is a share of the episodes, and the interval Wilson's; another metric needs
    its standard deviation. `nan` where that, or the number of episodes, is not in the record.
    """
    n = int(test.get("test_episodes", 0))
    std = test.get(f"{metric.removesuffix('_mean')}_std")
    if n and share:
        return wilson(test[metric] * n, n)
    if n and std is not None:
        return normal_interval(test[metric], std, n)
    return math.nan, math.nan
