"""Finite cooperative Markov games as arrays, and what a joint policy is worth in them.

Shapes: `S` states, `n` agents, agent `i` has `A_i` actions (numbers may differ), `*A` is short for
`A_1, ..., A_n`. A joint policy is a list of `n` arrays `[S, A_i]`, as is a behaviour policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from inspo.utils.errors import ConfigError, UserError

Policies = list[np.ndarray]

# Rows of probabilities may miss 1 by this much: rounding, not a mistake.
TOLERANCE = 1e-8


class GameError(UserError):
    """A game or a policy whose numbers cannot be right."""


@dataclass(frozen=True)
class Game:
    """A cooperative Markov game (paper, section Background).

    transition: `[S, *A, S]`, P(s' | s, a); every row sums to 1.
    reward: `[S, *A]`, r(s, a), shared by all agents.
    gamma: discount factor in [0, 1).
    ending: `[S, *A]`, probability that play ends with this step (the paper has no ends; data do).
    """

    transition: np.ndarray
    reward: np.ndarray
    gamma: float
    ending: np.ndarray | None = None

    def __post_init__(self):
        reward = _finite("reward", self.reward)
        if reward.ndim < 2:
            raise GameError(
                f"reward has shape {reward.shape}; expected [S, A_1, ..., A_n] with n >= 1"
            )
        transition = probabilities("transition", self.transition, (*reward.shape, reward.shape[0]))
        ending = np.zeros(reward.shape) if self.ending is None else _finite("ending", self.ending)
        if ending.shape != reward.shape or ending.min() < 0 or ending.max() > 1:
            raise GameError(
                f"ending must hold probabilities and have reward's shape {reward.shape}"
            )
        check_discount(self.gamma)
        for name, value in (("reward", reward), ("transition", transition), ("ending", ending)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_joint(
        cls, transition: np.ndarray, reward: np.ndarray, n_actions: Sequence[int], gamma: float
    ) -> Game:
        """The same from a flattened joint action: transition `[S, J, S]`, reward `[S, J]`."""
        reward, n_states = np.asarray(reward), len(reward)
        if reward.shape != (n_states, np.prod(n_actions)):
            raise GameError(
                f"reward has shape {reward.shape}; expected [S, J] with J = {np.prod(n_actions)}, "
                f"the product of n_actions {tuple(n_actions)}"
            )
        shape = (n_states, *n_actions)
        if np.shape(transition) != (*reward.shape, n_states):
            raise GameError(
                f"transition has shape {np.shape(transition)}; expected {(*reward.shape, n_states)}"
            )
        transition = np.reshape(transition, (*shape, n_states))
        return cls(transition, reward.reshape(shape), gamma)

    @classmethod
    def matrix(cls, payoff: np.ndarray) -> Game:
        """A one-shot game with payoff tensor `[*A]`: one state, gamma 0."""
        payoff = _finite("payoff", payoff)
        return cls(np.ones((1, *payoff.shape, 1)), payoff[None], gamma=0.0)

    @property
    def n_states(self) -> int:
        return self.reward.shape[0]

    @property
    def n_actions(self) -> tuple[int, ...]:
        return self.reward.shape[1:]

    @property
    def n_agents(self) -> int:
        return len(self.n_actions)

    def backup(self, v: np.ndarray) -> np.ndarray:
        """r(s, a) + gamma E[V(s')], `[S, *A]`, of values `[S]` (first line of Eq. 10)."""
        return self.reward + self.gamma * (1 - self.ending) * (self.transition @ v)

    def under(self, policies: Policies) -> tuple[np.ndarray, np.ndarray]:
        """What a joint policy makes of the game: reward `[S]` and discounted kernel `[S, S]`."""
        joint = joint_policy(policies)
        agents = list(range(1, self.n_agents + 1))
        going_on = self.gamma * (1 - self.ending) * joint
        kernel = np.einsum(
            going_on, [0, *agents], self.transition, [0, *agents, self.n_agents + 1],
            [0, self.n_agents + 1],
        )  # fmt: skip
        return (joint * self.reward).reshape(self.n_states, -1).sum(1), kernel


def joint_policy(policies: Policies) -> np.ndarray:
    """pi(a | s) = prod_i pi_i(a_i | s), `[S, *A]`."""
    n = len(policies)
    factors = [x for i, policy in enumerate(policies) for x in (policy, [0, i + 1])]
    return np.einsum(*factors, list(range(n + 1)))


def expect_others(q: np.ndarray, policies: Policies, agent: int) -> np.ndarray:
    """E_{a^{-i} ~ pi^{-i}} Q(s, a_i, a^{-i}), `[S, A_i]`, of a joint Q `[S, *A]` (below Eq. 5)."""
    axes = list(range(q.ndim))
    for j in reversed(range(len(policies))):
        if j != agent:
            rest = [axis for axis in axes if axis != j + 1]
            q, axes = np.einsum(q, axes, policies[j], [0, j + 1], rest), rest
    return q


def expected_return(game: Game, policies: Policies, start: np.ndarray | None = None) -> float:
    """The exact discounted return of a joint policy from a start distribution `[S]` (uniform)."""
    policies = check_policies(game, policies)
    reward, kernel = game.under(policies)
    v = np.linalg.solve(np.eye(game.n_states) - kernel, reward)
    if start is None:
        return float(v.mean())
    return float(probabilities("start", start, (game.n_states,)) @ v)


def probabilities(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` as float64, checked: the shape, no negative entries, sums of 1 on the last axis."""
    array = _finite(name, array)
    if array.shape != shape:
        raise GameError(f"{name} has shape {array.shape}; expected {shape}")
    if array.min() < 0:
        raise GameError(f"{name} has a negative probability: {array.min()}")
    sums = array.sum(-1)
    worst = np.abs(sums - 1).argmax()
    if abs(sums.flat[worst] - 1) > TOLERANCE:
        at = tuple(int(k) for k in np.unravel_index(worst, sums.shape))
        raise GameError(f"{name}{list(at)} sums to {sums.flat[worst]}; probabilities must sum to 1")
    return array


def check_policies(
    game: Game, policies: Sequence[np.ndarray], name: str = "policy", mu: Policies | None = None
) -> Policies:
    """A joint policy for `game`, checked; with `mu` also that it stays inside mu's support."""
    if len(policies) != game.n_agents:
        raise GameError(f"{name} has {len(policies)} agents; the game has {game.n_agents}")
    checked = [
        probabilities(f"{name}[{i}]", policy, (game.n_states, game.n_actions[i]))
        for i, policy in enumerate(policies)
    ]
    if mu is not None:
        check_support(checked, mu, name)
    return checked


def check_support(policies: Policies, mu: Policies, name: str = "policy") -> None:
    """Fail where a policy takes an action that the behaviour policy never takes."""
    for i, (policy, behaviour) in enumerate(zip(policies, mu)):
        outside = np.argwhere((policy > 0) & (behaviour == 0))
        if len(outside):
            state, action = (int(k) for k in outside[0])
            raise GameError(
                f"{name}[{i}] takes action {action} in state {state} with probability "
                f"{policy[state, action]}, but its behaviour probability is zero: the divergence "
                "KL(pi || mu) is infinite. Start from mu, or from a policy inside its support."
            )


def check_discount(gamma: float) -> None:
    if not 0 <= gamma < 1:
        raise ConfigError(f"gamma is {gamma}; it must lie in [0, 1)")


def check_temperatures(alpha: float, beta: float) -> None:
    if not (alpha >= 0 and beta >= 0 and alpha + beta > 0 and np.isfinite(alpha + beta)):
        raise ConfigError(
            f"alpha is {alpha} and beta is {beta}; both must be finite and at least 0, and "
            "their sum, by which Eq. 12 divides, must be positive"
        )


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    try:
        array = np.asarray(array, dtype=float)
    except (TypeError, ValueError) as error:
        raise GameError(f"{name} is not an array of numbers: {error}") from None
    if array.size == 0:
        raise GameError(f"{name} is empty (shape {array.shape})")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = [int(k) for k in bad[0]]
        raise GameError(f"{name}{at} is {array[tuple(at)]}; every entry must be a finite number")
    return array
