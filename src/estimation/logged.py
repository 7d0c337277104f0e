"""The logged episodes as the estimators read them: flat rows, one episode after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th

from inspo.offline.buffer import OfflineBuffer
from inspo.offline.offline_dataset import OfflineDataset, ends_terminated
from inspo.utils.errors import DatasetError


def independent_groups(dataset: OfflineDataset) -> np.ndarray:
    """Equal for episodes that are copies of each other, and so tell nothing new: int64 `[E]`.

    Numbered from 0 on. DatasetError for fewer than two distinct episodes.
    """
    n_distinct = len(np.unique(dataset.equal.first))
    if n_distinct < 2:
        raise DatasetError(
            f"the data hold {len(dataset)} episodes, {n_distinct} of them distinct: expected at "
            "least two distinct ones, since what an estimate's doubt is computed from is how it "
            "varies with the episodes. Give more data"
        )
    return np.unique(dataset.equal.originals, return_inverse=True)[1]


@dataclass(frozen=True)
class Logged:
    """Some or all episodes of a dataset: E episodes, R rows, M of which begin a transition.

    An estimate is of the *played* return: the sum of the rewards until the episode ends or its
    limit is reached. So a timeout ends it as a terminal does, and the estimators see the time. An
    episode that was cut before the limit bootstraps.

    Attributes:
        buffer: draws the same episodes as batches, for the controllers.
        chosen: int64 `[E]`, which episodes of the dataset these are; rows: `[R]`, which rows.
        groups: int64 `[E]`, equal for copies of one episode; n_groups: how many are distinct.
        state `[R, S]`, obs `[R, n, O]`, avail `[R, n, A]`, time `[R]` (share of the limit).
        actions: long `[M, n]`; reward, terminated: `[M]`; goes_on: `[M]`, 0 where the return ends.
        now, then: long `[M]`, rows that begin a transition and rows that it leads to.
        first: long `[E]`, rows of the first steps. episode: long `[M]`, number of the episode.
        returns: float64 `[E]`.
    """

    buffer: OfflineBuffer
    chosen: np.ndarray
    rows: np.ndarray
    groups: np.ndarray
    n_groups: int
    limit: int
    state: th.Tensor
    obs: th.Tensor
    avail: th.Tensor
    time: th.Tensor
    actions: th.Tensor
    reward: th.Tensor
    terminated: th.Tensor
    goes_on: th.Tensor
    now: th.Tensor
    then: th.Tensor
    first: th.Tensor
    episode: th.Tensor
    returns: np.ndarray

    def __len__(self) -> int:
        """E."""
        return len(self.chosen)

    @classmethod
    def of(cls, dataset: OfflineDataset, max_steps: int = 0, seed: int = 0) -> Logged:
        """All episodes, or as many, drawn at random, as have at most `max_steps` transitions.

        DatasetError for fewer than two distinct episodes.
        """
        groups = independent_groups(dataset)
        chosen = np.arange(len(dataset))
        if 0 < max_steps < dataset.lengths.sum():
            chosen = np.random.default_rng(seed).permutation(len(dataset))
            n = int(np.searchsorted(np.cumsum(dataset.lengths[chosen]), max_steps, side="right"))
            chosen = np.sort(chosen[: max(n, 2)])
        if len(chosen) < len(dataset):
            rows = dataset.rows_of(chosen)
            dataset = dataset.select(chosen)
        else:
            rows = np.arange(dataset.n_rows)
        _, groups = np.unique(groups[chosen], return_inverse=True)
        return cls._of_all(dataset, chosen, rows, groups)

    @classmethod
    def _of_all(
        cls, dataset: OfflineDataset, chosen: np.ndarray, rows: np.ndarray, groups: np.ndarray
    ) -> Logged:
        arrays, lengths, limit = dataset.arrays, dataset.lengths, dataset.metadata.episode_limit
        now = np.flatnonzero(dataset.is_transition())
        steps = np.arange(dataset.n_rows) - np.repeat(dataset.offsets[:-1], lengths + 1)
        goes_on = np.ones(dataset.n_rows, dtype=np.float32)
        over = ends_terminated(arrays["terminated"], lengths) | (lengths >= limit)
        goes_on[(dataset.offsets[1:] - 2)[over]] = 0
        tensor = th.from_numpy
        return cls(
            buffer=OfflineBuffer(dataset, 0),
            chosen=chosen,
            rows=rows,
            groups=groups,
            n_groups=int(groups.max()) + 1,
            limit=limit,
            state=tensor(np.ascontiguousarray(arrays["state"])),
            obs=tensor(np.ascontiguousarray(arrays["obs"])),
            avail=tensor(np.ascontiguousarray(arrays["avail_actions"])),
            time=tensor((steps / limit).astype(np.float32)),
            actions=tensor(arrays["actions"][now, :, 0]),
            reward=tensor(arrays["reward"][now, 0]),
            terminated=tensor(arrays["terminated"][now, 0]),
            goes_on=tensor(goes_on[now]),
            now=tensor(now),
            then=tensor(now + 1),
            first=tensor(dataset.offsets[:-1].copy()),
            episode=tensor(np.repeat(np.arange(len(dataset)), lengths)),
            returns=dataset.episode_returns(),
        )

    def returns_to_go(self, discounts: Sequence[float]) -> th.Tensor:
        """Discounted sums of the logged rewards from each transition on, `[M, len(discounts)]`."""
        gamma, reward = np.array(discounts), self.reward.double().numpy()
        last = np.append(np.diff(self.episode.numpy()) > 0, True)
        values, running = np.zeros((len(reward), len(gamma))), np.zeros(len(gamma))
        for m in reversed(range(len(reward))):
            running = reward[m] + (0.0 if last[m] else gamma * running)
            values[m] = running
        return th.from_numpy(values).float()
