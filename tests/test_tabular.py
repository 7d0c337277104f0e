"""InSPO in closed form: properties on random games, brute force beside it, the paper's games.

The tests named `test_paper_...` reproduce the counterexamples of docs/theory.md.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp

from inspo.tabular import in_sample, inspo
from inspo.tabular.game import Game, expect_others, expected_return, joint_policy
from inspo.tabular.in_sample import Dataset, Variant
from inspo.tabular.inspo import decayed, evaluate, quantal_response
from inspo.tabular.matrix_games import payoff_tensor
from inspo.tabular.paper_games import dataset, game
from inspo.utils.errors import DatasetError, UserError

ON_D = Variant(resampled_policy=False)  # Eq. 13 in place of Eq. 20
FULL = Variant(exponent=1.0, own_regulariser=False)  # Eq. 14's ratio, Eq. 10's regulariser
XOR, M_NE = payoff_tensor("xor"), payoff_tensor("m_ne")
PURE_A = np.array([[1.0, 0.0, 0.0]])
PURE_C = np.array([[0.0, 0.0, 1.0]])


# ---- random games --------------------------------------------------------------------------------


def random_policies(rng, n_states, n_actions, zeros=False):
    policies = [rng.dirichlet(np.ones(a), size=n_states) for a in n_actions]
    if zeros:  # each agent may lack an action somewhere
        for policy in policies:
            if policy.shape[1] > 1:
                policy[rng.integers(n_states), rng.integers(policy.shape[1])] = 0
                policy /= policy.sum(-1, keepdims=True)
    return policies


@st.composite
def problems(draw, min_agents=2, zeros=True):
    """A game, behaviour policies, alpha, beta, an order of agents."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_states = draw(st.integers(1, 3))
    n_actions = tuple(draw(st.lists(st.integers(2, 3), min_size=min_agents, max_size=3)))
    shape = (n_states, *n_actions)
    ending = rng.random(shape) * draw(st.sampled_from([0.0, 0.5]))
    problem = Game(
        rng.dirichlet(np.ones(n_states), size=shape),
        rng.normal(size=shape),
        draw(st.sampled_from([0.0, 0.5, 0.9])),
        ending,
    )
    mu = random_policies(rng, n_states, n_actions, zeros and draw(st.booleans()))
    alpha, beta = draw(st.sampled_from([(0.1, 0.0), (0.5, 0.2), (0.0, 0.5), (1.0, 1.0), (2.0, 0)]))
    return problem, mu, alpha, beta, rng.permutation(len(n_actions))


def by_property(examples=20):
    return settings(max_examples=examples, deadline=None, derandomize=True)


# ---- brute force: loops over states and joint actions --------------------------------------------


def brute_evaluate(g, policies, mu, alpha, beta, rounds=400):
    """Eq. 10 written out, iterated; Q as a dictionary."""
    states = range(g.n_states)
    joint = list(itertools.product(*map(range, g.n_actions)))
    q = {(s, a): 0.0 for s in states for a in joint}
    for _ in range(rounds):
        v = []
        for s in states:
            total = 0.0
            for a in joint:
                p = np.prod([policies[i][s, a[i]] for i in range(g.n_agents)])
                if p > 0:
                    charge = 0.0
                    for i in range(g.n_agents):
                        log_pi = np.log(policies[i][s, a[i]])
                        charge += alpha * (log_pi - np.log(mu[i][s, a[i]])) if alpha else 0.0
                        charge += beta * log_pi
                    total += p * (q[s, a] - charge)
            v.append(total)
        q = {
            (s, a): g.reward[(s, *a)]
            + g.gamma
            * (1 - g.ending[(s, *a)])
            * sum(g.transition[(s, *a, t)] * v[t] for t in states)
            for s in states
            for a in joint
        }
    return q, np.array(v)


def objective(pi, local, mu, alpha, beta):
    """Eq. 18 of one agent in one state."""
    pi, local, mu = (x[mu > 0] for x in (pi, local, mu))
    log_pi = np.log(np.maximum(pi, 1e-300))
    return pi @ (local - alpha * (log_pi - np.log(mu)) - beta * log_pi)


def numeric_argmax(local, mu, alpha, beta):
    """The maximiser of Eq. 18 in one state by a general optimiser over softmax logits."""
    inside = np.flatnonzero(mu > 0)

    def policy(logits):
        pi = np.zeros(len(mu))
        pi[inside] = np.exp(logits - logsumexp(logits))
        return pi

    starts = (np.zeros(len(inside)), local[inside], -local[inside])
    found = [
        minimize(lambda x: -objective(policy(x), local, mu, alpha, beta), start, tol=1e-12)
        for start in starts
    ]
    return policy(min(found, key=lambda result: result.fun).x)


