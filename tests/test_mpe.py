"""Simple spread against its physics and rewards written out in numpy; its scripted teams."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from inspo.envs import conventions
from inspo.envs.mpe import SpreadVectorEnv
from inspo.offline import collect, game_data, inspection, spread_data, teams
from inspo.utils.errors import ConfigError, DatasetError

N_ENVS, LIMIT = 4, 25
RADIUS, DT, DAMPING, ACCELERATION = 0.15, 0.1, 0.25, 5.0
FORCE, MARGIN = 100.0, 0.001
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])


@pytest.fixture(scope="module")
def env():
    return SpreadVectorEnv("spread_3", N_ENVS)


def step_by_hand(place, velocity, actions):
    """One environment, float64 `[3, 2]` each. JaxMARL moves agents by their velocity of before."""
    force = ACCELERATION * MOVES[actions].astype(float)
    for a in range(3):
        for b in range(3):
            if a != b:
                way = place[a] - place[b]
                distance = math.hypot(*way)
                overlap = MARGIN * np.logaddexp(0, -(distance - 2 * RADIUS) / MARGIN)
                force[a] += FORCE * way / distance * overlap
    return place + velocity * DT, velocity * (1 - DAMPING) + force * DT


def reward_by_hand(place, landmarks, ratio=0.5):
    distances = [min(math.dist(a, mark) for a in place) for mark in landmarks]
    touching = [
        sum(math.dist(place[a], place[b]) < 2 * RADIUS for b in range(3) if b != a)
        for a in range(3)
    ]
    return -ratio * sum(touching) / 3 - (1 - ratio) * sum(distances)


def parts(state):
    return state[:6].reshape(3, 2), state[6:12].reshape(3, 2), state[12:].reshape(3, 2)


def test_steps_are_those_of_the_physics_and_end_at_the_limit_alone(env):
    rng = np.random.default_rng(0)
    env.seed(3)
    env.reset()
    touched = 0
    for t in range(LIMIT):
        before = env.observe()["state"].astype(float)
        actions = rng.integers(5, size=(N_ENVS, 3))
        actions[0] = 1 + (parts(before[0])[0][:, 0] < 0)  # to the middle, where they touch
        out = env.step(actions)
        after = env.observe()["state"].astype(float)
        for e in range(N_ENVS):
            place, velocity, landmarks = parts(before[e])
            place, velocity = step_by_hand(place, velocity, actions[e])
            assert np.allclose(parts(after[e])[0], place, atol=1e-4)
            assert np.allclose(parts(after[e])[1], velocity, atol=1e-3)
            assert np.allclose(parts(after[e])[2], landmarks)
            found = parts(after[e])[0]
            assert out.reward[e] == pytest.approx(reward_by_hand(found, landmarks), abs=1e-4)
            touched += reward_by_hand(found, landmarks, 1.0) < 0
        assert not out.terminated.any()
        assert out.truncated.tolist() == [t + 1 == LIMIT] * N_ENVS
    assert touched  # or collisions were not looked at


def test_agents_see_the_landmarks_and_each_other_from_where_they_are(env):
    env.seed(5)
    env.reset()
    seen = env.observe()
    place, velocity, landmarks = parts(seen["state"][1])
    for i in range(3):
        others = [place[j] - place[i] for j in range(3) if j != i]
        wanted = np.concatenate([velocity[i], place[i], *(landmarks - place[i]), *others])
        assert np.allclose(np.sort(seen["obs"][1, i][: len(wanted)]), np.sort(wanted), atol=1e-6)
        assert np.allclose(seen["obs"][1, i][:10], wanted[:10], atol=1e-6)
        assert (seen["obs"][1, i][len(wanted) :] == 0).all()
    assert (seen["avail_actions"] == 1).all()


def test_one_seed_gives_one_stream(env):
    starts = []
    for seed in (1, 1, 2):
        env.seed(seed)
        env.reset()
        starts.append(env.observe()["state"])
    assert np.array_equal(starts[0], starts[1]) and not np.array_equal(starts[0], starts[2])


@pytest.mark.parametrize("env", teams.SCRIPTS)
def test_teams_take_their_shares(env):
    rng = np.random.default_rng(0)
    map_name = {"mpe": "spread_3", "overcooked": "coord_ring"}[env]
    for quality, counts in (
        ("one_team", [1]),
        ("conventions", [0.5, 0.5]),
        ("conventions_60_40", [0.6, 0.4]),
        ("conventions_4", [0.25] * 4),
    ):
        found = np.bincount(teams.teams_of_episodes(env, map_name, quality, rng))
        assert (found / teams.SCRIPTS[env].EPISODES).tolist() == counts


def test_the_cyclic_assignments_agree_nowhere():
    six = spread_data.assignments(3, 6)
    assert len({tuple(one) for one in six}) == 6
    assert all((six[a] != six[b]).all() for a in range(3) for b in range(a))


@pytest.mark.parametrize(
    ("env", "map_name", "quality", "message"),
    [
        ("mpe", "spread_3", "conventions_7", "6 teams"),
        ("mpe", "spread_3", "conventions_1", "K from 2 to 6"),
        ("mpe", "spread_3", "convention", "Did you mean 'conventions'"),
        ("mpe", "spread_9", "one_team", "found 'spread_9'"),
        ("overcooked", "coord_ring", "conventions_5", "4 teams"),
    ],
)
def test_what_there_is_not_is_one_error(env, map_name, quality, message):
    with pytest.raises(ConfigError, match=message):
        teams.shares(env, map_name, quality)


def test_conventions_k_can_be_had_from_the_command_line(tmp_path):
    words = {
        "env": "mpe",
        "map_name": "spread_3",
        "datasets_dir": tmp_path,
        "dataset": {"path": None},
    }
    collect.check_obtainable(SimpleNamespace(**words, quality="conventions_6"))
    for quality, error in (("conventions_7", ConfigError), ("conventions", None)):
        with pytest.raises(error) if error else nullcontext():
            collect.check_obtainable(SimpleNamespace(**words, quality=quality))
    with pytest.raises(DatasetError, match="one_team, conventions"):
        collect.check_obtainable(SimpleNamespace(**words, quality="medium"))


def test_a_team_covers_the_landmarks(monkeypatch):
    monkeypatch.setattr(spread_data, "EPISODES", 64)
    team = game_data.make_dataset("mpe", "spread_3", "one_team", episode_limit=LIMIT)
    assert (team.lengths == LIMIT).all() and not team.arrays["terminated"].any()
    assert team.metadata.n_cut == 0 and team.metadata.simulator.endswith("MPE")
    assert team.metadata.source == "generated, seed 0, team 0: 64"
    state = team.arrays["state"].reshape(64, LIMIT + 1, -1)
    found = conventions.labels("mpe", "spread_3", state, team.lengths)
    assert (found == [0, 1, 2]).mean() > 0.9


def test_inspect_counts_the_conventions_and_their_distance_from_the_product(monkeypatch):
    """Two teams that agree nowhere: two conventions, each agent's tells all others', 2 log 2."""
    monkeypatch.setattr(spread_data, "EPISODES", 64)
    two = game_data.make_dataset("mpe", "spread_3", "conventions", episode_limit=LIMIT)
    seen = np.tile([0.0, 0.0, 0.5, 0.5, -0.5, -0.5], (2, 1))  # the landmarks, where agents end
    ends = np.zeros((64, 18))
    teams_of = np.repeat([[0, 1, 2], [1, 2, 0]], 32, axis=0)
    ends[:, 12:] = seen[0]
    ends[:, :6] = seen[0].reshape(3, 2)[teams_of].reshape(64, 6)
    two.arrays["state"][two.offsets[1:] - 1] = ends
    found = inspection.inspect(two)
    assert found.conventions.shares == {"0 1 2": 0.5, "1 2 0": 0.5}
    assert found.conventions.number == pytest.approx(2)
    assert found.conventions.total_correlation == pytest.approx(2 * math.log(2))
    assert "0 1 2: 50.0%" in inspection.to_text(found)
