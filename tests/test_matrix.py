"""Matrix games: payoffs, exact returns, bad input, and the datasets made of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspo.envs import VECTOR_REGISTRY
from inspo.envs.matrix import PAYOFFS, MatrixVectorEnv
from inspo.offline import load_dataset
from inspo.offline.game_data import JOINT_POLICIES, exact_counts, generate, make_dataset
from inspo.utils.errors import ConfigError

QUALITIES = sorted(JOINT_POLICIES)


def brute_force(payoff: np.ndarray, policies: list[np.ndarray]) -> float:
    """The mean payoff, one joint action at a time."""
    total = 0.0
    for joint in itertools.product(*map(range, payoff.shape)):
        total += payoff[joint] * np.prod([p[a] for p, a in zip(policies, joint)])
    return total


# ------------------------------------------------------------------------------------- the game


@pytest.mark.parametrize("name", sorted(PAYOFFS))
def test_every_joint_action_pays_what_the_paper_prints(name):
    payoff = np.array(PAYOFFS[name])
    joints = np.array(list(itertools.product(*map(range, payoff.shape))))
    env = VECTOR_REGISTRY["matrix"](map_name=name, n_envs=len(joints))
    env.reset()
    out = env.step(joints)
    assert out.reward.dtype == np.float32
    assert out.reward.tolist() == [payoff[tuple(joint)] for joint in joints]
    assert out.terminated.all() and not out.truncated.any()


def test_three_agents_with_different_numbers_of_actions():
    payoff = np.arange(12.0).reshape(2, 3, 2)
    env = MatrixVectorEnv("custom", n_envs=2, payoff=payoff.tolist())
    assert list(env.get_env_info().values()) == [1, 1, 3, 3, 1]
    env.reset()
    seen = env.observe()
    assert seen["avail_actions"].tolist() == [[[1, 1, 0], [1, 1, 1], [1, 1, 0]]] * 2
    assert seen["state"].shape == (2, 1) and seen["obs"].shape == (2, 3, 1)
    assert [seen[key].dtype for key in ("state", "obs", "avail_actions")] == ["f4", "f4", "i4"]
    assert env.step(np.array([[1, 2, 1], [0, 1, 1]])).reward.tolist() == [11, 3]
    env.reset()
    with pytest.raises(ValueError, match="agent 2 has 2 actions"):
        env.step(np.array([[1, 2, 2], [0, 1, 1]]))


def test_a_finished_game_stays_as_it_is_until_reset():
    env = MatrixVectorEnv("xor", n_envs=3)
    env.reset()
    assert env.step(np.full((3, 2), 1)).reward.tolist() == [-2, -2, -2]
    again = env.step(np.full((3, 2), 7))  # ignored, so that even nonsense does no harm
    assert not again.reward.any() and not again.terminated.any() and not again.truncated.any()
    env.reset()
    assert env.step(np.full((3, 2), 1)).terminated.all()


# ---------------------------------------------------------------------------- the exact return


@st.composite
def games(draw):
    """A payoff tensor for 1 to 4 agents with 1 to 4 actions each, and a policy per agent."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=shape) * 10, [rng.dirichlet(np.ones(width)) for width in shape]


@settings(max_examples=60, deadline=None)
@given(games())
def test_expected_return_is_the_sum_over_all_joint_actions(game):
    payoff, policies = game
    env = MatrixVectorEnv("custom", payoff=payoff.tolist())
    for each in (policies, [np.append(p, [0.0, 0.0]) for p in policies]):  # exact, and padded
        told = env.exact_statistics(each)
        assert told.pop("test_expected_return") == pytest.approx(brute_force(payoff, policies))
        assert sum(told.values()) == pytest.approx(1)
        last = "test_joint_" + "".join(str(width - 1) for width in payoff.shape)
        assert told[last] == pytest.approx(np.prod([p[-1] for p in policies]))


