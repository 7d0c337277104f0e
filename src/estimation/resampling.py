"""Doubt: the bootstrap over independent episodes."""

from __future__ import annotations

import numpy as np

RESAMPLES = 200
LEVEL = 0.95
MAX_BLOCKS = 25


class Resamples:
    """Draws of the data with replacement, the same ones for every policy and estimator.

    What is drawn is a group of episodes that are copies of each other, with all its copies.

    Attributes:
        episodes: float64 `[B, E]`, how often each episode is in each draw.
        block: int64 `[E]`, the groups are dealt into at most MAX_BLOCKS blocks, for estimators that
            can afford to draw blocks alone; blocks: float64 `[B, n_blocks]`, how often each of
            these is drawn. n_blocks: their number.
        rng: for what else a draw chooses; each policy gets the same numbers.
    """

    def __init__(self, groups: np.ndarray, n: int = RESAMPLES, seed: int = 0):
        """groups: `[E]`, numbers from 0 on."""
        rng, n_groups = np.random.default_rng(seed), int(groups.max()) + 1
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n)
        self.episodes = counts[:, groups].astype(np.float64)
        self.n_blocks = min(MAX_BLOCKS, n_groups)
        self.block = (rng.permutation(n_groups) % self.n_blocks)[groups]
        share = np.full(self.n_blocks, 1 / self.n_blocks)
        self.blocks = rng.multinomial(self.n_blocks, share, size=n).astype(np.float64)
        self.seed, self.n = seed, n

    def choices(self, k: int) -> np.ndarray:
        """For each draw one of k numbers, the same whenever it is asked: int64 `[B]`."""
        return np.random.default_rng([self.seed, k]).integers(k, size=self.n)


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of the draws (percentile bootstrap); nan where one is not finite."""
    if not len(draws) or not np.isfinite(draws).all():
        return np.nan, np.nan
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