@by_property(10)
@given(problems())
def test_evaluation_and_update_equal_brute_force(problem):
    g, mu, alpha, beta, order = problem
    if g.gamma > 0.5:
        g = Game(g.transition, g.reward, 0.5, g.ending)
    pi = [0.5 * m + 0.5 * (m > 0) / (m > 0).sum(-1, keepdims=True) for m in mu]
    q, v = brute_evaluate(g, pi, mu, alpha, beta, rounds=45)
    values = evaluate(g, pi, mu, alpha, beta)
    np.testing.assert_allclose(values.v, v, atol=1e-9)
    for (s, a), x in q.items():
        assert values.q[(s, *a)] == pytest.approx(x, abs=1e-9)
    i = int(order[0])
    new = inspo.sweep(g, pi, mu, alpha, beta, order)[i]
    for s in range(g.n_states):
        local = np.zeros(g.n_actions[i])
        for (t, a), x in q.items():
            if t == s:
                others = [pi[j][s, a[j]] for j in range(g.n_agents) if j != i]
                local[a[i]] += np.prod(others) * x
        of_eq_18 = (local, mu[i][s], alpha, beta)
        numeric = numeric_argmax(*of_eq_18)
        np.testing.assert_allclose(new[s], numeric, atol=1e-3)
        missing = objective(new[s], *of_eq_18) - objective(numeric, *of_eq_18)
        assert -1e-12 <= missing <= 1e-6  # the closed form is never below the optimiser


@by_property()
@given(problems(min_agents=1))
def test_linear_solve_equals_iteration(problem):
    g, mu, alpha, beta, _ = problem
    pi = [0.5 * m + 0.5 * (m > 0) / (m > 0).sum(-1, keepdims=True) for m in mu]
    q = np.zeros(g.reward.shape)
    for _ in range(250):
        expected = (joint_policy(pi) * q).reshape(g.n_states, -1).sum(1)
        v = expected - inspo.regulariser(pi, mu, alpha, beta)
        q = g.backup(v)
    exact = evaluate(g, pi, mu, alpha, beta)
    np.testing.assert_allclose(exact.q, q, atol=1e-9)
    np.testing.assert_allclose(exact.v, v, atol=1e-9)


@by_property()
@given(problems())
def test_reevaluation_makes_every_agent_monotone(problem):
    g, mu, alpha, beta, order = problem
    policies = list(mu)
    for i in [*order, *order]:
        q, v = evaluate(g, policies, mu, alpha, beta)
        policies[i] = quantal_response(expect_others(q, policies, i), mu[i], alpha, beta)
        assert (evaluate(g, policies, mu, alpha, beta).v >= v - 1e-9).all()


@by_property()
@given(problems())
def test_value_rises_in_every_state_by_exactly_the_divergence(problem):
    """Prop. 4, and how much: V_new - V_old = (I - gamma P_new)^-1 (alpha+beta) sum KL(old||new)."""
    g, mu, alpha, beta, order = problem
    policies = mu
    for _ in range(3):
        old = evaluate(g, policies, mu, alpha, beta)
        partial, gains = list(policies), np.zeros(g.n_states)
        for i in order:
            partial[i] = quantal_response(expect_others(old.q, partial, i), mu[i], alpha, beta)
            safe = np.maximum(partial[i], 1e-300)
            step = np.where(policies[i] > 0, policies[i], 1)
            gains += (alpha + beta) * (policies[i] * (np.log(step) - np.log(safe))).sum(-1)
            v = evaluate(g, partial, mu, alpha, beta).v
            assert (v >= old.v - 1e-9).all()  # any part of a sweep beats the start of the sweep
        _, kernel = g.under(partial)
        rise = np.linalg.solve(np.eye(g.n_states) - kernel, gains)
        np.testing.assert_allclose(v - old.v, rise, atol=1e-7)
        assert (evaluate(g, partial, mu, alpha, beta).q >= old.q - 1e-9).all()
        policies = inspo.sweep(g, policies, mu, alpha, beta, order)
        for whole, stepwise in zip(policies, partial):
            np.testing.assert_array_equal(whole, stepwise)


@by_property(12)
@given(problems(), st.integers(0, 99))
def test_residual_goes_to_zero(problem, seed):
    """Theorem 5, and that a zero residual is a QRE: no agent gains, and V is stationary."""
    g, mu, alpha, beta, _ = problem
    alpha = max(alpha, 0.3)
    trace = inspo.iterate(g, mu, alpha, beta, sweeps=4000, tol=1e-9, seed=seed)
    assert trace.residuals[-1] <= 1e-9
    assert (np.diff(np.array(trace.values), axis=0) >= -1e-9).all()
    # Finite differences: one agent's logits, in all states at once, move V by nothing.
    rng = np.random.default_rng(seed)
    value = evaluate(g, trace.policies, mu, alpha, beta).v
    for i, policy in enumerate(trace.policies):
        for eps in (1e-4, -1e-4):
            moved = policy * np.exp(eps * rng.normal(size=policy.shape))
            deviated = [*trace.policies]
            deviated[i] = moved / moved.sum(-1, keepdims=True)
            change = evaluate(g, deviated, mu, alpha, beta).v - value
            assert (change <= 1e-9).all() and (change >= -1e-5).all()


@by_property()
@given(problems(min_agents=1))
def test_return_of_a_policy_is_exact(problem):
    g, mu, _, _, _ = problem
    start = np.full(g.n_states, 1 / g.n_states)
    total, reached = 0.0, start
    for t in range(300):
        reward = (joint_policy(mu) * g.reward).reshape(g.n_states, -1).sum(1)
        total += g.gamma**t * reached @ reward
        going_on = joint_policy(mu) * (1 - g.ending)
        flow = (going_on[..., None] * g.transition).reshape(g.n_states, -1, g.n_states).sum(1)
        reached = reached @ flow
    assert expected_return(g, mu, start) == pytest.approx(total, abs=1e-9)
    assert expected_return(g, mu) == pytest.approx(total, abs=1e-9)


