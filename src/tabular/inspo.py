"""InSPO on a known game, in closed form: Algorithm 1 of arXiv 2412.07639 with exact evaluation.

    V(s)      = E_pi[Q(s, a)] - sum_i alpha KL(pi_i || mu_i) + sum_i beta H(pi_i)       Eq. 10
    Q(s, a)   = r(s, a) + gamma E[V(s')]                                                Eq. 10
    pi_i(a_i) ~ mu_i(a_i) exp((E_{pi^-i} Q(s, a_i, .) - beta log mu_i(a_i)) / (alpha + beta))
                                                                                   Eqs. 12, 13

This form knows rewards and transitions; `tabular.in_sample` knows only a dataset.
Shapes as in `tabular.game`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from inspo.tabular.game import (
    Game,
    GameError,
    Policies,
    check_policies,
    check_temperatures,
    expect_others,
    joint_policy,
)
from inspo.utils.errors import ConfigError

Schedule = float | Callable[[int], float]
Order = str | Sequence[int] | Callable[[int], Sequence[int]]


class Values(NamedTuple):
    q: np.ndarray  # [S, *A]
    v: np.ndarray  # [S]


# ---- the regularised game ------------------------------------------------------------------------


def divergence(policy: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """KL(pi_i || mu_i) in every state, `[S]`; an action that pi does not take contributes 0."""
    return _sum_where_taken(policy, _log(policy) - _log(mu))


def entropy(policy: np.ndarray) -> np.ndarray:
    """H(pi_i) in every state, `[S]`."""
    return -_sum_where_taken(policy, _log(policy))


def regulariser(policy: np.ndarray, mu: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """What one agent pays in Eq. 10: alpha KL(pi_i || mu_i) - beta H(pi_i), `[S]`."""
    return alpha * divergence(policy, mu) - beta * entropy(policy)


def total_regulariser(
    policies: Policies, mu: Policies, alpha: float, beta: float,
    agents: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """The sum of the regularisers of `agents` (all of them), `[S]`."""
    agents = range(len(policies)) if agents is None else agents
    return sum(
        (regulariser(policies[i], mu[i], alpha, beta) for i in agents),
        start=np.zeros(len(policies[0])),
    )


def evaluate(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float,
    agents: Sequence[int] | None = None,
) -> Values:  # fmt: skip
    """The fixed point of Eq. 10 by one linear solve: (I - gamma P_pi) V = r_pi - regularisers.

    `agents` names those whose regulariser is paid: all in Eq. 10, agent i alone in Eqs. 14 and 24.
    """
    reward, kernel = game.under(policies)
    reward = reward - total_regulariser(policies, mu, alpha, beta, agents)
    v = np.linalg.solve(np.eye(game.n_states) - kernel, reward)
    return Values(game.backup(v), v)


def soft_value(
    q: np.ndarray, policies: Policies, mu: Policies, alpha: float, beta: float
) -> np.ndarray:
    """V of Eq. 10 from any Q `[S, *A]`: E_pi[Q] - regularisers, `[S]`."""
    expected = (joint_policy(policies) * q).reshape(len(q), -1).sum(1)
    return expected - total_regulariser(policies, mu, alpha, beta)


def evaluate_by_iteration(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float,
    q: np.ndarray | None = None, tol: float = 1e-12, limit: int = 1_000_000,
) -> Values:  # fmt: skip
    """The same by applying the operator of Eq. 10 until it moves Q by no more than `tol` (Lemma 2).

    The distance to the fixed point is then at most gamma / (1 - gamma) times `tol`.
    """
    q = np.zeros(game.reward.shape) if q is None else q
    for _ in range(limit):
        new = game.backup(soft_value(q, policies, mu, alpha, beta))
        moved, q = np.abs(new - q).max(), new
        if moved <= tol * max(1.0, np.abs(q).max()):
            return Values(q, soft_value(q, policies, mu, alpha, beta))
    raise GameError(f"policy evaluation still moved by {moved} after {limit} iterations")


# ---- the update ----------------------------------------------------------------------------------


def quantal_response(q: np.ndarray, mu: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Eq. 12 as printed, of a local Q `[S, A_i]`: mu exp((Q - beta log mu) / (alpha + beta)).

    In logarithms, so that a small temperature does not overflow. Stays inside mu's support.
    """
    inside = mu > 0
    log_mu = _log(mu)
    return _softmax(log_mu + (q - beta * log_mu) / (alpha + beta), inside)


