"""InSPO in closed form from a dataset alone: Eqs. 14, 15, 20 to 24 of arXiv 2412.07639.

What the networks of the practical algorithm approximate, exactly: the behaviour policies are the
dataset's frequencies, resampling by the ratio rho is weighting by it (an expectation, no draws),
and every network is a table. For agent i in its turn

    rho(s, a)  = (pi^{-i}(a^{-i} | s) / mu(a^{-i} | s, a_i))^exponent                Eqs. 14, 22, 23
    Q_i(s, a_i) = E_{D_rho}[r + gamma V_i(s') | s, a_i]                              Eqs. 15, 24
    V_i(s)     = E_{pi_i}[Q_i(s, a_i)] - alpha KL(pi_i || mu_i) + beta H(pi_i)       Eqs. 14, 24
    pi_i(a_i | s) ~ D_rho(a_i | s) exp((Q_i - beta log mu_i(a_i)) / (alpha + beta))   Eq. 20

without the CQL term and without clipping. `M` rows; the other shapes as in `tabular.game`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq

from inspo.tabular.game import (
    Policies,
    check_discount,
    check_policies,
    expect_others,
    joint_policy,
    probabilities,
)
from inspo.tabular.inspo import (
    TINY,
    Order,
    Response,
    Schedule,
    Trace,
    at_once,
    in_turn,
    quantal_response,
    regulariser,
    repeat,
    split,
    towards,
)
from inspo.utils.errors import DatasetError


@dataclass(frozen=True)
class Dataset:
    """Transitions (s, a, r, s', done); episodes need not be whole, expectations are all we take.

    state `[M]`, action `[M, n]`, reward `[M]`, next_state `[M]`, done `[M]` (the next state of a
    finished step is not read), weight `[M]` (how much a row counts; 1 each).
    """

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_state: np.ndarray
    done: np.ndarray
    n_actions: tuple[int, ...]
    n_states: int
    weight: np.ndarray = field(default_factory=lambda: np.ones(()))

    def __post_init__(self) -> None:
        action = np.asarray(self.action)
        rows, n = len(action), len(self.n_actions)
        if rows == 0 or action.shape != (rows, n):
            raise DatasetError(
                f"action has shape {action.shape}; expected [M, n] with M >= 1 and n = {n} agents"
            )
        fields = {
            "state": np.asarray(self.state),
            "next_state": np.asarray(self.next_state),
            "reward": np.asarray(self.reward, dtype=float),
            "done": np.asarray(self.done, dtype=bool),
            "weight": np.asarray(self.weight, dtype=float),
        }
        if fields["weight"].ndim == 0:
            fields["weight"] = np.full(rows, fields["weight"])
        for name, value in fields.items():
            if value.shape != (rows,):
                raise DatasetError(f"{name} has shape {value.shape}; action has {rows} rows")
            if not np.isfinite(value).all():
                row = int(np.argmin(np.isfinite(value)))
                raise DatasetError(f"{name}[{row}] is {value[row]}; it must be finite")
        if fields["weight"].min() <= 0:
            raise DatasetError("every weight must be positive; leave rows out instead")
        _in_range("state", fields["state"], self.n_states)
        _in_range("next_state", fields["next_state"][~fields["done"]], self.n_states)
        for i, count in enumerate(self.n_actions):
            _in_range(f"action of agent {i}", action[:, i], count)
        unseen = np.setdiff1d(np.arange(self.n_states), fields["state"])
        if len(unseen):
            raise DatasetError(
                f"no row starts in state {int(unseen[0])}: neither a behaviour policy nor a value "
                "is known there. Number only the states that have rows, and mark the last step of "
                "an episode as done."
            )
        fields["action"] = action.astype(int)
        fields["next_state"] = np.where(fields["done"], 0, fields["next_state"])
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def one_shot(cls, frequency: np.ndarray, payoff: np.ndarray) -> Dataset:
        """A one-state game's data as exact frequencies `[*A]`; joint actions of frequency 0 are
        absent, and so is their payoff."""
        payoff = np.asarray(payoff, dtype=float)
        frequency = np.asarray(frequency, dtype=float)
        if frequency.shape != payoff.shape:
            raise DatasetError(f"frequency {frequency.shape} and payoff {payoff.shape} differ")
        probabilities("frequency", frequency.reshape(-1), (frequency.size,))
        action = np.argwhere(frequency > 0)
        at = tuple(action.T)
        return cls.one_step(action, frequency[at], payoff[at], frequency.shape)

    @classmethod
    def one_step(
        cls, action: np.ndarray, frequency: np.ndarray, reward: np.ndarray,
        n_actions: tuple[int, ...],
    ) -> Dataset:  # fmt: skip
        """The same from the joint actions that occur, int `[M, n]`, with their positive
        frequencies `[M]` and rewards `[M]`."""
        zeros = np.zeros(len(action), dtype=int)
        return cls(
            state=zeros, action=action, reward=reward, next_state=zeros, done=zeros == 0,
            n_actions=n_actions, n_states=1, weight=frequency,
        )  # fmt: skip

    @property
    def n_agents(self) -> int:
        return len(self.n_actions)

    def own(self, agent: int) -> np.ndarray:
        """Index of (s, a_i) of every row, `[M]`, into a raveled `[S, A_i]`."""
        return self.state * self.n_actions[agent] + self.action[:, agent]

    def total(self, agent: int, x: np.ndarray) -> np.ndarray:
        """Sum of the row values `x` over the rows of every (s, a_i), `[S, A_i]`."""
        shape = (self.n_states, self.n_actions[agent])
        return np.bincount(self.own(agent), x, shape[0] * shape[1]).reshape(shape)

    def behaviour(self) -> Policies:
        """The empirical mu_i(a_i | s), list of `[S, A_i]`: what Eq. 21 (cloning) finds."""
        counts = [self.total(i, self.weight) for i in range(self.n_agents)]
        return [c / c.sum(-1, keepdims=True) for c in counts]

    def joint(self) -> np.ndarray:
        """The weight of every (s, a), `[S, *A]`."""
        joint = np.zeros((self.n_states, *self.n_actions))
        np.add.at(joint, (self.state, *self.action.T), self.weight)
        return joint

    def log_conditional(self, agent: int) -> np.ndarray:
        """log mu(a^{-i} | s, a_i) of every row, `[M]`: what Eq. 22 finds."""
        own = self.total(agent, self.weight).reshape(-1)[self.own(agent)]
        return np.log(self.joint()[(self.state, *self.action.T)] / own)

    def conditional(self, agent: int) -> np.ndarray:
        """The same for all joint actions, `[S, *A]`; 0 where (s, a_i) has no rows."""
        joint = self.joint()
        others = tuple(j + 1 for j in range(self.n_agents) if j != agent)
        own = joint.sum(others, keepdims=True)
        return np.divide(joint, own, out=np.zeros_like(joint), where=own > 0)


@dataclass(frozen=True)
class Variant:
    """Where the paper leaves a choice or contradicts itself. The defaults are what it prints.

    exponent: of the ratio; None is 1 / (N - 1), Eq. 23, 1.0 is Eq. 14, and 0.0 is no ratio.
    share: a deviation from the paper. The exponent is the largest one up to `exponent` with which
        the effective sample of D_rho is at least this share of the data.
    td_lambda: the target is the TD(lambda) return of Markov data (0: one step, Eq. 24).
    conditional: the ratio's denominator is mu(a^{-i} | s, a_i), Eq. 22; False takes the product
        of the mu_j, which is what Eq. 14 prints if mu factorises.
    own_regulariser: a local critic is charged for its own agent alone, Eqs. 14 and 24; False
        charges for every agent, as Eq. 10 does.
    resampled_policy: the policy is fitted on D_rho, Eq. 20; False fits it on D, Eq. 13.
    joint_kl: a deviation from the paper. This many times alpha KL(pi^{-i} || mu(. | s, a_i)) is
        taken off the target: what KL(pi || mu) holds beyond KL(pi_i || mu_i).
    joint_kl_floor: log mu of a joint action that the data lack, for that term.
    """

    exponent: float | None = None
    share: float = 0.0
    td_lambda: float = 0.0
    conditional: bool = True
    own_regulariser: bool = True
    resampled_policy: bool = True
    joint_kl: float = 0.0
    joint_kl_floor: float = -23.0


PAPER = Variant()


def effective_share(data: Dataset, log_rho: np.ndarray) -> float:
    """The effective sample of D_rho as a share of the data, (sum w rho)^2 / (sum w sum w rho^2).

    log_rho `[M]`; w are the rows' weights.
    """
    rho = np.exp(log_rho - log_rho.max())
    first, second = data.weight @ rho, data.weight @ rho**2
    return float(first**2 / (second * data.weight.sum()))


def log_ratio(
    data: Dataset, policies: Policies, agent: int, variant: Variant = PAPER
) -> np.ndarray:
    """log rho of every row, `[M]` (Eqs. 14, 23)."""
    others = [j for j in range(data.n_agents) if j != agent]
    if not others:
        return np.zeros(len(data.state))

    def log_taken(joint: Policies) -> np.ndarray:
        """log prod_j pi_j(a_j | s) of the others' actions in the rows, each factor floored."""
        taken = [joint[j].reshape(-1)[data.own(j)] for j in others]
        return np.log(np.maximum(taken, TINY)).sum(0)

    if variant.conditional:
        denominator = data.log_conditional(agent)
    else:
        denominator = log_taken(data.behaviour())
    exponent = 1 / len(others) if variant.exponent is None else variant.exponent
    full = log_taken(policies) - denominator
    if effective_share(data, exponent * full) >= variant.share:
        return exponent * full
    # The effective sample falls with the exponent (its logarithm is 2 K(p) - K(2p), K convex).
    root = brentq(lambda p: effective_share(data, p * full) - variant.share, 0.0, exponent)
    return float(root) * full


def local_q(
    data: Dataset, policies: Policies, mu: Policies, agent: int,
    alpha: float, beta: float, gamma: float = 0.0, variant: Variant = PAPER,
) -> np.ndarray:  # fmt: skip
    """The fixed point of Eq. 24 (no CQL term), `[S, A_i]`, by one linear solve.

    Row m has the target y_m = r_m + gamma (C y - regulariser)(s'_m). In state s, C y is
    E_{pi_i} Q_i = P y for lambda = 0, the mean of y over the data B y for lambda = 1, and in
    between (1 - lambda) P y + lambda B y: the TD(lambda) return, on whose trace the regulariser is
    paid at every step. 0 for an action that the data lack in a state: the policy cannot take it,
    nothing reads it.
    """
    states, own = data.n_states, data.own(agent)
    # The share of a row among the rows of its (s, a_i) in D_rho: each (s, a_i) sums to 1.
    mass = data.weight * _shifted_ratio(data, policies, agent, variant)[0]
    share = mass / data.total(agent, mass).reshape(-1)[own]
    reward, going_on = data.reward, gamma * ~data.done
    if variant.joint_kl:
        charge = variant.joint_kl * alpha * _others_kl(data, policies, agent, variant)
        reward = reward - charge.reshape(-1)[own]
    charged = [agent] if variant.own_regulariser else None
    reward = reward - going_on * regulariser(policies, mu, alpha, beta, charged)[data.next_state]
    # Rows -> states: the operator C, and what C y of the next state adds to it.
    of_state = np.bincount(data.state, data.weight, states)[data.state]
    c = (1 - variant.td_lambda) * policies[agent].reshape(-1)[own] * share
    c = c + variant.td_lambda * data.weight / of_state
    kernel = np.bincount(
        data.state * states + data.next_state, c * going_on, states * states
    ).reshape(states, states)
    x = np.linalg.solve(np.eye(states) - kernel, np.bincount(data.state, c * reward, states))
    return data.total(agent, share * (reward + going_on * x[data.next_state]))


def update(
    data: Dataset, policies: Policies, mu: Policies, agent: int,
    alpha: float, beta: float, gamma: float = 0.0, variant: Variant = PAPER,
) -> np.ndarray:  # fmt: skip
    """The new policy of one agent, `[S, A_i]`: the minimiser of Eq. 20 over all tables.

    A weighted log-likelihood is maximal at the normalised weights: the mass of (s, a_i) in D_rho
    times exp((Q_i - beta log mu_i) / (alpha + beta)). The baseline of the advantage cancels.
    """
    q = local_q(data, policies, mu, agent, alpha, beta, gamma, variant)
    if not variant.resampled_policy:
        return quantal_response(q, mu[agent], alpha, beta)
    # D_rho(a_i | s) ~ mu_i(a_i | s) E_{mu(a^-i | s, a_i)}[rho]
    rho, largest = _shifted_ratio(data, policies, agent, variant)
    total, mass = data.total(agent, data.weight), data.total(agent, data.weight * rho)
    mean = np.divide(mass, total, out=np.ones_like(mass), where=total > 0)
    return quantal_response(q, mu[agent], alpha, beta, largest + np.log(mean))


def sweep(
    data: Dataset, policies: Policies, mu: Policies, alpha: float, beta: float,
    order: Sequence[int], gamma: float = 0.0, variant: Variant = PAPER, blocks: int | None = None,
) -> Policies:  # fmt: skip
    """One block of agents after the other, with critics fitted to the policies of its turn.

    blocks: None is a block an agent (Algorithm 1); 1 is all agents at once, each against the old
    policies of the others ("w/o SPO", Fig. 5b).
    """
    response = _response(data, mu, alpha, beta, gamma, variant)
    return in_turn(response, policies, split(order, blocks))


def _response(
    data: Dataset, mu: Policies, alpha: float, beta: float, gamma: float, variant: Variant
) -> Response:
    return lambda policies, i: update(data, policies, mu, i, alpha, beta, gamma, variant)


def iterate(
    data: Dataset, alpha: float, beta: Schedule = 0.0, *, gamma: float = 0.0, sweeps: int = 100,
    order: Order = "random", initial: Sequence[np.ndarray] | None = None,
    blocks: int | None = None, step: float = 1.0, variant: Variant = PAPER,
    tol: float | None = None, seed: int = 0,
) -> Trace:  # fmt: skip
    """The practical algorithm in closed form, from pi^0 = mu unless `initial` says otherwise.

    blocks: see `sweep`. step: in (0, 1], how far an agent goes in its turn from its policy to its
    response, in log-probabilities; 1 is the paper's update, a small one is that of networks which
    take one small step a turn. The other arguments are those of `inspo.iterate`. The trace's values
    stay empty: a dataset that does not cover the game does not know V.
    """
    check_discount(gamma)
    mu = data.behaviour()
    policies = mu if initial is None else check_policies(data, initial, "initial", mu)

    def respond(beta: float) -> Response:
        response = _response(data, mu, alpha, beta, gamma, variant)
        if step == 1:
            return response
        return lambda policies, i: towards(policies[i], response(policies, i), step)

    return repeat(
        policies,
        lambda p, b: at_once(_response(data, mu, alpha, b, gamma, variant), p),
        lambda p, b, o: in_turn(respond(b), p, split(o, blocks)),
        alpha, beta, sweeps, order, tol, seed,
    )  # fmt: skip


def _shifted_ratio(
    data: Dataset, policies: Policies, agent: int, variant: Variant
) -> tuple[np.ndarray, np.ndarray]:
    """rho over the largest rho of its (s, a_i), `[M]`, and the log of that largest, `[S, A_i]`
    (-inf for an action without rows)."""
    log_rho = log_ratio(data, policies, agent, variant)
    largest = np.full((data.n_states, data.n_actions[agent]), -np.inf)
    np.maximum.at(largest.reshape(-1), data.own(agent), log_rho)
    return np.exp(log_rho - largest.reshape(-1)[data.own(agent)]), largest


def _others_kl(data: Dataset, policies: Policies, agent: int, variant: Variant) -> np.ndarray:
    """KL(pi^{-i} || mu(. | s, a_i)), `[S, A_i]`, over all joint actions, floored where unseen."""
    log_mu = np.log(np.maximum(data.conditional(agent), np.exp(variant.joint_kl_floor)))
    others = list(policies)
    others[agent] = np.ones_like(policies[agent])
    probability = joint_policy(others)
    log_pi = np.log(np.where(probability > 0, probability, 1.0))
    return expect_others(log_pi - log_mu, policies, agent)


def _in_range(name: str, index: np.ndarray, count: int) -> None:
    if index.dtype.kind not in "iu":
        raise DatasetError(f"{name} must hold integers, not {index.dtype}")
    if len(index) and (index.min() < 0 or index.max() >= count):
        raise DatasetError(
            f"{name} ranges over {index.min()}..{index.max()}; expected 0..{count - 1}"
        )
