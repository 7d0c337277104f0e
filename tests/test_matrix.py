"""Matrix games: payoffs, exact returns, bad input, and the datasets made of them."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspo.envs import VECTOR_REGISTRY
from inspo.envs.matrix import MatrixVectorEnv
from inspo.offline import load_dataset
from inspo.offline.game_data import (
    MAX_EPISODES,
    MIN_COUNT,
    episode_counts,
    exact_counts,
    generate,
    make_dataset,
)
from inspo.tabular import paper_games
from inspo.tabular.game import expected_return
from inspo.tabular.matrix_games import parse, payoff_tensor
from inspo.utils.errors import ConfigError

# As the paper prints them for two agents.
PAYOFFS = {
    "xor": [[0, 1], [1, -2]],
    "m_ne": [[5, -20, -20], [-20, 10, -20], [-20, -20, 20]],
}


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


def pays(kind: str, joint: tuple[int, ...]) -> float:
    """The rules in words, one joint action at a time."""
    if kind == "xor":
        return {0: 0, 1: 1}.get(joint.count(1), -2)
    together = len(set(joint)) == 1
    if kind == "m_ne":
        return (5, 10, 20)[joint[0]] if together else -20
    return 1 if together else -1


@pytest.mark.parametrize(
    ("name", "n_agents", "n_actions"),
    [
        ("xor", 2, 2), ("xor_2", 2, 2), ("xor_5", 5, 2), ("xor_8", 8, 2),
        ("m_ne_3", 3, 3), ("m_ne_8", 8, 3),
        ("conventions", 2, 2), ("conventions_6", 6, 2), ("conventions_4x3", 4, 3),
        ("conventions_2x12", 2, 12),
    ],
)  # fmt: skip
def test_games_of_n_agents_pay_what_their_rules_say(name, n_agents, n_actions):
    env = MatrixVectorEnv(name)
    assert env.payoff.shape == (n_actions,) * n_agents
    kind = name.rstrip("x0123456789").rstrip("_")
    for joint, value in np.ndenumerate(env.payoff):
        assert value == pays(kind, joint)


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
    with pytest.raises(ValueError, match=r"agent 2: action \d is not available"):
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


@settings(max_examples=30, deadline=None)
@given(games())
def test_expected_return_is_the_sum_over_all_joint_actions(game):
    payoff, policies = game
    joints = itertools.product(*map(range, payoff.shape))
    shares = {joint: np.prod([p[a] for p, a in zip(policies, joint)]) for joint in joints}
    value = sum(payoff[joint] * share for joint, share in shares.items())
    env = MatrixVectorEnv("custom", payoff=payoff.tolist())
    for each in (policies, [np.append(p, [0.0, 0.0]) for p in policies]):  # exact, and padded
        told = env.exact_statistics(functools.reduce(np.multiply.outer, each))
        assert told.pop("test_expected_return") == pytest.approx(value)
        if payoff.size > 81:
            assert len(told) == sum(payoff.shape)
            continue
        for joint, share in shares.items():
            key = "test_joint_" + "".join(map(str, joint))
            assert told[key] == pytest.approx(share)


def test_large_games_are_told_by_agent_and_small_ones_by_joint_action_too():
    def told(name, policies):
        joint = functools.reduce(np.multiply.outer, map(np.array, policies))
        return MatrixVectorEnv(name).exact_statistics(joint)

    large = told("m_ne_5", [[0.5, 0.5, 0.0]] * 4 + [[0.2, 0.3, 0.5]])
    assert large.pop("test_expected_return") == pytest.approx(
        -20 + 0.5**4 * (0.2 * 25 + 0.3 * 30)  # all A and all B: what they pay above -20
    )
    assert len(large) == 15 and not any("joint" in key for key in large)
    assert large["test_policy_agent3_1"] == 0.5 and large["test_policy_agent4_2"] == 0.5
    kinds = [key.split("_")[1] for key in told("m_ne_4", [[1, 0, 0]] * 4)]
    assert kinds.count("joint") == 81 and kinds.count("policy") == 12
    kinds = [key.split("_")[1] for key in told("conventions_2x10", [np.ones(10) / 10] * 2)]
    assert kinds.count("joint") == 0 and kinds.count("policy") == 20
    assert "policy" not in str(told("m_ne", [[1, 0, 0]] * 2))


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("payoff", "message"),
    [
        ([[0, 1], [1]], "equally long"),
        ([[[0], [1]], [[1], [2, 3]]], "equally long"),
        *[(x, "list of numbers") for x in ([[0, "x"], [1, 2]], "ab", [[0, [1]], [1, 2]])],
        (3.0, "one level of nesting per agent"),
        ([[], []], "none is empty"),
        ([[0, float("nan")], [1, 2]], r"finite numbers; .* \[0, 1\] is nan"),
        ([[0, 1], [float("inf"), 2]], r"\[1, 0\] is inf"),
        ([[0, None], [1, 2]], "finite numbers|nested list of numbers"),
    ],
)
def test_bad_payoffs_are_refused_by_the_name_of_the_key(payoff, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MatrixVectorEnv("custom", payoff=payoff)
    assert str(caught.value).startswith("env_args.payoff:")


@pytest.mark.parametrize(
    ("payoff", "n_actions", "message"),
    [
        (lambda a: a.sum(axis=1), None, "needs n_actions"),
        (lambda a: a, [2, 2], r"numbers \[M\]; for M = 4 it gave int64 \[4, 2\]"),
        (lambda a: ["good"] * len(a), [2, 2], r"it gave <U4 \[4\]"),
        (lambda a: a.sum(axis=1), [11] * 6, r"1,000,000 joint actions.*1,771,561 \(11 x 11"),
    ],
)
def test_bad_payoff_functions_are_refused(payoff, n_actions, message):
    weights = np.array([1, 10, 100])
    good = MatrixVectorEnv("mine", payoff=lambda a: a @ weights, n_actions=[2, 3, 2])
    assert (good.payoff == np.add.outer(np.add.outer([0, 1], [0, 10, 20]), [0, 100])).all()
    with pytest.raises(ConfigError, match=message):
        MatrixVectorEnv("custom", payoff=payoff, n_actions=n_actions)


@pytest.mark.parametrize(
    "name",
    ["xor_1", "xor_9", "xor_10", "xor_03", "xor_", "xor_3x2", "m_ne_x", "conventions_4x",
     "conventions_4x1", "conventions_4x03", "conventionsx3", "Xor", "xor_3 ", ""],
)  # fmt: skip
def test_a_malformed_name_tells_what_there_is(name):
    for make in (parse, MatrixVectorEnv, lambda n: make_dataset("matrix", n, "a")):
        with pytest.raises(ConfigError, match=r"no matrix game is called .*\(N = 2 to 8 agents"):
            make(name)
    with pytest.raises(ConfigError, match=r"env_args.map_name: .*'m_nee'.*'m_ne'"):
        MatrixVectorEnv("m_nee")
    with pytest.raises(ConfigError, match="needs its payoff"):
        MatrixVectorEnv("custom")
    with pytest.raises(ConfigError, match=r"quality: .*'balance'.*'balanced'"):
        make_dataset("matrix", "m_ne", "balance")


# ------------------------------------------------------------------------------------- datasets


@pytest.mark.parametrize(
    ("map_name", "quality", "counts"),
    [
        ("xor", "a", {"01": 600, "10": 600}),
        ("xor", "b", {"00": 400, "01": 400, "10": 400}),
        ("xor", "c", dict.fromkeys(("00", "01", "10", "11"), 300)),
        ("xor_3", "a", {"001": 400, "010": 400, "100": 400}),
        ("xor_7", "a", {"0" * i + "1" + "0" * (6 - i): 172 for i in range(7)}),
        ("xor_8", "c", {"".join(joint): 8 for joint in itertools.product("01", repeat=8)}),
        ("m_ne", "balanced", {a + b: 111 + (a + b == "00") for a in "012" for b in "012"}),
        ("m_ne", "imbalanced", {a + b: x * y // 10 for a, x in zip("012", (80, 10, 10))
                                for b, y in zip("012", (80, 10, 10))}),
        ("m_ne_4", "teams", {"0000": 800, "1111": 100, "2222": 100}),
        ("m_ne_3", "balanced", {"".join(j): 38 for j in itertools.product("012", repeat=3)}),
        ("conventions", "tilted", {"00": 612, "11": 588}),
        ("conventions_3x4", "equal", {c * 3: 300 for c in "0123"}),
        ("conventions_3x4", "tilted", {"000": 312, "111": 296, "222": 296, "333": 296}),
    ],
)  # fmt: skip
def test_counts_are_exact(map_name, quality, counts):
    actions, found = episode_counts(map_name, quality)
    assert dict(zip(("".join(map(str, joint)) for joint in actions), found)) == counts


def test_imbalanced_data_of_more_agents_hold_the_rarest_joint_action():
    for n, total in ((3, 8_000), (4, 80_000)):
        actions, counts = episode_counts(f"m_ne_{n}", "imbalanced")
        assert counts.sum() == total and counts[-1] == counts.min() == MIN_COUNT
        for agent in range(n):  # exactly (.8, .1, .1) each, and independent
            shares = np.bincount(actions[:, agent], counts) / total
            assert shares.tolist() == [0.8, 0.1, 0.1]
        assert counts[0] == round(total * 0.8**n)
    with pytest.raises(ConfigError, match=f"needs 800,000 episodes.*{MAX_EPISODES:,} are made"):
        make_dataset("matrix", "m_ne_5", "imbalanced")


@pytest.mark.parametrize(
    ("map_name", "quality"),
    [("xor_4", "b"), ("xor_3", "c"), ("m_ne_3", "imbalanced"), ("conventions_5x2", "tilted")],
)
def test_generated_data_and_the_closed_form_hold_the_same(map_name, quality):
    generated = make_dataset("matrix", map_name, quality)
    start = generated.is_transition()
    actions, exact = generated.arrays["actions"][start][..., 0], payoff_tensor(map_name)
    assert (generated.arrays["reward"][start, 0] == exact[tuple(actions.T)]).all()
    shares = np.zeros(exact.shape)
    np.add.at(shares, tuple(actions.T), 1 / len(actions))
    closed = paper_games.dataset(map_name, quality)
    assert closed.joint()[0] == pytest.approx(shares)
    assert (closed.reward == exact[tuple(closed.action.T)]).all()


def test_the_closed_form_has_what_is_too_rare_to_generate():
    data = paper_games.dataset("m_ne_8", "imbalanced")
    assert data.weight.sum() == pytest.approx(1) and len(data.weight) == 3**8
    assert np.array(data.behaviour())[:, 0] == pytest.approx(np.array([[0.8, 0.1, 0.1]] * 8))
    uniform = [np.full((1, 3), 1 / 3)] * 8
    value = expected_return(paper_games.game("m_ne_8"), uniform)
    assert value == pytest.approx(-20 + (25 + 30 + 40) / 3**8)
    told = MatrixVectorEnv("m_ne_8").exact_statistics(np.full([3] * 8, 1 / 3**8))
    assert told["test_expected_return"] == pytest.approx(value)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000), st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
def test_exact_counts_sum_up_and_differ_by_less_than_one(total, weights):
    probabilities = np.array(weights) / np.sum(weights)
    counts = exact_counts(probabilities, total)
    assert counts.sum() == total
    assert (np.abs(counts - probabilities * total) < 1 + 1e-6).all()


# The content as it was in the first version (SHA-256 as in their metadata).
@pytest.mark.parametrize(
    ("map_name", "quality", "content"),
    [("xor", "a", "f3be4041"), ("xor", "b", "06929314"), ("xor", "c", "24596f88"),
     ("m_ne", "balanced", "47fa1a36"), ("m_ne", "imbalanced", "ea15ecdc")],
)  # fmt: skip
def test_rows_are_what_the_game_says(map_name, quality, content):
    dataset = make_dataset("matrix", map_name, quality)
    assert dataset.metadata.content_hash.startswith(content)
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