def test_orders_of_the_agents():
    seen = []
    inspo.iterate(game("xor"), UNIFORM, 1.0, sweeps=3, order=lambda k: seen.append(k) or [1, 0])
    assert seen == [0, 1, 2]
    random = inspo.draw_orders("random", 3, seed=0)
    assert len({tuple(random(k)) for k in range(60)}) == 6


# ---- the in-sample form --------------------------------------------------------------------------


def full_data(g: Game, mu, repeat=False) -> Dataset:
    """Every (s, a, s', done) of the game in exact proportion: states equally often, a ~ prod mu."""
    weights = (joint_policy(mu) / g.n_states)[..., None] * g.transition
    weights = np.stack([weights * (1 - g.ending[..., None]), weights * g.ending[..., None]], -1)
    rows = np.argwhere(weights > 0)
    at = tuple(rows.T)
    weight = weights[at]
    if repeat:  # the same distribution with every row cut in two
        rows, weight = np.repeat(rows, 2, axis=0), np.repeat(weight / 2, 2)
    n = g.n_agents
    state, action = rows[:, 0], rows[:, 1 : n + 1]
    return Dataset(
        state, action, g.reward[(state, *action.T)], rows[:, n + 1], rows[:, n + 2] == 1,
        g.n_actions, g.n_states, weight,
    )  # fmt: skip


@by_property()
@given(problems(), st.booleans())
def test_in_sample_equals_the_game_where_data_cover_it(problem, repeat):
    g, mu, alpha, beta, order = problem
    data = full_data(g, mu, repeat)
    for empirical, behaviour in zip(data.behaviour(), mu):
        np.testing.assert_allclose(empirical, behaviour, atol=1e-12)
    known, learnt = list(mu), list(mu)
    for _ in range(2):
        known = inspo.sweep(g, known, mu, alpha, beta, order, reevaluate=True)
        learnt = in_sample.sweep(data, learnt, mu, alpha, beta, order, g.gamma, FULL)
        for x, y in zip(known, learnt):
            np.testing.assert_allclose(x, y, atol=1e-7)
    # On such data Eq. 13 (on D) and Eq. 20 (on D_rho), Eq. 14's and Eq. 22's denominator agree.
    for i in range(g.n_agents):
        q = expect_others(evaluate(g, mu, mu, alpha, beta).q, mu, i)
        for variant in (
            FULL,
            Variant(1.0, own_regulariser=False, resampled_policy=False),
            Variant(1.0, own_regulariser=False, conditional=False),
        ):
            args = (data, mu, mu, i, alpha, beta, g.gamma, variant)
            np.testing.assert_allclose(
                np.where(mu[i] > 0, in_sample.local_q(*args), 0), np.where(mu[i] > 0, q, 0),
                atol=1e-8,
            )  # fmt: skip
            np.testing.assert_allclose(
                in_sample.update(*args), quantal_response(q, mu[i], alpha, beta), atol=1e-8
            )
        # Eq. 24 charges agent i alone
        own = expect_others(evaluate(g, mu, mu, alpha, beta, [i]).q, mu, i)
        printed = in_sample.local_q(data, mu, mu, i, alpha, beta, g.gamma, Variant(exponent=1.0))
        np.testing.assert_allclose(
            np.where(mu[i] > 0, printed, 0), np.where(mu[i] > 0, own, 0), atol=1e-8
        )


def brute_local_q(data, policies, mu, i, alpha, beta, gamma, exponent):
    """Eq. 24 iterated row by row on data that cover little."""
    rows = list(zip(data.state, data.action, data.reward, data.next_state, data.done, data.weight))
    others = [j for j in range(data.n_agents) if j != i]

    def ratio(s, a):
        same = [(w, b) for (t, b, _, _, _, w) in rows if t == s and b[i] == a[i]]
        both = sum(w for w, b in same if (b == a).all())
        p = np.prod([policies[j][s, a[j]] for j in others])
        return (p / (both / sum(w for w, _ in same))) ** exponent

    q = np.zeros((data.n_states, data.n_actions[i]))
    reg = [
        sum(
            p * (alpha * np.log(p / m) + beta * np.log(p))
            for p, m in zip(policies[i][s], mu[i][s])
            if p > 0
        )
        for s in range(data.n_states)
    ]
    for _ in range(60):
        v = (policies[i] * q).sum(-1) - reg
        top, bottom = np.zeros_like(q), np.zeros_like(q)
        for s, a, r, t, done, w in rows:
            top[s, a[i]] += w * ratio(s, a) * (r + gamma * (1 - done) * v[t])
            bottom[s, a[i]] += w * ratio(s, a)
        q = np.divide(top, bottom, out=np.zeros_like(q), where=bottom > 0)
    return q, bottom


