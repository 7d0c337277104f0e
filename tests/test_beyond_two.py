"""InSPO with more than two agents, in closed form: what Eq. 23 breaks, and what mends it."""

from __future__ import annotations

import numpy as np
import pytest

from inspo.components.schedules import hold_decay
from inspo.experiments.entries import Entry
from inspo.tabular import in_sample
from inspo.tabular.game import expected_return, joint_policy
from inspo.tabular.in_sample import Dataset, Variant
from inspo.tabular.paper_games import dataset, game
from paper import beyond_two
from paper.reader import read_file, read_table

GEOMETRIC, FULL, JOINT = Variant(), Variant(exponent=1.0), Variant(exponent=1.0, joint_kl=1.0)


def end(name, quality, variant, alpha=0.1, beta=0.0, sweeps=60, blocks=None):
    """The return after `sweeps` sweeps from mu, the last agent a thousandth to one side."""
    data = dataset(name, quality)
    start = data.behaviour()
    start[-1] = start[-1] + np.array([1e-3, *[0.0] * (start[-1].shape[1] - 2), -1e-3])
    trace = in_sample.iterate(
        data, alpha, lambda k: hold_decay(beta, 0.01, 0.25, 0.5, k / sweeps), sweeps=sweeps,
        order=list(range(data.n_agents)), initial=start, variant=variant, blocks=blocks,
    )  # fmt: skip
    return expected_return(game(name), trace.policies)


@pytest.mark.parametrize(
    ("name", "quality", "printed"),
    [("xor_3", "b", -1.27), ("xor_4", "b", -1.44), ("xor_6", "c", 0.0),
     ("conventions_3", "equal", -0.5), ("conventions_6", "equal", -0.94)],
)  # fmt: skip
def test_eq_23_does_not_coordinate_more_than_two_and_eq_14_does(name, quality, printed):
    assert end(name, quality, GEOMETRIC) == pytest.approx(printed, abs=0.01)
    assert end(name, quality, FULL) > 0.99


@pytest.mark.parametrize("n_agents", [3, 5])
def test_the_bound_of_eq_23_on_m_ne(n_agents):
    """Under uniform play C looks better than A only if (mu_A / mu_C)^(N - 2) < 40 / 25."""
    actions = np.stack(np.unravel_index(np.arange(3**n_agents), (3,) * n_agents), axis=1)
    reward = np.where((actions == actions[:, :1]).all(1), np.array([5, 10, 20])[actions[:, 0]], -20)
    uniform = [np.full((1, 3), 1 / 3)] * n_agents
    for ratio in (1.05, 1.2, 1.5, 1.7, 8.0):
        mu = np.array([ratio, 1.0, 1.0]) / (ratio + 2)
        data = Dataset.one_step(actions, mu[actions].prod(1), reward, (3,) * n_agents)
        q = in_sample.local_q(data, uniform, data.behaviour(), 0, 0.1, 0.0)[0]
        assert (q[2] > q[0]) == (ratio ** (n_agents - 2) < 40 / 25)
        q = in_sample.local_q(data, uniform, data.behaviour(), 0, 0.1, 0.0, variant=FULL)[0]
        assert q[2] > q[0]  # Eq. 14 sees what the team plays


def test_entropy_leaves_eq_14_on_a_tie_that_the_joint_divergence_breaks():
    """XOR (b), four agents: beta makes all alike, and at alpha = .1 alike is where they stay."""
    assert end("xor_4", "b", FULL) > 0.99
    assert end("xor_4", "b", FULL, beta=1.0) == pytest.approx(-1.05, abs=0.01)
    assert end("xor_4", "b", JOINT, beta=1.0) > 0.99


