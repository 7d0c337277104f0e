"""The model-based estimate on finite games: count transitions, then solve the policy exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch as th

from inspo.estimation.logged import Logged

VISITS = 5  # rows for each distinct state, on the average, from which the data are called finite


@dataclass(frozen=True)
class Counts:
    """What happened in each distinct state and joint action of the data.

    Attributes:
        state: int64 `[R]`, the number of each row's state; n_states.
        pair: int64 `[M]`, the number of each transition's (state, joint action).
        pair_state: int64 `[P]`; pair_actions: int64 `[P, n]`.
    """

    state: np.ndarray
    n_states: int
    pair: np.ndarray
    pair_state: np.ndarray
    pair_actions: np.ndarray


def count(data: Logged) -> Counts | None:
    """The counts, or None where states hardly ever come back and there is nothing to count."""
    n_rows = len(data.state)
    _, state = np.unique(data.state.numpy(), axis=0, return_inverse=True)
    n_states = int(state.max()) + 1
    if n_rows < VISITS * n_states:
        return None
    key = np.concatenate([state[data.now.numpy(), None], data.actions.numpy()], axis=1)
    pairs, pair = np.unique(key, axis=0, return_inverse=True)
    return Counts(state, n_states, pair.reshape(-1), pairs[:, 0], pairs[:, 1:])


def evaluate(
    counts: Counts, data: Logged, probs: th.Tensor, episodes: np.ndarray, gamma: float = 1.0
) -> tuple[np.ndarray, float]:
    """The return of a policy in the game that the counts describe, over at most `limit` steps.

    Dynamic programming over steps and states. In a state, joint actions that are not in the data
    are left out and the others' probabilities made to sum to one. A policy with a memory counts by
    its mean over the rows of the state. A state that the data only ever end in is worth nothing.

    Args:
        probs: `[R, n, A]`. episodes: `[B, E]`, how often each bootstrap draw holds each episode.
    Returns: values `[B]`; and the share of the policy's probability, in the logged states, that
        lies on joint actions in the data.
    """
    n_states, n_pairs = counts.n_states, len(counts.pair_state)
    visits = np.bincount(counts.state, minlength=n_states)[:, None, None]
    mean = np.zeros((n_states, *probs.shape[1:]))
    np.add.at(mean, counts.state, probs.double().numpy())
    mean /= visits
    agents = np.arange(probs.shape[1])
    policy = mean[counts.pair_state[:, None], agents, counts.pair_actions].prod(axis=1)  # [P]
    covered = np.bincount(counts.pair_state, policy, minlength=n_states)
    now, then = counts.state[data.now.numpy()], counts.state[data.then.numpy()]
    first, episode = counts.state[data.first.numpy()], data.episode.numpy()
    reward, goes_on = data.reward.double().numpy(), data.goes_on.double().numpy()
    # The limit is not the game's: it is what ends the sum below.
    timeout = (data.time[data.then].numpy() >= 1 - 1e-6) & (data.terminated.numpy() == 0)
    goes_on = np.where(timeout, 1.0, goes_on)
    values = []
    for weights in episodes:
        w = weights[episode]
        n = np.bincount(counts.pair, w, minlength=n_pairs)
        seen = n > 0
        mean_reward = np.bincount(counts.pair, w * reward, minlength=n_pairs) / np.where(seen, n, 1)
        chance = np.where(seen, policy, 0.0)
        total = np.bincount(counts.pair_state, chance, minlength=n_states)
        chance = chance / np.where(total > 0, total, 1)[counts.pair_state]
        step = w * goes_on * (chance / np.where(seen, n, 1))[counts.pair]
        paid = np.bincount(counts.pair_state, chance * mean_reward, minlength=n_states)
        v = np.zeros(n_states)
        for _ in range(data.limit):
            v = paid + gamma * np.bincount(now, step * v[then], minlength=n_states)
        values.append((weights @ v[first]) / weights.sum())
    return np.array(values), float(covered[now].mean())