@by_property(10)
@given(st.integers(0, 10**6), st.integers(2, 3))
def test_in_sample_equals_brute_force_on_sparse_data(seed, n_agents):
    rng = np.random.default_rng(seed)
    n_actions = tuple(rng.integers(2, 4, size=n_agents))
    rows = 14
    data = Dataset(
        np.arange(rows) % 2, rng.integers(0, n_actions, size=(rows, n_agents)),
        rng.normal(size=rows), rng.integers(0, 2, size=rows), rng.random(rows) < 0.3,
        n_actions, 2, rng.random(rows) + 0.1,
    )  # fmt: skip
    mu = data.behaviour()
    pi = [0.5 * m + 0.5 * (m > 0) / (m > 0).sum(-1, keepdims=True) for m in mu]
    for i in range(n_agents):
        q, mass = brute_local_q(data, pi, mu, i, 0.5, 0.2, 0.5, 1 / (n_agents - 1))
        args = (data, pi, mu, i, 0.5, 0.2, 0.5)
        np.testing.assert_allclose(in_sample.local_q(*args), q, atol=1e-9)
        inside = mu[i] > 0
        bonus = np.exp((q - 0.2 * np.log(np.where(inside, mu[i], 1))) / 0.7)
        weights = np.where(inside, mass * bonus, 0)  # Eq. 20: D_rho's mass times the weight
        np.testing.assert_allclose(
            in_sample.update(*args), weights / weights.sum(-1, keepdims=True), atol=1e-9
        )


def test_a_policy_that_vanished_leaves_finite_numbers():
    data = dataset("xor", "a")
    corner = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])]
    new = in_sample.sweep(data, corner, data.behaviour(), 0.1, 0.0, [0, 1])
    np.testing.assert_allclose(new[0], [[1, 0]], atol=1e-12)
    np.testing.assert_allclose(new[1], [[0, 1]], atol=1e-12)


# ---- the paper's games (algorithms.md 9.2) -------------------------------------------------------


def ends_at(name, quality, alpha, beta=0.0, sweeps=800, form="in_sample", order="random", **more):
    data = dataset(name, quality)
    if form == "game":
        g, mu = game(name), data.behaviour()
        policies = inspo.iterate(g, mu, alpha, beta, sweeps=sweeps, order=order, **more).policies
    else:
        policies = in_sample.iterate(data, alpha, beta, sweeps=sweeps, order=order, **more).policies
    return expected_return(game(name), policies)


@pytest.mark.parametrize(
    ("name", "quality", "expected"),
    [("xor", "a", 0), ("xor", "b", 2 / 9), ("xor", "c", 0),
     ("m_ne", "balanced", -85 / 9), ("m_ne", "imbalanced", -3.3)],
)  # fmt: skip
def test_behaviour_cloning_is_worth(name, quality, expected):
    mu = dataset(name, quality).behaviour()
    assert expected_return(game(name), mu) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("alpha", "beta", "form", "order", "expected"),
    [
        (0.1, 0, "game", [0, 1], 5),
        (0.1, 0, "in_sample", "random", 5),
        (0.1, 5, "game", "random", 5),
        (0.1, 5, "in_sample", [1, 0], 5),
        (0.1, 10, "game", [1, 0], 20),
        (0.1, 10, "in_sample", "random", 20),
        (2.0, 10, "game", [0, 1], 20),  # up to alpha = 2
        (2.0, 0, "game", "random", 5),
    ],
)
def test_entropy_escapes_on_m_ne_imbalanced(alpha, beta, form, order, expected):
    got = ends_at("m_ne", "imbalanced", alpha, decayed(beta, 0.99), form=form, order=order)
    assert got == pytest.approx(expected, abs=0.05)


def test_thresholds_of_beta():
    """Constant beta has its price. Under decay fixed orders escape from beta_0 = 8.30 (decay .99)
    and 9.35 (.9) on; of five random streams the worst needs 8.40 and 9.97."""

    def run(beta, order, sweeps=600, seed=0):
        return ends_at("m_ne", "imbalanced", 0.1, beta, sweeps, "game", order=order, seed=seed)

    found = [run(beta, [0, 1], 1500) for beta in (7.9, 7.95, 10, 15, 20)]
    assert found[0] < 0 and found[1] > 18.5  # the branch of A ends at 7.93
    assert found[2:] == pytest.approx([16.35, 2.07, -7.40], abs=0.01)
    for decay, below, above, worst in ((0.99, 8.28, 8.32, 8.40), (0.9, 9.32, 9.36, 9.97)):
        for order in ([0, 1], [1, 0]):
            assert run(decayed(below, decay), order) < 6
            assert run(decayed(above, decay), order) == pytest.approx(20, abs=0.1)
        beta = decayed(worst + 0.7, decay)
        assert all(run(beta, "random", seed=k) > 19.9 for k in range(3))


def test_ablation_without_entropy_depends_on_the_start():
    """Fig. 5a holds from pi^0 = mu; from a uniform start beta = 0 finds 20 up to alpha of 2.55."""
    uniform = [np.full((1, 3), 1 / 3)] * 2
    assert ends_at("m_ne", "imbalanced", 0.1, form="game") == pytest.approx(5)
    for alpha, expected in ((0.1, 20), (2.55, 20), (2.6, 5)):
        got = ends_at("m_ne", "imbalanced", alpha, form="game", initial=uniform, order=[0, 1])
        assert got == pytest.approx(expected, abs=0.01)


def test_m_ne_balanced_needs_no_entropy():
    for beta in (0, decayed(10, 0.99)):
        assert ends_at("m_ne", "balanced", 0.1, beta) == pytest.approx(20, abs=1e-6)
    assert ends_at("m_ne", "balanced", 5.0) == pytest.approx(19.95, abs=0.01)