def test_how_small_alpha_must_be_on_m_ne():
    """Uniform play of six: C is worth 15 / 3^5 more than A, and costs alpha log(.8 / .1) more."""
    bound = 15 / 3**5 / np.log(8)
    assert bound == pytest.approx(0.0297, abs=1e-4)
    assert end("m_ne_6", "imbalanced", JOINT, 0.02, 10.0) == pytest.approx(20, abs=0.1)
    assert end("m_ne_6", "imbalanced", JOINT, 0.1, 10.0) == pytest.approx(5, abs=0.1)


def test_a_share_that_the_optimum_does_not_have_keeps_agents_from_it():
    """One joint action in 64 is optimal play's: an effective sample of 5 % cannot be that."""
    assert end("xor_6", "c", FULL) > 0.99
    assert end("xor_6", "c", Variant(exponent=1.0, share=0.001)) > 0.99
    assert end("xor_6", "c", Variant(exponent=1.0, share=0.3)) < 0.2


@pytest.mark.parametrize("n_agents", [2, 4])
def test_with_the_joint_divergence_a_turn_is_the_best_response(n_agents):
    """Eq. 13 with joint_kl maximises E_pi[R] - alpha KL(pi || mu) over one agent's policy.

    mu is the joint behaviour policy, correlated; so the objective never falls in a sweep.
    """
    rng = np.random.default_rng(n_agents)
    shape, alpha = (2,) * n_agents, 1.0
    mu, payoff = rng.dirichlet(np.ones(2**n_agents)).reshape(shape), rng.normal(size=shape)
    data = Dataset.one_shot(mu, payoff)

    def objective(policies):
        pi = joint_policy(policies)[0]
        return (pi * (payoff - alpha * np.log(pi / mu))).sum()

    variant = Variant(exponent=1.0, joint_kl=1.0, resampled_policy=False, joint_kl_floor=-1e3)
    policies = data.behaviour()
    for _ in range(3):
        for i in range(n_agents):
            before = objective(policies)
            policies[i] = in_sample.update(
                data, policies, data.behaviour(), i, alpha, 0.0, variant=variant
            )
            best = objective(policies)
            assert best >= before - 1e-12
            for eps in (1e-3, -1e-3):
                moved = list(policies)
                moved[i] = policies[i] + eps * np.array([[1.0, -1.0]])
                assert objective(moved) < best


def test_the_agents_of_a_block_answer_the_same_policies():
    data = dataset("xor_4", "b")
    mu = data.behaviour()
    first = in_sample.sweep(data, mu, mu, 0.1, 0.0, [2, 0], variant=FULL, blocks=1)
    expected = in_sample.sweep(data, first, mu, 0.1, 0.0, [3, 1], variant=FULL, blocks=1)
    found = in_sample.sweep(data, mu, mu, 0.1, 0.0, [2, 0, 3, 1], variant=FULL, blocks=2)
    for policy, other in zip(found, expected):
        np.testing.assert_array_equal(policy, other)


def test_the_file_and_its_picture(tmp_path, monkeypatch):
    content = read_file("beyond_two")
    table = read_table("beyond_two", 1)
    assert set(content["closed_form"]["variants"]) <= {m.key for m in table.comparison.methods}
    for cell in table.cells.values():
        cell.config()  # every run is one that can be asked for
    form = content["closed_form"]
    small = {"agents": [2, 4], "sweeps": 8, "games": {"xor_b": form["games"]["xor_b"]}}
    monkeypatch.setattr(
        beyond_two, "read_file", lambda name: content | {"closed_form": form | small}
    )
    points = beyond_two.closed_form(tmp_path)
    assert points[0].convention in ("AB (1.00)", "BA (1.00)")
    monkeypatch.setattr(beyond_two, "ending", None)
    assert beyond_two.closed_form(tmp_path) == points  # as written, not computed again
    entries = [
        Entry(data, method, {}, {0: 0.5}, [])
        for data in table.comparison.datasets
        for method in table.comparison.methods
    ]
    assert beyond_two.draw(tmp_path / "x.png", points, entries).stat().st_size > 10_000
