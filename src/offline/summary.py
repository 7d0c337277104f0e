"""What is in a dataset, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from inspo.offline.offline_dataset import OfflineDataset, ends_terminated


@dataclass(frozen=True)
class Summary:
    """Mean, population deviation and quantiles of a sample of numbers."""

    mean: float
    std: float
    min: float
    q25: float
    median: float
    q75: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> Summary:
        """`values` `[k]`, k >= 1."""
        quantiles = np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0))
        return cls(float(values.mean()), float(values.std()), *(float(q) for q in quantiles))


@dataclass(frozen=True)
class DatasetStatistics:
    """returns: undiscounted, per episode. lengths: transitions. win_rate: None where unknown.

    n_terminated: episodes with a true end; n_cut: neither a true end nor the limit.
    action_frequencies: share of each action among the transitions of each agent, `[n, A]`.
    """

    n_episodes: int
    n_steps: int
    n_terminated: int
    n_cut: int
    returns: Summary
    lengths: Summary
    win_rate: float | None
    action_frequencies: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Numbers, lists and dictionaries alone, for JSON."""
        return {**asdict(self), "action_frequencies": self.action_frequencies.tolist()}


def action_frequencies(dataset: OfflineDataset) -> np.ndarray:
    """Share of each action among the transitions of each agent: float64 `[n, A]`."""
    n_agents, n_actions = dataset.metadata.n_agents, dataset.metadata.n_actions
    actions = dataset.arrays["actions"][dataset.is_transition(), :, 0]
    cells = actions + n_actions * np.arange(n_agents)
    counts = np.bincount(cells.ravel(), minlength=n_agents * n_actions)
    return counts.reshape(n_agents, n_actions) / max(len(actions), 1)


def compute_statistics(dataset: OfflineDataset) -> DatasetStatistics:
    """The statistics of a valid dataset with at least one episode."""
    ended = ends_terminated(dataset.arrays["terminated"], dataset.lengths)
    short = dataset.lengths < dataset.metadata.episode_limit
    won = dataset.battle_won
    return DatasetStatistics(
        n_episodes=len(dataset),
        n_steps=int(dataset.lengths.sum()),
        n_terminated=int(ended.sum()),
        n_cut=int((short & ~ended).sum()),
        returns=Summary.of(dataset.episode_returns()),
        lengths=Summary.of(dataset.lengths),
        win_rate=None if won is None else float(won.mean()),
        action_frequencies=action_frequencies(dataset),
    )
