"""Finite cooperative Markov games as arrays, and what a joint policy is worth in them.

Shapes: `S` states, `n` agents, agent `i` has `A_i` actions (numbers may differ), `*A` is short for
`A_1, ..., A_n`. A joint policy is a list of `n` arrays `[S, A_i]`, as is a behaviour policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any, Protocol

import numpy as np

from inspo.utils.errors import ConfigError, UserError

Policies = list[np.ndarray]

# Rows of probabilities may miss 1 by this much: rounding, not a mistake.
TOLERANCE = 1e-8


class GameError(UserError):
    """A game or a policy whose numbers cannot be right."""


class Sizes(Protocol):
    """What a game and a dataset of one have in common."""

    @property
    def n_states(self) -> int: ...
    @property
    def n_actions(self) -> tuple[int, ...]: ...


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
    ending: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def __post_init__(self) -> None:
        reward = _finite("reward", self.reward)
        if reward.ndim < 2:
            raise GameError(
                f"reward has shape {reward.shape}; expected [S, A_1, ..., A_n] with n >= 1"
            )
        transition = probabilities("transition", self.transition, (*reward.shape, len(reward)))
        ending = _finite("ending", self.ending)
        if ending.ndim == 0:
            ending = np.full(reward.shape, ending)
        if ending.shape != reward.shape or ending.min() < 0 or ending.max() > 1:
            raise GameError(
                f"ending must hold probabilities and have reward's shape {reward.shape}"
            )
        check_discount(self.gamma)
        for name, value in (("reward", reward), ("transition", transition), ("ending", ending)):
            object.__setattr__(self, name, value)

    @classmethod
    def matrix(cls, payoff: Any) -> Game:
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
        joint, actions = joint_policy(policies), ascii_lowercase[: self.n_agents]
        going_on = self.gamma * (1 - self.ending) * joint
        kernel = np.einsum(f"S{actions},S{actions}T->ST", going_on, self.transition)
        return (joint * self.reward).reshape(self.n_states, -1).sum(1), kernel


def joint_policy(policies: Policies) -> np.ndarray:
    """pi(a | s) = prod_i pi_i(a_i | s), `[S, *A]`."""
    actions = ascii_lowercase[: len(policies)]
    return np.einsum(",".join(f"S{a}" for a in actions) + f"->S{actions}", *policies)


def expect_others(q: np.ndarray, policies: Policies, agent: int) -> np.ndarray:
    """E_{a^{-i} ~ pi^{-i}} Q(s, a_i, a^{-i}), `[S, A_i]`, of a joint Q `[S, *A]` (below Eq. 5)."""
    actions = ascii_lowercase[: len(policies)]
    for j in reversed(range(len(policies))):
        if j != agent:
            rest = actions.replace(ascii_lowercase[j], "")
            q = np.einsum(f"S{actions},S{ascii_lowercase[j]}->S{rest}", q, policies[j])
            actions = rest
    return q


def expected_return(game: Game, policies: Policies, start: np.ndarray | None = None) -> float:
    """The exact discounted return of a joint policy from a start distribution `[S]` (uniform)."""
    reward, kernel = game.under(check_policies(game, policies))
    v = np.linalg.solve(np.eye(game.n_states) - kernel, reward)
    if start is None:
        return float(v.mean())
    return float(probabilities("start", start, (game.n_states,)) @ v)


# ---- checks --------------------------------------------------------------------------------------


def probabilities(name: str, array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`array` as float64, checked: the shape, no negative entries, sums of 1 on the last axis."""
    array = _finite(name, array)
    if array.shape != shape:
        raise GameError(f"{name} has shape {array.shape}; expected {shape}")
    if array.min() < 0:
        raise GameError(f"{name} has a negative probability: {array.min()}")
    sums = array.sum(-1)
    worst = np.abs(sums - 1).argmax()
    if abs(sums.flat[worst] - 1) > TOLERANCE:
        at = [int(k) for k in np.unravel_index(worst, sums.shape)]
        raise GameError(f"{name}{at} sums to {sums.flat[worst]}; probabilities must sum to 1")
    return array


def check_policies(
    of: Sizes, policies: Sequence[np.ndarray], name: str = "policy", mu: Policies | None = None
) -> Policies:
    """A joint policy for a game or its data, checked; with `mu` also that it stays in mu's support,
    outside which KL(pi || mu) is infinite."""
    if len(policies) != len(of.n_actions):
        raise GameError(f"{name} has {len(policies)} agents; the game has {len(of.n_actions)}")
    checked = [
        probabilities(f"{name}[{i}]", policy, (of.n_states, of.n_actions[i]))
        for i, policy in enumerate(policies)
    ]
    for i, (policy, behaviour) in enumerate(zip(checked, mu or checked)):
        outside = np.argwhere((policy > 0) & (behaviour == 0))
        if len(outside):
            state, action = (int(k) for k in outside[0])
            raise GameError(
                f"{name}[{i}] takes action {action} in state {state} with probability "
                f"{policy[state, action]}, but its behaviour probability is zero: the divergence "
                "KL(pi || mu) is infinite. Start from mu, or from a policy inside its support."
            )
    return checked


def check_discount(gamma: float) -> None:
    if not 0 <= gamma < 1:
        raise ConfigError(f"gamma is {gamma}; it must lie in [0, 1)")


def _finite(name: str, array: Any) -> np.ndarray:
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