def tempered_response(q: np.ndarray, mu: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The same, collected: mu^{alpha / (alpha + beta)} exp(Q / (alpha + beta)).

    A logit response at temperature alpha + beta to a *tempered* prior: beta flattens mu.
    """
    return _softmax((alpha * _log(mu) + q) / (alpha + beta), mu > 0)


def sweep(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float,
    order: Sequence[int], reevaluate: bool = False,
) -> Policies:  # fmt: skip
    """Lines 3 to 7 of Algorithm 1: evaluate, then update the agents one after the other (Eq. 13).

    Algorithm 1 evaluates once a sweep; `reevaluate` does it before every agent, which is what the
    local critics of Eq. 14 do (see docs/theory.md).
    """
    new = list(policies)
    q = evaluate(game, policies, mu, alpha, beta).q
    for i in order:
        if reevaluate:
            q = evaluate(game, new, mu, alpha, beta).q
        new[i] = quantal_response(expect_others(q, new, i), mu[i], alpha, beta)
    return new


def simultaneous(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float
) -> Policies:
    """All agents answer the old policies of the others at once: no part of InSPO, its ablation."""
    q = evaluate(game, policies, mu, alpha, beta).q
    return [
        quantal_response(expect_others(q, policies, i), mu[i], alpha, beta)
        for i in range(game.n_agents)
    ]


# ---- what the propositions speak of --------------------------------------------------------------


def qre_residual(game: Game, policies: Policies, mu: Policies, alpha: float, beta: float) -> float:
    """max over agents, states, actions of |pi_i - Eq. 12 of pi|; 0 at a QRE only (Prop. 3)."""
    answers = simultaneous(game, policies, mu, alpha, beta)
    return max(float(np.abs(new - old).max()) for new, old in zip(answers, policies))


def deviation_gain(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float
) -> np.ndarray:
    """What each agent would gain by its best one-step deviation, `[n, S]`; 0 at a QRE (Eq. 11).

    The objective of one agent is strictly concave in its own policy; what is missing to its maximum
    equals (alpha + beta) KL(pi_i || Eq. 12).
    """
    q = evaluate(game, policies, mu, alpha, beta).q
    gains = []
    for i, policy in enumerate(policies):
        local = expect_others(q, policies, i)
        answer = quantal_response(local, mu[i], alpha, beta)
        worth = [(p * local).sum(-1) - regulariser(p, mu[i], alpha, beta) for p in (policy, answer)]
        gains.append(worth[1] - worth[0])
    return np.array(gains)


@dataclass
class Trace:
    """What happened, entry k being the state before sweep k; the last entry is the result."""

    history: list[Policies] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)  # V of Eq. 10 at beta_k, [S] each
    residuals: list[float] = field(default_factory=list)  # QRE residual at beta_k
    betas: list[float] = field(default_factory=list)

    @property
    def policies(self) -> Policies:
        return self.history[-1]


def iterate(
    game: Game, mu: Sequence[np.ndarray], alpha: float, beta: Schedule = 0.0, *,
    sweeps: int = 100, order: Order = "random", initial: Sequence[np.ndarray] | None = None,
    update: str = "sequential", tol: float | None = None, seed: int = 0,
) -> Trace:  # fmt: skip
    """Algorithm 1 with exact evaluation, measured at every sweep.

    beta: a number, or a function of the sweep k.
    order: "random" (a permutation a sweep), one fixed order, or a function of the sweep.
    initial: pi^0; the behaviour policy where it is not given.
    update: "sequential", "reevaluated" (evaluation before every agent), or "simultaneous".
    tol: stop early once the QRE residual is no more than this.
    """
    mu = check_policies(game, mu, "mu")
    policies = mu if initial is None else check_policies(game, initial, "initial", mu)
    steps = {
        "sequential": lambda p, b, o: sweep(game, p, mu, alpha, b, o),
        "reevaluated": lambda p, b, o: sweep(game, p, mu, alpha, b, o, reevaluate=True),
        "simultaneous": lambda p, b, o: simultaneous(game, p, mu, alpha, b),
    }
    if update not in steps:
        raise ConfigError(f"update is {update!r}; expected one of {', '.join(steps)}")
    orders = draw_orders(order, game.n_agents, seed)
    trace = Trace()
    for k in range(sweeps + 1):
        beta_k = beta_at(beta, k, alpha)
        trace.history.append(policies)
        trace.betas.append(beta_k)
        trace.values.append(evaluate(game, policies, mu, alpha, beta_k).v)
        trace.residuals.append(qre_residual(game, policies, mu, alpha, beta_k))
        if k == sweeps or (tol is not None and trace.residuals[-1] <= tol):
            return trace
        policies = steps[update](policies, beta_k, orders(k))


def beta_at(beta: Schedule, k: int, alpha: float) -> float:
    """beta of sweep k, checked together with alpha."""
    beta = float(beta(k) if callable(beta) else beta)
    check_temperatures(alpha, beta)
    return beta


def decayed(beta: float, decay: float) -> Callable[[int], float]:
    """The schedule beta * decay^k."""
    return lambda k: beta * decay**k


def draw_orders(order: Order, n_agents: int, seed: int) -> Callable[[int], Sequence[int]]:
    """The order of agents of every sweep (line 4 of Algorithm 1), each checked."""
    rng = np.random.default_rng(seed)

    def at(k: int) -> Sequence[int]:
        if isinstance(order, str):
            if order != "random":
                raise ConfigError(f"order is {order!r}; expected 'random' or a list of agents")
            return rng.permutation(n_agents)
        drawn = order(k) if callable(order) else order
        if sorted(drawn) != list(range(n_agents)):
            raise ConfigError(f"order {list(drawn)} is no permutation of {n_agents} agents")
        return drawn

    return at


# ---- numerics ------------------------------------------------------------------------------------


def _log(p: np.ndarray) -> np.ndarray:
    """log p, and 0 where p is 0: such entries are masked by whoever uses it."""
    return np.log(np.where(p > 0, p, 1.0))


def _sum_where_taken(policy: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.where(policy > 0, policy * x, 0.0).sum(-1)


def _softmax(logits: np.ndarray, inside: np.ndarray) -> np.ndarray:
    logits = np.where(inside, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
