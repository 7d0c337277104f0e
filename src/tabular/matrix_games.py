"""One-step cooperative games of 2 to 8 agents: what joint actions pay, and what their data hold.

| game        | actions | all agents get                                                         |
|-------------|---------|------------------------------------------------------------------------|
| xor         | A, B    | 1 if exactly one plays B, 0 if none does, -2 otherwise                 |
| m_ne        | A, B, C | 5, 10, 20 if all play A, all B, all C; -20 otherwise                   |
| conventions | K       | 1 if all play the same action, -1 otherwise                            |

`xor` is the game of two agents, `xor_3` that of three; `conventions_4x3` has four agents and three
conventions (two if no number is given). The first two games are those of InSPO (arXiv 2412.07639,
Figures 1 and 2) for two agents; for more they are ours.

| game        | quality    | the data                                                            |
|-------------|------------|---------------------------------------------------------------------|
| xor         | a          | one agent plays B, each equally often                               |
| xor         | b          | as `a`, and all play A, which is as frequent as each of these       |
| xor         | c          | all joint actions equally often                                     |
| m_ne        | balanced   | product of uniform policies                                         |
| m_ne        | imbalanced | product of the policies (.8, .1, .1)                                |
| m_ne        | teams      | all play A, all B or all C, with .8, .1, .1                         |
| conventions | equal      | the K conventions equally often                                     |
| conventions | tilted     | as `equal`, but the first has one percentage point more: 51 and 49  |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inspo.utils.errors import ConfigError, nearest

QUALITIES = {
    "xor": ("a", "b", "c"),
    "m_ne": ("balanced", "imbalanced", "teams"),
    "conventions": ("equal", "tilted"),
}
NAMES = "xor_N, m_ne_N, conventions_N and conventions_NxK (N = 2 to 8 agents, K >= 2 conventions)"
MAX_JOINT_ACTIONS = 10**6  # that are enumerated for an exact return: 8 MB of payoffs

Payoff = Callable[[np.ndarray], np.ndarray]  # joint actions int [M, n] -> float [M]


@dataclass(frozen=True)
class MatrixGame:
    """kind: a key of `QUALITIES`. n_actions: of every agent."""

    kind: str
    n_agents: int
    n_actions: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_actions,) * self.n_agents

    def payoff(self, actions: np.ndarray) -> np.ndarray:
        """What joint actions int `[M, n]` pay, float64 `[M]`."""
        if self.kind == "xor":
            n_b = actions.sum(axis=1)
            return np.select([n_b == 0, n_b == 1], [0.0, 1.0], -2.0)
        together = (actions == actions[:, :1]).all(axis=1)
        if self.kind == "m_ne":
            return np.where(together, np.array([5.0, 10.0, 20.0])[actions[:, 0]], -20.0)
        return np.where(together, 1.0, -1.0)


def find(name: str) -> MatrixGame | None:
    """The game of this `map_name`, if there is one."""
    found = re.fullmatch(r"(xor|m_ne|conventions)(?:_([2-8])(?:x([2-9]|[1-9]\d+))?)?", name)
    if not found or (found[3] and found[1] != "conventions"):
        return None
    n_actions = {"xor": 2, "m_ne": 3, "conventions": int(found[3] or 2)}[found[1]]
    return MatrixGame(found[1], int(found[2] or 2), n_actions)


def parse(name: str) -> MatrixGame:
    """The game of this `map_name`; ConfigError if there is none."""
    game = find(name)
    if game is None:
        raise ConfigError(
            f"env_args.map_name: no matrix game is called '{name}'; there are {NAMES}, and xor, "
            f"m_ne and conventions, which have two agents.{nearest(name, QUALITIES)} A game of "
            "your own needs its payoff in env_args.payoff, and its data dataset.path."
        )
    return game


def joint_actions(n_actions: Sequence[int]) -> np.ndarray:
    """All joint actions, int `[prod A_i, n]`, the last agent's fastest; ConfigError beyond
    `MAX_JOINT_ACTIONS`."""
    size = math.prod(n_actions)
    if size > MAX_JOINT_ACTIONS:
        raise ConfigError(
            f"a matrix game may have {MAX_JOINT_ACTIONS:,} joint actions, since its exact return "
            f"is a sum over all of them; found {size:,} ({' x '.join(map(str, n_actions))}). Take "
            "fewer agents or actions."
        )
    return np.stack(np.unravel_index(np.arange(size), tuple(n_actions)), axis=1)


def payoff_tensor(name: str) -> np.ndarray:
    """What every joint action pays, float64 `[A_1, ..., A_n]`."""
    game = parse(name)
    return game.payoff(joint_actions(game.shape)).reshape(game.shape)


def frequencies(name: str, quality: str) -> tuple[np.ndarray, np.ndarray]:
    """The joint actions of a dataset, int `[M, n]`, and how often each occurs, as the smallest
    whole numbers int `[M]`. Joint actions that the data lack are left out."""
    game = parse(name)
    known = QUALITIES[game.kind]
    if quality not in known:
        raise ConfigError(
            f"quality: there are no data '{quality}' of matrix/{name}.{nearest(quality, known)} "
            f"Known: {', '.join(known)}. For data of your own give dataset.path."
        )
    together = np.repeat(np.arange(game.n_actions)[:, None], game.n_agents, axis=1)
    one_b = np.eye(game.n_agents, dtype=np.int64)[::-1].copy()  # torch takes no reversed view
    if quality in ("a", "b"):
        actions = one_b if quality == "a" else np.concatenate([together[:1], one_b])
        return actions, np.ones(len(actions), dtype=np.int64)
    weights = np.ones(game.n_actions, dtype=np.int64)  # of an agent's actions, or of conventions
    if quality in ("imbalanced", "teams"):
        weights[0] = 8
    elif quality == "tilted":  # 1 / K + .01 for the first, all of them times 100 K (K - 1)
        weights[:] = 99 * game.n_actions - 100
        weights[0] = (100 + game.n_actions) * (game.n_actions - 1)
    if quality in ("teams", "equal", "tilted"):
        return together, weights // np.gcd.reduce(weights)
    actions = joint_actions(game.shape)
    return actions, weights[actions].prod(axis=1)
