"""One-step cooperative games: those of `tabular.matrix_games`, or any payoffs of your own.

Every agent sees the same constant observation `[1.]`, and so is the state: the game has one state
and nothing to see. Agents are told apart by the harness (agent id, or one network per agent), not
by the game.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inspo.envs.multiagentenv import VectorEnv, VectorStep, available
from inspo.tabular.matrix_games import joint_actions, payoff_tensor
from inspo.utils.errors import ConfigError

KEY = "env_args.payoff"
MAX_JOINT_SHARES = 81  # joint actions whose probabilities are logged one by one


def check_payoff(payoff: Any) -> np.ndarray:
    """The payoff tensor float64 `[A_1, ..., A_n]` of a nested list; ConfigError if it is none."""
    try:
        tensor = np.array(payoff, dtype=np.float64)
        whole = tensor.ndim > 0 and tensor.size > 0
    except (ValueError, TypeError):  # numpy refuses ragged lists and texts alike
        whole = False
    if not whole:
        raise ConfigError(
            f"{KEY}: expected a nested list of numbers, one level of nesting per agent, in "
            f"which all lists of one level are equally long and none is empty; found {payoff!r}. "
            "Write a game in which an agent has fewer actions as a rectangular tensor, "
            "[[1, 2, 3], [4, 5, 6]] for 2 x 3."
        )
    if not np.isfinite(tensor).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(tensor))[0]]
        raise ConfigError(
            f"{KEY}: expected finite numbers; the payoff of the joint action {where} is "
            f"{tensor[tuple(where)]}."
        )
    return tensor


def tabulate(
    payoff: Callable[[np.ndarray], np.ndarray], n_actions: Sequence[int] | None
) -> np.ndarray:
    """The payoff tensor of a function; ConfigError unless it gives a number for every row."""
    if not n_actions or min(n_actions) < 1:
        raise ConfigError(
            f"{KEY}: a function needs n_actions beside it, the number of actions of each agent, "
            f"such as [2, 2, 2]; found {n_actions}."
        )
    actions = joint_actions(n_actions)
    values = np.asarray(payoff(actions))
    if values.shape != (len(actions),) or values.dtype.kind not in "iufb":
        raise ConfigError(
            f"{KEY}: expected a function from joint actions [M, {len(n_actions)}] to numbers [M]; "
            f"for M = {len(actions)} it gave {values.dtype} {list(values.shape)}."
        )
    return values.reshape(tuple(n_actions))


class MatrixVectorEnv(VectorEnv):
    """N copies of a one-step game: all agents act once, all get `payoff[a_1, ..., a_n]`.

    map_name: a shipped game, or, where `payoff` is given, the label of that game.
    payoff: nested list `[A_1, ..., A_n]`, one level per agent; or a function from joint actions
    int `[M, n]` to numbers `[M]`, with `n_actions`, the number of actions of each agent; None for
    the shipped one. Agents with fewer actions than others have the missing ones unavailable.
    """

    def __init__(
        self,
        map_name: str = "xor",
        n_envs: int = 1,
        payoff: Any = None,
        n_actions: Sequence[int] | None = None,
    ):
        self.map_name = map_name
        if payoff is None:
            payoff = payoff_tensor(map_name)
        elif callable(payoff):
            payoff = tabulate(payoff, n_actions)
        self.payoff = check_payoff(payoff)
        self.n_envs = int(n_envs)
        self.n_agents = self.payoff.ndim
        self.state_shape = self.obs_shape = self.episode_limit = 1
        widths = np.array(self.payoff.shape)
        self._avail = (np.arange(widths.max()) < widths[:, None]).astype(np.int32)  # [n, A]
        self.n_actions = self._avail.shape[1]
        self._finished = np.zeros(self.n_envs, dtype=bool)

    def exact_statistics(self, joint: np.ndarray) -> dict[str, float]:
        """The expected return, and what is played how often, without sampling.

        joint: the probability of every joint action, `[A_1, ..., A_n]` or padded `[A, ..., A]`.
        Keys: test_expected_return; test_joint_00, _01, ..., the share of each joint action, if
        there are at most 81 of them; and test_policy_agent0_0, ..., the probability of each action
        of each agent, if there are more, or more than two agents.
        """
        joint = np.asarray(joint, dtype=np.float64)[tuple(map(slice, self.payoff.shape))]
        told = {"test_expected_return": float((joint * self.payoff).sum())}
        many = joint.size > MAX_JOINT_SHARES
        if not many:
            told |= {
                "test_joint_" + "".join(map(str, index)): float(share)
                for index, share in np.ndenumerate(joint)
            }
        if many or self.n_agents > 2:
            for agent in range(self.n_agents):
                others = tuple(i for i in range(self.n_agents) if i != agent)
                told |= {
                    f"test_policy_agent{agent}_{action}": float(share)
                    for action, share in enumerate(joint.sum(others))
                }
        return told

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
        avail = np.broadcast_to(self._avail, (self.n_envs, *self._avail.shape))
        joint = available(actions, avail, live)[live]  # [live, n]
        reward = np.zeros(self.n_envs, dtype=np.float32)
        reward[live] = self.payoff[tuple(joint.T)]
        self._finished[:] = True
        return VectorStep(
            reward=reward, terminated=live, truncated=np.zeros(self.n_envs, dtype=bool), info={}
        )