@pytest.mark.parametrize(
    ("form", "quality", "alpha", "expected"),
    [("in_sample", "b", 0.1, 1.00), ("in_sample", "c", 0.1, 1.00), ("in_sample", "b", 0.3, 0.78),
     ("in_sample", "c", 0.3, 0.97), ("in_sample", "b", 0.5, 0.09), ("in_sample", "c", 0.5, 0.86),
     # Data that lack (B, B) cannot tell its payoff: away from alpha -> 0 the forms differ.
     ("game", "b", 0.3, 0.933), ("game", "b", 0.5, 0.762)],
)  # fmt: skip
def test_xor_from_data(form, quality, alpha, expected):
    got = ends_at("xor", quality, alpha, sweeps=100, form=form)
    assert got == pytest.approx(expected, abs=0.006)


# ---- statements that do not hold as printed (docs/theory.md) -------------------------------------


def test_paper_eq_25_has_the_wrong_sign():
    """min J(alpha) as printed raises alpha where KL is already too small, and lowers it where KL is
    too large: its only stationary point repels."""
    q, mu, target = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]), 0.18

    def kl(alpha):
        return float(inspo.divergence(quantal_response(q, mu, alpha, 0.0), mu)[0])

    for alpha in (0.2, 0.5, 1.0, 2.0):  # dKL/dalpha = -Var_pi(Q) / alpha^3 < 0
        p = quantal_response(q, mu, alpha, 0.0)[0, 0]
        numeric = (kl(alpha + 1e-5) - kl(alpha - 1e-5)) / 2e-5
        assert numeric == pytest.approx(-p * (1 - p) / alpha**3, rel=1e-4)

    def simulate(alpha, sign):
        for _ in range(3000):
            alpha = min(max(alpha - 0.1 * sign * (kl(alpha) - target), 1e-3), 50.0)
        return alpha

    balance = simulate(1.0, sign=-1)
    assert kl(balance) == pytest.approx(target, abs=1e-6)
    assert balance == pytest.approx(0.76, abs=0.01)
    for start in (0.1, 5.0):  # the corrected sign finds it from both sides
        assert simulate(start, sign=-1) == pytest.approx(balance, abs=1e-3)
    assert simulate(balance * 0.99, sign=+1) == 1e-3  # as printed: greedy
    assert simulate(balance * 1.01, sign=+1) > 30  # as printed: behaviour cloning


def test_paper_prop_8_a_sweep_is_no_argmax_over_joint_policies():
    g, mu = game("m_ne"), dataset("m_ne", "imbalanced").behaviour()
    potential = {}
    for name, pure in (("A", PURE_A), ("C", PURE_C)):
        trace = inspo.iterate(g, mu, 0.1, 0.0, initial=[pure, pure], sweeps=3)
        assert max(trace.residuals) < 1e-12  # both are fixed points, both are QREs
        potential[name] = trace.values[-1][0]
    assert potential["A"] == pytest.approx(5 - 0.2 * np.log(1 / 0.8))  # 4.96
    assert potential["C"] == pytest.approx(20 - 0.2 * np.log(1 / 0.1))  # 19.54


def test_paper_theorem_5_may_end_on_a_saddle():
    """Payoff 1 for equal actions, uniform data: uniform play is a QRE, worth .5, and Algorithm 1
    stays there; any tilt leaves it for a QRE worth 1."""
    g, mu = Game.matrix(np.eye(2)), [np.full((1, 2), 0.5)] * 2
    assert inspo.iterate(g, mu, 0.1, sweeps=50).residuals[-1] == 0
    tilted = [np.array([[0.5 + 1e-6, 0.5 - 1e-6]]), mu[1]]
    trace = inspo.iterate(g, mu, 0.1, sweeps=50, initial=tilted, order=[1, 0])
    assert expected_return(g, trace.policies) == pytest.approx(1, abs=1e-3)


def test_paper_exactly_balanced_xor_a_is_neutrally_stable():
    data, g = dataset("xor", "a"), game("xor")
    assert ends_at("xor", "a", 0.1) == 0
    # pi_1(A) becomes pi_2(B), whatever it is; then nothing moves any more.
    start = [np.array([[0.7, 0.3]]), np.array([[0.4, 0.6]])]
    trace = in_sample.iterate(data, 0.1, initial=start, sweeps=30, order=[0, 1])
    for policies in trace.history[1:]:
        np.testing.assert_allclose(policies[0], [[0.6, 0.4]], atol=1e-12)
        np.testing.assert_allclose(policies[1], [[0.4, 0.6]], atol=1e-12)
    assert ends_at("xor", "a", 0.1, form="game") == pytest.approx(1, abs=1e-3)  # knows (A, A)

    def sweeps_until(share, level, **variant):
        uneven = Dataset.one_shot(np.array([[0, share], [1 - share, 0]]), XOR)
        history = in_sample.iterate(
            uneven, 0.1, sweeps=120, order=[0, 1], variant=Variant(**variant)
        ).history
        returns = [expected_return(g, policies) for policies in history]
        return next((k for k, x in enumerate(returns) if x >= level), None)

    assert (sweeps_until(0.51, 0.95), sweeps_until(0.51, 0.995)) == (55, 84)
    assert (sweeps_until(0.53, 0.95), sweeps_until(0.53, 0.995)) == (19, 28)
    # The signal is in D_rho with the conditional ratio and nowhere else.
    assert sweeps_until(0.51, 0.1, resampled_policy=False) is None
    assert sweeps_until(0.51, 0.1, conditional=False) is None


