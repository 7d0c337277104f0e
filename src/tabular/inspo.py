"""InSPO on a known game, in closed form: Algorithm 1 of arXiv 2412.07639 with exact evaluation.

    V(s)      = E_pi[Q(s, a)] - sum_i alpha KL(pi_i || mu_i) + sum_i beta H(pi_i)       Eq. 10
    Q(s, a)   = r(s, a) + gamma E[V(s')]                                                Eq. 10
    pi_i(a_i) ~ mu_i(a_i) exp((E_{pi^-i} Q(s, a_i, .) - beta log mu_i(a_i)) / (alpha + beta))
                                                                                   Eqs. 12, 13

This form knows rewards and transitions; `tabular.in_sample` knows only a dataset, and shares the
response and the loop over sweeps. Shapes as in `tabular.game`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from inspo.tabular.game import Game, Policies, check_policies, expect_others
from inspo.utils.errors import ConfigError

Schedule = float | Callable[[int], float]
Order = str | Sequence[int] | Callable[[int], Sequence[int]]
Response = Callable[[Policies, int], np.ndarray]  # of one agent to a joint policy, `[S, A_i]`
TINY = math.exp(-700)  # still a double: a probability that vanished is held here


class Values(NamedTuple):
    q: np.ndarray  # [S, *A]
    v: np.ndarray  # [S]


# ---- the regularised game ------------------------------------------------------------------------


def divergence(policy: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """KL(pi_i || mu_i) in every state, `[S]`; an action that pi does not take contributes 0."""
    return np.where(policy > 0, policy * (_log(policy) - _log(mu)), 0.0).sum(-1)


def entropy(policy: np.ndarray) -> np.ndarray:
    """H(pi_i) in every state, `[S]`."""
    return -np.where(policy > 0, policy * _log(policy), 0.0).sum(-1)


def regulariser(
    policies: Policies, mu: Policies, alpha: float, beta: float,
    agents: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """What `agents` (all of them) pay in Eq. 10: sum_i alpha KL(pi_i || mu_i) - beta H(pi_i)."""
    total = np.zeros(len(policies[0]))
    for i in range(len(policies)) if agents is None else agents:
        total = total + (alpha * divergence(policies[i], mu[i]) - beta * entropy(policies[i]))
    return total


def evaluate(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float,
    agents: Sequence[int] | None = None,
) -> Values:  # fmt: skip
    """The fixed point of Eq. 10 by one linear solve: (I - gamma P_pi) V = r_pi - regularisers.

    `agents` names those whose regulariser is paid: all in Eq. 10, agent i alone in Eqs. 14 and 24.
    """
    reward, kernel = game.under(policies)
    reward = reward - regulariser(policies, mu, alpha, beta, agents)
    v = np.linalg.solve(np.eye(game.n_states) - kernel, reward)
    return Values(game.backup(v), v)


# ---- the update ----------------------------------------------------------------------------------


def quantal_response(
    q: np.ndarray, mu: np.ndarray, alpha: float, beta: float, log_weight: np.ndarray | float = 0.0
) -> np.ndarray:
    """Eq. 12 as printed, of a local Q `[S, A_i]`: mu exp((Q - beta log mu) / (alpha + beta)).

    That is a logit response at temperature alpha + beta to mu^{alpha / (alpha + beta)}: beta
    flattens mu. log_weight `[S, A_i]`: of a further factor. In logarithms, so that a small
    temperature does not overflow. Stays inside mu's support.
    """
    log_mu = _log(mu)
    logits = np.where(mu > 0, log_mu + (q - beta * log_mu) / (alpha + beta) + log_weight, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def split(order: Sequence[int], blocks: int | None) -> list[Sequence[int]]:
    """The agents of `order` in that many blocks, as equal as can be; None: a block an agent."""
    n = len(order)
    if blocks is None:
        blocks = n
    if not 1 <= blocks <= n:
        raise ConfigError(f"blocks is {blocks}; {n} agents can be in 1 to {n} blocks")
    return [order[k * n // blocks : (k + 1) * n // blocks] for k in range(blocks)]


def in_turn(response: Response, policies: Policies, blocks: Sequence[Sequence[int]]) -> Policies:
    """One block of agents after the other responds to the newest policies (Eq. 13, App. C.6).

    The agents of a block respond to the same policies.
    """
    new = list(policies)
    for block in blocks:
        for i, policy in [(i, response(new, i)) for i in block]:
            new[i] = policy
    return new


def at_once(response: Response, policies: Policies) -> Policies:
    """All agents respond to the old policies of the others: no part of InSPO, its ablation."""
    return in_turn(response, policies, [range(len(policies))])


def towards(old: np.ndarray, new: np.ndarray, step: float) -> np.ndarray:
    """The normalised geometric mean old^(1 - step) new^step of policies `[S, A_i]`."""
    logits = (1 - step) * np.log(np.maximum(old, TINY)) + step * np.log(np.maximum(new, TINY))
    weights = np.where(old > 0, np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def _response(
    game: Game, start: Policies | None, mu: Policies, alpha: float, beta: float
) -> Response:
    """Eq. 12 with the joint Q of the policies `start`; None: of those that are responded to."""
    fixed = None if start is None else evaluate(game, start, mu, alpha, beta).q

    def respond(policies: Policies, i: int) -> np.ndarray:
        q = evaluate(game, policies, mu, alpha, beta).q if fixed is None else fixed
        return quantal_response(expect_others(q, policies, i), mu[i], alpha, beta)

    return respond


def sweep(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float,
    order: Sequence[int], reevaluate: bool = False, blocks: int | None = None,
) -> Policies:  # fmt: skip
    """Lines 3 to 7 of Algorithm 1: evaluate, then update the agents one after the other (Eq. 13).

    Algorithm 1 evaluates once a sweep; `reevaluate` does it before every agent, which is what the
    local critics of Eq. 14 do (see docs/theory.md). blocks: see `split`.
    """
    start = None if reevaluate else policies
    return in_turn(_response(game, start, mu, alpha, beta), policies, split(order, blocks))


def simultaneous(
    game: Game, policies: Policies, mu: Policies, alpha: float, beta: float
) -> Policies:
    """One sweep `at_once`; its fixed points are those of `sweep`."""
    return at_once(_response(game, policies, mu, alpha, beta), policies)


def qre_residual(game: Game, policies: Policies, mu: Policies, alpha: float, beta: float) -> float:
    """max over agents, states, actions of |pi_i - Eq. 12 of pi|; 0 at a QRE only (Prop. 3)."""
    return _distance(simultaneous(game, policies, mu, alpha, beta), policies)


# ---- many sweeps ---------------------------------------------------------------------------------


@dataclass
class Trace:
    """What happened, entry k being the state before sweep k; the last entry is the result."""

    history: list[Policies] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)  # how far `at_once` moves, at beta_k
    betas: list[float] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)  # V of Eq. 10 at beta_k, [S] each

    @property
    def policies(self) -> Policies:
        return self.history[-1]


def repeat(
    policies: Policies, respond: Callable[[Policies, float], Policies],
    one_sweep: Callable[[Policies, float, Sequence[int]], Policies],
    alpha: float, beta: Schedule, sweeps: int, order: Order, tol: float | None, seed: int,
) -> Trace:  # fmt: skip
    """`sweeps` sweeps from `policies`, measured.

    respond: (policies, beta) -> what every agent would answer (`at_once`).
    one_sweep: (policies, beta, order) -> policies.
    """
    orders = draw_orders(order, len(policies), seed)
    trace = Trace()
    while True:
        k = len(trace.history)
        beta_k = float(beta(k) if callable(beta) else beta)
        if not (alpha >= 0 and beta_k >= 0 and 0 < alpha + beta_k < np.inf):
            raise ConfigError(
                f"alpha is {alpha} and beta is {beta_k}; both must be finite and at least 0, and "
                "their sum, by which Eq. 12 divides, must be positive"
            )
        trace.history.append(policies)
        trace.betas.append(beta_k)
        trace.residuals.append(_distance(respond(policies, beta_k), policies))
        if k == sweeps or (tol is not None and trace.residuals[-1] <= tol):
            return trace
        policies = one_sweep(policies, beta_k, orders(k))


def iterate(
    game: Game, mu: Sequence[np.ndarray], alpha: float, beta: Schedule = 0.0, *,
    sweeps: int = 100, order: Order = "random", initial: Sequence[np.ndarray] | None = None,
    blocks: int | None = None, reevaluate: bool = False, tol: float | None = None, seed: int = 0,
) -> Trace:  # fmt: skip
    """Algorithm 1 with exact evaluation, measured at every sweep.

    beta: a number, or a function of the sweep k.
    order: "random" (a permutation a sweep), one fixed order, or a function of the sweep.
    initial: pi^0; the behaviour policy where it is not given.
    blocks: how many blocks of agents move one after the other; None: a block an agent.
    reevaluate: evaluation before every agent.
    tol: stop early once the QRE residual is no more than this.
    """
    mu = check_policies(game, mu, "mu")
    policies = mu if initial is None else check_policies(game, initial, "initial", mu)

    trace = repeat(
        policies,
        lambda p, b: simultaneous(game, p, mu, alpha, b),
        lambda p, b, o: sweep(game, p, mu, alpha, b, o, reevaluate, blocks),
        alpha, beta, sweeps, order, tol, seed,
    )  # fmt: skip
    pairs = zip(trace.history, trace.betas)
    trace.values = [evaluate(game, policies, mu, alpha, b).v for policies, b in pairs]
    return trace


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
            return rng.permutation(n_agents).tolist()
        drawn = order(k) if callable(order) else order
        if sorted(drawn) != list(range(n_agents)):
            raise ConfigError(f"order {list(drawn)} is no permutation of {n_agents} agents")
        return drawn

    return at


def _log(p: np.ndarray) -> np.ndarray:
    """log p, and 0 where p is 0: callers mask such entries."""
    return np.log(np.where(p > 0, p, 1.0))


def _distance(new: Policies, old: Policies) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(new, old))