@pytest.mark.parametrize(
    ("name", "policy", "value"),
    [
        # behaviour cloning of the paper's datasets: the product of the marginals
        ("xor", [1 / 2, 1 / 2], 0.0),
        ("xor", [2 / 3, 1 / 3], 2 / 9),
        ("m_ne", [1 / 3, 1 / 3, 1 / 3], -85 / 9),
        ("m_ne", [0.8, 0.1, 0.1], -3.3),
    ],
)
def test_expected_return_of_behaviour_cloning(name, policy, value):
    told = MatrixVectorEnv(name).exact_statistics([np.array(policy)] * 2)
    assert told["test_expected_return"] == pytest.approx(value)


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("payoff", "message"),
    [
        ([[0, 1], [1]], "equally long"),
        ([[[0], [1]], [[1], [2, 3]]], "equally long"),
        *[(x, "list of numbers") for x in ([[0, "x"], [1, 2]], "ab", [[0, [1]], [1, 2]])],
        (3.0, "one level per agent"),
        *[(x, "at least one action") for x in ([], [[], []])],
        ([[0, float("nan")], [1, 2]], r"finite numbers; .* \[0, 1\] is nan"),
        ([[0, 1], [float("inf"), 2]], r"\[1, 0\] is inf"),
        ([[0, None], [1, 2]], "finite numbers|nested list of numbers"),
    ],
)
def test_bad_payoffs_are_refused_by_the_name_of_the_key(payoff, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MatrixVectorEnv("custom", payoff=payoff)
    assert str(caught.value).startswith("env_args.payoff:")


# ------------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize(
    ("map_name", "quality", "counts"),
    [
        ("xor", "a", [0, 600, 600, 0]),
        ("xor", "b", [400, 400, 400, 0]),
        ("xor", "c", [300] * 4),
        ("m_ne", "imbalanced", [640, 80, 80, 80, 10, 10, 80, 10, 10]),
        ("m_ne", "balanced", [112] + [111] * 8),  # 1,000 is not a multiple of 9
    ],
)
def test_proportions_are_exact(map_name, quality, counts):
    dataset = make_dataset("matrix", map_name, quality)
    actions = dataset.arrays["actions"][dataset.is_transition()][..., 0]
    places = np.ravel_multi_index(tuple(actions.T), np.shape(PAYOFFS[map_name]))
    assert np.bincount(places, minlength=len(counts)).tolist() == counts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
def test_exact_counts_sum_up_and_differ_by_less_than_one(total, weights):
    probabilities = np.array(weights) / np.sum(weights)
    counts = exact_counts(probabilities, total)
    assert counts.sum() == total
    assert (np.abs(counts - probabilities * total) < 1 + 1e-6).all()


@pytest.mark.parametrize(("map_name", "quality"), QUALITIES)
def test_rows_are_what_the_game_says(map_name, quality):
    dataset = make_dataset("matrix", map_name, quality)
    assert len(dataset) == (1200 if map_name == "xor" else 1000)
    assert (dataset.lengths == 1).all()
    start = dataset.is_transition()
    actions = dataset.arrays["actions"][start][..., 0]
    payoff = np.array(PAYOFFS[map_name], dtype=np.float32)
    assert (dataset.arrays["reward"][start, 0] == payoff[tuple(actions.T)]).all()
    assert (dataset.arrays["terminated"][:, 0] == start).all()
    assert not dataset.arrays["actions"][~start].any() and dataset.arrays["state"].all()


def test_generation_is_deterministic_and_the_seed_orders_the_rows(tmp_path):
    first = generate("matrix", "xor", "b", tmp_path / "one.h5")
    second = generate("matrix", "xor", "b", tmp_path / "two.h5")
    assert first.metadata.content_hash == second.metadata.content_hash
    other = make_dataset("matrix", "xor", "b", seed=1)
    assert other.metadata.content_hash != first.metadata.content_hash
    read = load_dataset(tmp_path / "one.h5")
    assert read.metadata == first.metadata
    assert read.metadata.return_mean == pytest.approx(2 / 3)
    # runs that start together may all make the file
    generate("matrix", "xor", "b", tmp_path / "one.h5")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatrixVectorEnv("m_nee"), r"env_args.map_name: .*'m_nee'.*'m_ne'"),
        (lambda: MatrixVectorEnv("custom"), "give its payoff"),
        (lambda: make_dataset("matrix", "m_ne", "balance"), r"quality: .*'balance'.*'balanced'"),
        (lambda: make_dataset("matrix", "xor", "balanced"), r"quality: .*Known: a, b, c"),
        (lambda: make_dataset("matrix", "xorr", "a"), r"map_name: .*'matrix/xorr'.*'matrix/xor'"),
    ],
)
def test_names_of_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