def test_joint_kl_makes_balanced_xor_a_unstable_but_does_not_break_a_perfect_tie():
    data, g, joint = dataset("xor", "a"), game("xor"), Variant(joint_kl=1.0)
    assert ends_at("xor", "a", 0.1, variant=joint) == pytest.approx(0, abs=1e-9)
    for nudge in (1e-3, -1e-6):
        start = [np.array([[0.5 + nudge, 0.5 - nudge]]), np.full((1, 2), 0.5)]
        trace = in_sample.iterate(data, 0.1, initial=start, variant=joint, order=[1, 0])
        assert expected_return(g, trace.policies) == pytest.approx(1, abs=1e-6)
    # Averaged over D_rho's rows instead of pi^{-i}, the same term cancels the factor of D_rho.
    mu, start = data.behaviour(), [np.array([[0.7, 0.3]]), np.array([[0.4, 0.6]])]
    log_ratio = in_sample.log_ratio(data, start, 0)
    charged = Dataset(
        data.state, data.action, data.reward - 0.1 * log_ratio, data.next_state, data.done,
        data.n_actions, 1, data.weight,
    )  # fmt: skip
    np.testing.assert_allclose(in_sample.update(charged, start, mu, 0, 0.1, 0.0), [[0.5, 0.5]])
    for name, quality, value in (("xor", "b", 1), ("xor", "c", 1), ("m_ne", "imbalanced", 20)):
        got = ends_at(name, quality, 0.1, decayed(10, 0.99), variant=joint)
        assert got == pytest.approx(value, abs=1e-3)


def test_paper_eq_13_on_the_dataset_is_not_eq_20_on_the_resampled_one():
    """XOR (b) lacks (B, B): a_2 = B is always seen with a_1 = A and looks worth 1. Only D_rho takes
    that row away from agent 2 once agent 1 has left A."""
    assert ends_at("xor", "b", 0.1, sweeps=100, order=[0, 1]) == pytest.approx(1, abs=1e-3)
    got = ends_at("xor", "b", 0.1, sweeps=100, order=[0, 1], variant=ON_D)
    assert got == pytest.approx(-0.017, abs=0.001)


def test_paper_eq_14_needs_the_conditional_of_eq_22():
    """XOR (b), everybody plays mu = (2/3, 1/3): E Q(A, .) = 1/3. The product form says 1/2."""
    data = dataset("xor", "b")
    mu = data.behaviour()
    exact = in_sample.local_q(data, mu, mu, 0, 0.1, 0.0)
    product = in_sample.local_q(data, mu, mu, 0, 0.1, 0.0, variant=Variant(conditional=False))
    assert (exact[0, 0], product[0, 0]) == pytest.approx((1 / 3, 1 / 2))
    assert expect_others(game("xor").reward, mu, 0)[0, 0] == pytest.approx(1 / 3)


def test_paper_eq_22_index_of_the_predecessors():
    """Three agents, a_2 = a_3 always, a_1 free. Printed for i = 1: mu(a_j | s, a_1, a_{1:0})."""
    joint = np.zeros((2, 2, 2))
    joint[:, 0, 0] = joint[:, 1, 1] = 0.25
    printed = (joint[0].sum(1) / joint[0].sum())[0] * (joint[0].sum(0) / joint[0].sum())[0]
    data = Dataset.one_shot(joint, np.zeros((2, 2, 2)))
    assert data.conditional(0)[0, 0, 0, 0] == 0.5
    assert printed == 0.25


def test_paper_eq_23_exponent_breaks_monotonicity_and_prop_3():
    """With N = 3 the geometric mean is no importance ratio: Q_i is an expectation over teammates
    pi_j^(1/2) mu_j^(1/2), the value falls, and the limit is no QRE. Exponent 1 is right on both."""
    payoff = np.array([[[0, -1], [1, 0]], [[0, 1], [1, -1]]], dtype=float)
    data, g = Dataset.one_shot(np.full((2, 2, 2), 1 / 8), payoff), Game.matrix(payoff)
    mu = data.behaviour()
    falls = {}
    for exponent in (None, 1.0):
        pi, v = list(mu), [evaluate(g, mu, mu, 0.1, 0.0).v[0]]
        for i in range(3):
            pi[i] = in_sample.update(data, pi, mu, i, 0.1, 0.0, 0.0, Variant(exponent=exponent))
            v.append(evaluate(g, pi, mu, 0.1, 0.0).v[0])
        falls[exponent] = min(np.diff(v))
    assert falls[None] == pytest.approx(-0.153, abs=0.001)
    assert falls[1.0] >= 0
    # What the exponent does, exactly: teammates tempered towards their behaviour.
    pi = random_policies(np.random.default_rng(0), 1, (2, 2, 2))
    tempered = [np.sqrt(p * m) / np.sqrt(p * m).sum() for p, m in zip(pi, mu)]
    np.testing.assert_allclose(
        in_sample.local_q(data, pi, mu, 0, 0.1, 0.0), expect_others(payoff[None], tempered, 0)
    )
    # A limit that is no QRE: 1 if all three play B, uniform data, alpha = .3
    payoff = np.zeros((2, 2, 2))
    payoff[1, 1, 1] = 1
    data, g = Dataset.one_shot(np.full((2, 2, 2), 1 / 8), payoff), Game.matrix(payoff)
    residual = {}
    for exponent in (None, 1.0):
        trace = in_sample.iterate(
            data, 0.3, sweeps=500, tol=1e-13, variant=Variant(exponent=exponent)
        )
        residual[exponent] = inspo.qre_residual(g, trace.policies, mu, 0.3, 0.0)
    assert residual[None] > 0.01 and residual[1.0] < 1e-9


