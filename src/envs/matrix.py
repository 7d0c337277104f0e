"""One-step cooperative games given by a payoff tensor (`map_name=xor|m_ne`, or any tensor).

Source of the two shipped games: InSPO (arXiv 2412.07639), Figures 1 and 2. Every agent sees the
same constant observation `[1.]`, and so is the state: the game has one state and nothing to see.
Agents are told apart by the harness (agent id, or one network per agent), not by the game.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inspo.envs.multiagentenv import VectorEnv, VectorStep
from inspo.utils.errors import ConfigError, nearest

# payoff[a_1, ..., a_n] is the reward that all agents share.
PAYOFFS = {
    "xor": [[0, 1], [1, -2]],
    "m_ne": [[5, -20, -20], [-20, 10, -20], [-20, -20, 20]],
}


def check_payoff(payoff: Any) -> np.ndarray:
    """The payoff tensor float64 `[A_1, ..., A_n]` of a nested list; ConfigError if it is none."""
    key = "env_args.payoff"
    try:
        tensor = np.array(payoff, dtype=np.float64)
    except (ValueError, TypeError) as error:  # numpy refuses ragged lists and texts alike
        raise ConfigError(
            f"{key}: expected a nested list of numbers, one level of nesting per agent, in which "
            f"all lists of one level are equally long; found {payoff!r}. Write a game in which "
            "an agent has fewer actions as a rectangular tensor, [[1, 2, 3], [4, 5, 6]] for 2 x 3."
        ) from error
    if tensor.ndim == 0:
        raise ConfigError(f"{key}: expected a nested list, one level per agent; found {payoff!r}.")
    if tensor.size == 0:
        raise ConfigError(
            f"{key}: every agent needs at least one action; found the shape {tensor.shape}."
        )
    if not np.isfinite(tensor).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(tensor))[0]]
        raise ConfigError(
            f"{key}: expected finite numbers; the payoff of the joint action {where} is "
            f"{tensor[tuple(where)]}."
        )
    return tensor


class MatrixVectorEnv(VectorEnv):
    """N copies of a one-step game: all agents act once, all get `payoff[a_1, ..., a_n]`.

    map_name: a shipped game, or, where `payoff` is given, the label of that game.
    payoff: nested list `[A_1, ..., A_n]`, one level per agent; None for the shipped one.
    Agents with fewer actions than others have the missing ones unavailable.
    """

    def __init__(self, map_name: str = "xor", n_envs: int = 1, payoff: Any = None):
        self.map_name = map_name
        if payoff is None and map_name not in PAYOFFS:
            raise ConfigError(
                f"env_args.map_name: no matrix game is called '{map_name}'; known: "
                f"{', '.join(PAYOFFS)}.{nearest(map_name, PAYOFFS)} For a game of your own give "
                "its payoff in env_args.payoff."
            )
        self.payoff = check_payoff(PAYOFFS[map_name] if payoff is None else payoff)
        self.n_envs = int(n_envs)
        self.n_agents = self.payoff.ndim
        self.episode_limit = 1
        widths = np.array(self.payoff.shape)
        self._avail = (np.arange(widths.max()) < widths[:, None]).astype(np.int32)  # [n, A]
        self._finished = np.zeros(self.n_envs, dtype=bool)
        self._seed = 0

    def exact_statistics(self, policies: Sequence[np.ndarray]) -> dict[str, float]:
        """The expected return, and the share of each joint action, without sampling.

        policies: one distribution per agent, `[A_i]` or padded `[A]`. Keys: test_expected_return,
        test_joint_00, _01, ...
        """
        value, joint = self.payoff, np.ones(())
        for policy, n_actions in zip(policies, self.payoff.shape):
            policy = np.asarray(policy, dtype=np.float64)[:n_actions]
            value = np.tensordot(policy, value, axes=(0, 0))  # sums the leading agent out
            joint = np.multiply.outer(joint, policy)
        shares = {
            "test_joint_" + "".join(map(str, index)): float(share)
            for index, share in np.ndenumerate(joint)
        }
        return {"test_expected_return": float(value)} | shares

    def get_env_info(self) -> dict[str, int]:
        return {
            "state_shape": 1,
            "obs_shape": 1,
            "n_actions": self._avail.shape[1],
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def seed(self, seed: int) -> None:
        self._seed = int(seed)  # kept for get_rng; nothing in the game is random

    def get_rng(self) -> Any:
        return {"seed": self._seed}

    def set_rng(self, state: Any) -> None:
        self._seed = int(state["seed"])

    def reset(self) -> None:
        self._finished[:] = False

    def observe(self) -> dict[str, np.ndarray]:
        return {
            "state": np.ones((self.n_envs, 1), dtype=np.float32),
            "obs": np.ones((self.n_envs, self.n_agents, 1), dtype=np.float32),
            "avail_actions": np.tile(self._avail, (self.n_envs, 1, 1)),
        }

    def step(self, actions: np.ndarray) -> VectorStep:
        live = ~self._finished
        joint = np.asarray(actions)[live]  # [live, n]
        bad = (joint < 0) | (joint >= np.array(self.payoff.shape))
        if bad.any():
            row, agent = np.argwhere(bad)[0]
            raise ValueError(
                f"agent {agent} has {self.payoff.shape[agent]} actions; it cannot play "
                f"{joint[row, agent]}"
            )
        reward = np.zeros(self.n_envs, dtype=np.float32)
        reward[live] = self.payoff[tuple(joint.T)]
        self._finished[:] = True
        return VectorStep(
            reward=reward, terminated=live, truncated=np.zeros(self.n_envs, dtype=bool), info={}
        )
