r"""Importance sampling and doubly robust estimates, as pure functions of padded episodes.

Shapes: E episodes, T steps, B bootstrap draws. `log_ratio` `[E, T]` is log pi(a|s) - log mu(a|s),
zero in the padding; `reward` `[E, T]` is discounted, and zero there too; `counts` `[B, E]` says how
often each draw holds each episode (ones: the estimate itself). All in float64.

The ratio of joint actions is large or tiny as soon as episodes are long or agents many: its
variance grows exponentially in both. `effective` says of how many episodes an estimate really is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LARGEST = 300.0  # of a sum of log-ratios, either way: nothing overflows, and all is lost anyway


def weights_to(log_ratio: Array) -> Array:
    """rho_{0:t} = prod_{k <= t} rho_k, `[E, T]`."""
    rho: Array = np.exp(np.clip(np.cumsum(log_ratio, axis=1), -LARGEST, LARGEST))
    return rho


def whole(log_ratio: Array, power: float = 1.0) -> Array:
    """The ratio of whole episodes to a power, `[E]`; up to a common factor, that none overflows."""
    total = power * log_ratio.sum(axis=1)
    w: Array = np.exp(total - total.max())
    return w


def per_decision(log_ratio: Array, reward: Array, counts: Array) -> Array:
    """sum_t rho_{0:t} r_t, the mean over episodes: unbiased with the true mu. `[B]`."""
    nothing = np.zeros_like(reward)
    return doubly_robust(log_ratio, reward, nothing, nothing, counts, normalise=False)


def weighted(log_ratio: Array, reward: Array, counts: Array, power: float = 1.0) -> Array:
    """sum_e w_e R_e / sum_e w_e with w_e = (rho of the whole episode)^power. `[B]`.

    power 0 is the mean of the data, 1 weighted importance sampling; between them lies a
    compromise of bias and variance, good for ranking alone.
    """
    w = whole(log_ratio, power)
    values: Array = (counts @ (w * reward.sum(axis=1))) / (counts @ w)
    return values


def effective(log_ratio: Array, power: float = 1.0) -> float:
    """The effective number of episodes (sum w)^2 / sum w^2 of `weighted`, from 1 to E."""
    w = whole(log_ratio, power)
    return float(w.sum() ** 2 / np.square(w).sum())


def doubly_robust(
    log_ratio: Array,
    reward: Array,
    q: Array,
    v: Array,
    counts: Array,
    normalise: bool = True,
) -> Array:
    r"""V of the first states, and Q's errors on the way, weighted (Jiang & Li 2016). `[B]`.

    .. math:: \sum_t w_{t-1} V(s_t) + w_t (r_t - Q(s_t, a_t))

    Args:
        q, v: Q of the logged actions, and V under the policy, `[E, T]`, zero in the padding. What
            an episode that was cut is still worth belongs to its last reward.
        normalise: the weights of each step sum to one over the episodes (WDR, Thomas & Brunskill
            2016): some bias, far less variance.
    """
    rho = weights_to(log_ratio)
    before = np.pad(rho[:, :-1], ((0, 0), (1, 0)), constant_values=1.0)
    if normalise:
        now, earlier = counts @ rho, counts @ before
    else:
        now = earlier = counts.sum(axis=1, keepdims=True)
    steps: Array = (counts @ (rho * (reward - q))) / now + (counts @ (before * v)) / earlier
    return np.asarray(steps.sum(axis=1))