def test_paper_eq_24_own_regulariser_leaves_the_qre():
    """s_0: agent 1 stops for 1.44, or goes on to s_1, where agent 2 earns 0 or 2; gamma .9,
    alpha 1, mu uniform. Agent 2's best regularised play is worth log((1 + e^2) / 2) = 1.434, after
    discount 1.290 < 1.44: stopping is better (Eq. 9). A critic that does not charge agent 2 says
    1.585 > 1.44, goes on, and V of Eq. 10 falls."""
    transition = np.zeros((2, 2, 2, 2))
    transition[..., 1] = 1
    reward, ending = np.zeros((2, 2, 2)), np.ones((2, 2, 2))
    reward[0, 1], reward[1, :, 1], ending[0, 0] = 1.44, 2, 0
    g, mu = Game(transition, reward, 0.9, ending), [np.full((2, 2), 0.5)] * 2
    trace = inspo.iterate(g, mu, 1.0, sweeps=50, tol=1e-13)
    pi, v = list(trace.policies), trace.values[-1]
    assert v[1] == pytest.approx(np.log((1 + np.e**2) / 2)) and pi[0][0, 0] < 0.5
    own = in_sample.local_q(full_data(g, mu), pi, mu, 0, 1.0, 0.0, 0.9)
    assert own[0] == pytest.approx([1.5854, 1.44], abs=1e-4)
    pi[0] = quantal_response(own, mu[0], 1.0, 0.0)
    assert pi[0][0, 0] > 0.5
    assert evaluate(g, pi, mu, 1.0, 0.0).v[0] - v[0] == pytest.approx(-0.0109, abs=1e-4)


def test_paper_eq_14_evaluates_the_new_team_and_eq_13_the_old_one():
    """One state, gamma .9; agent 1 earns 1 or -1 as long as agent 2 goes on, which ends for 8. With
    Q of the start of the sweep, agent 2 stops although agent 1 has just made going on worth more:
    V falls between two agents of a sweep (and still ends above its start). With a critic that knows
    the new teammate, as the fixed point of Eq. 14 does, it goes on."""
    ending = np.array([[[0, 1.0], [0, 1.0]]])
    g = Game(np.ones((1, 2, 2, 1)), np.array([[[1.0, 8.0], [-1.0, 8.0]]]), 0.9, ending)
    mu = [np.full((1, 2), 0.5)] * 2
    v = [evaluate(g, mu, mu, 0.05, 0.0).v[0]]
    pi, q = list(mu), evaluate(g, mu, mu, 0.05, 0.0).q
    for i in (0, 1):
        pi[i] = quantal_response(expect_others(q, pi, i), mu[i], 0.05, 0.0)
        v.append(evaluate(g, pi, mu, 0.05, 0.0).v[0])
    assert v == pytest.approx([7.273, 8.119, 7.931], abs=1e-3)
    new = inspo.sweep(g, mu, mu, 0.05, 0.0, [0, 1], reevaluate=True)
    assert evaluate(g, new, mu, 0.05, 0.0).v[0] > 9


def test_paper_simultaneous_updates_lower_the_value():
    g, mu = game("xor"), dataset("xor", "b").behaviour()
    trace = inspo.iterate(g, mu, 0.1, blocks=1, sweeps=2)
    assert np.diff([v[0] for v in trace.values]).min() < -0.1


def test_paper_prop_3_bounds_single_actions_not_joint_ones():
    """XOR (b): every action is in the data, (B, B) is not, and every QRE plays it."""
    g, data = game("xor"), dataset("xor", "b")
    trace = inspo.iterate(g, data.behaviour(), 1.0, sweeps=200, tol=1e-12)
    assert trace.residuals[-1] <= 1e-12
    assert joint_policy(trace.policies)[0, 1, 1] == pytest.approx(0.087, abs=0.001)
    assert data.conditional(0)[0, 1, 1] == 0


def test_paper_eq_7_weights_the_states():
    """Two states share one policy; Q = (1, 0) in the first, (0, 0) in the second. The minimiser of
    the divergence is their mean; that of the weighted likelihood is weighted by
    Z(s) = E_mu exp(A / alpha) = exp(-KL(pi_new || mu))."""
    alpha, mu, q = 0.05, np.full((2, 2), 0.5), np.array([[1.0, 0], [0, 0]])
    new = quantal_response(q, mu, alpha, 0.0)
    advantage = q - (new * q).sum(-1, keepdims=True)
    weights = mu * np.exp(advantage / alpha)
    np.testing.assert_allclose(weights.sum(-1), np.exp(-inspo.divergence(new, mu)))
    current = (mu * np.exp((q - (mu * q).sum(-1, keepdims=True)) / alpha)).sum(-1)
    np.testing.assert_allclose(current, np.exp(inspo.divergence(mu, new)))  # Eq. 20's baseline

    def minimiser(loss):
        best = minimize(lambda x: loss(x - logsumexp(x)), np.zeros(2), tol=1e-10).x
        return np.exp(best - logsumexp(best))[0]

    assert minimiser(lambda log_pi: -(new * log_pi).sum()) == pytest.approx(0.75, abs=1e-4)
    assert minimiser(lambda log_pi: -(weights * log_pi).sum()) == pytest.approx(2 / 3, abs=1e-4)


def test_paper_eq_20_does_not_tend_to_mu_on_correlated_data():
    """XOR (b), alpha -> infinity: Eq. 12 gives mu = (2/3, 1/3). On D_rho, a_1 = B loses the share
    of a_2 = B, which is not in the data, so p = (2/3) / (2/3 + p/3), that is p = sqrt(3) - 1."""
    data = dataset("xor", "b")
    for variant, expected in ((Variant(), np.sqrt(3) - 1), (ON_D, 2 / 3)):
        pi = in_sample.iterate(data, 1e6, sweeps=100, variant=variant).policies
        assert pi[0][0, 0] == pytest.approx(expected, abs=1e-5)
        assert pi[1][0, 0] == pytest.approx(expected, abs=1e-5)


def test_paper_fig_5b_is_a_cycle_or_the_same_limit_as_sequential():
    """A limit of the simultaneous update is a fixed point of the sequential one."""
    data = dataset("xor", "b")
    for alpha in (0.1, 0.3):
        trace = in_sample.iterate(data, alpha, sweeps=300, blocks=1)
        assert trace.residuals[-1] > 0.8
    for alpha in (0.5, 1.0, 5.0):
        ends = [
            joint_policy(in_sample.iterate(data, alpha, sweeps=300, blocks=way).policies)
            for way in (2, 1)
        ]
        np.testing.assert_allclose(ends[0], ends[1], atol=1e-9)


# ---- bad input -----------------------------------------------------------------------------------


UNIFORM = [np.full((1, 2), 0.5)] * 2


def plays(*policy):
    return [UNIFORM[0], np.array([policy])]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Game.matrix([[1, np.nan], [0, 1]]), r"payoff\[0, 1\] is nan"),
        (lambda: Game.matrix([]), "empty"),
        (lambda: Game(np.ones((1, 2, 1)), np.zeros((1, 2, 2)), 0.0), r"transition has shape"),
        (lambda: Game(np.ones((1, 1)), np.zeros(3), 0.0), r"reward has shape \(3,\)"),
        (lambda: Game(np.full((1, 2, 2, 1), 0.9), np.zeros((1, 2, 2)), 0.0), "sums to 0.9"),
        (lambda: Game(np.ones((1, 2, 1)), np.zeros((1, 2)), float("nan")), "gamma is nan"),
        (
            lambda: Game(np.ones((1, 2, 1)), np.zeros((1, 2)), 0.0, np.full((1, 2), 2)),
            "ending must",
        ),
        (lambda: expected_return(game("xor"), UNIFORM[:1]), "1 agents; the game has 2"),
        (lambda: expected_return(game("m_ne"), UNIFORM), r"expected \(1, 3\)"),
        (lambda: expected_return(game("xor"), plays(0.5, 0.4)), r"policy\[1\]\[0\] sums to 0.9"),
        (lambda: expected_return(game("xor"), plays(1.5, -0.5)), "negative probability"),
        (
            lambda: inspo.iterate(game("xor"), plays(1, 0), 1.0, initial=UNIFORM),
            "probability is zero",
        ),
        (lambda: inspo.iterate(game("xor"), UNIFORM, 0.0, 0.0), "must be positive"),
        (lambda: inspo.iterate(game("xor"), UNIFORM, -1.0, 2.0), "at least 0"),
        (lambda: inspo.iterate(game("xor"), UNIFORM, 0.0, lambda k: 1.0 - k), "beta is 0.0"),
        (lambda: inspo.iterate(game("xor"), UNIFORM, 1.0, order=[0, 0]), "no permutation"),
        (lambda: inspo.iterate(game("xor"), UNIFORM, 1.0, blocks=3), "blocks is 3; 2 agents"),
        (lambda: dataset("xor", "d"), "no data 'd' of matrix/xor"),
        (lambda: in_sample.iterate(dataset("xor", "a"), 1.0, gamma=1.0), "gamma is 1.0"),
        (lambda: Dataset.one_shot(np.ones((2, 2)), XOR), "sums to 4.0"),
        (lambda: Dataset.one_shot(np.ones((2, 2)) / 4, M_NE), "differ"),
    ],
)
def test_bad_input_says_what_is_wrong(build, says):
    with pytest.raises(UserError, match=says):
        build()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": [0, 0]}, "no row starts in state 1"),
        ({"state": [0, 2]}, r"state ranges over 0\.\.2; expected 0\.\.1"),
        ({"state": [0.0, 1.0]}, "must hold integers"),
        ({"action": [[0], [0]]}, r"action has shape \(2, 1\)"),
        ({"next_state": [5, 0]}, "next_state ranges over 5"),
        ({"reward": [0.0, np.inf]}, r"reward\[1\] is inf"),
        ({"reward": [0.0]}, "reward has shape"),
        ({"weight": [1.0, 0.0]}, "weight must be positive"),
    ],
)
def test_bad_datasets_say_what_is_wrong(change, says):
    good = {
        "state": [0, 1], "action": [[0, 0], [1, 1]], "reward": [0.0, 1.0],
        "next_state": [1, 9], "done": [False, True], "n_actions": (2, 2), "n_states": 2,
    }  # fmt: skip
    Dataset(**good)
    with pytest.raises(DatasetError, match=says):
        Dataset(**(good | change))
