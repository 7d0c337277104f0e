"""Bridge: its rules by hand-made cases, generated trajectories, pictures, and its datasets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inspo.envs import VECTOR_REGISTRY
from inspo.envs.bridge import (
    DOWN,
    GOALS,
    LEFT,
    N_COLUMNS,
    N_ROWS,
    RIGHT,
    STARTS,
    STAY,
    UP,
    WALLS,
    BridgeVectorEnv,
    decode,
    encode,
    is_done,
    move,
    team_reward,
)
from inspo.offline.game_data import make_dataset, optimal_plan
from inspo.utils.errors import ConfigError
from paper.boards import episode_png, episodes_gif

FREE = [(r, c) for r in range(N_ROWS) for c in range(N_COLUMNS) if (r, c) not in WALLS]


def board(*cells) -> np.ndarray:
    """One board `[1, 2, 2]` of the cells of agents 1 and 2."""
    return np.array([cells])


# ------------------------------------------------------------------------------------ the rules

# name: cells of agents 1 and 2, their actions, the cells after. Every case whose name ends in * is
# a transition of AlberDICE's published trajectories (random play of the file `mix`).
CASES = {
    "both stay": ((1, 2), (1, 3), STAY, STAY, (1, 2), (1, 3)),
    "side by side to the left *": ((1, 2), (1, 3), LEFT, LEFT, (1, 1), (1, 2)),
    "one follows the other *": ((1, 2), (1, 3), RIGHT, RIGHT, (1, 3), (1, 4)),
    "one follows up *": ((1, 0), (2, 0), RIGHT, UP, (1, 1), (1, 0)),
    "a wall above": ((1, 2), (1, 4), UP, STAY, (1, 2), (1, 4)),
    "a wall below": ((1, 1), (1, 3), STAY, DOWN, (1, 1), (1, 3)),
    "a wall beside": ((0, 1), (2, 4), RIGHT, LEFT, (0, 1), (2, 4)),
    "off the grid, up and down": ((0, 1), (2, 4), UP, DOWN, (0, 1), (2, 4)),
    "off the grid, left and right": ((1, 0), (1, 5), LEFT, RIGHT, (1, 0), (1, 5)),
    "agent 1 into a cell that is held *": ((1, 2), (1, 3), RIGHT, STAY, (1, 2), (1, 3)),
    "agent 2 into a cell that is held *": ((1, 2), (1, 3), STAY, LEFT, (1, 2), (1, 3)),
    "into one whose holder hits a wall": ((1, 2), (1, 3), RIGHT, UP, (1, 2), (1, 3)),
    "swap *": ((1, 2), (1, 3), RIGHT, LEFT, (1, 2), (1, 3)),
    "agent 1 wins a cell *": ((1, 1), (1, 3), RIGHT, LEFT, (1, 2), (1, 3)),
    "agent 1 wins even agent 2's goal *": ((0, 1), (1, 0), LEFT, UP, (0, 0), (1, 0)),
    "agent 1 wins its goal *": ((2, 4), (1, 5), RIGHT, DOWN, (2, 5), (1, 5)),
    "agent 1 into its goal, held *": ((2, 4), (2, 5), RIGHT, STAY, (2, 5), (2, 5)),
    "agent 2 into its goal, held *": ((0, 0), (1, 0), LEFT, UP, (0, 0), (0, 0)),
    "agent 1 swaps into its goal *": ((2, 4), (2, 5), RIGHT, LEFT, (2, 5), (2, 4)),
    "agent 2 does not *": ((0, 0), (0, 1), RIGHT, LEFT, (0, 0), (0, 1)),
    "a done agent stays": ((2, 5), (1, 3), UP, STAY, (2, 5), (1, 3)),
    "one passes a done agent 1 *": ((2, 5), (2, 4), DOWN, RIGHT, (2, 5), (2, 5)),
    "one passes a done agent 2 *": ((0, 1), (0, 0), LEFT, UP, (0, 0), (0, 0)),
    "and leaves it": ((2, 5), (2, 5), STAY, LEFT, (2, 5), (2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_rule(case):
    one, two, first, second, *after = CASES[case]
    assert move(board(one, two), np.array([[first, second]])).tolist() == [list(map(list, after))]


def test_boards_do_not_touch_each_other():
    before, actions, after = (
        np.array([case[part] for case in CASES.values()])
        for part in (slice(0, 2), slice(2, 4), slice(4, None))
    )
    copy = before.copy()
    assert (move(before, actions) == after).all() and (before == copy).all()


def test_the_reward_is_the_mean_distance_of_those_that_were_not_done():
    before, after = board((1, 2), (1, 3)), board((1, 1), (1, 2))
    distances = np.sqrt([1 + 16, 1 + 4])
    assert team_reward(before, after) == pytest.approx(-0.1 * distances.mean())
    arrives = team_reward(board((1, 5), (1, 3)), board((2, 5), (1, 2)))
    assert arrives == pytest.approx(-0.1 * np.sqrt(5) / 2)
    assert team_reward(board((2, 5), (1, 0)), board((2, 5), (0, 0))) == 0


def test_both_starts_and_the_numbers_of_the_environment():
    for start, cells in STARTS.items():
        env = VECTOR_REGISTRY["bridge"](map_name="bridge", n_envs=2, start=start)
        assert (env.cells == cells).all()
    assert STARTS["adjacent"].tolist() == [[1, 2], [1, 3]]
    assert STARTS["apart"].tolist() == [[1, 1], [1, 4]]
    assert list(env.get_env_info().values()) == [8, 8, 5, 2, 20]
    seen = BridgeVectorEnv(n_envs=1).observe()
    assert seen["state"].tolist() == [[1, 2, 2, 5, 1, 3, 0, 0]]
    assert (seen["obs"] == seen["state"][:, None]).all() and seen["avail_actions"].all()
    assert [seen[key].dtype for key in ("state", "obs", "avail_actions")] == ["f4", "f4", "i4"]


def test_one_hot_states_and_back():
    cells = np.array([[a, b] for a in FREE for b in FREE])
    states = encode(cells, "onehot")
    assert states.shape == (len(cells), 324) and (states.sum(axis=1) == 1).all()
    assert len(np.unique(states.argmax(axis=1))) == len(cells)
    assert (decode(states) == cells).all()
    assert (decode(encode(cells, "coordinates")) == cells).all()
    env = BridgeVectorEnv(n_envs=1, observation="onehot")
    assert env.get_env_info()["state_shape"] == env.observe()["obs"].shape[-1] == 324


def test_an_action_that_is_none_is_refused():
    env = BridgeVectorEnv(n_envs=1)
    for actions in ([[5, 0]], [[0, -1]]):
        with pytest.raises(ValueError, match="actions 0 to 4"):
            env.step(np.array(actions))


# ------------------------------------------------------------------------------------- episodes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(STARTS)))
def test_random_play_stays_on_the_board(seed, start):
    """Nobody stands in a wall or off the grid, moves more than a cell, leaves its goal, or shares
    a cell that is not the goal of one of the two, on which that one is done."""
    rng = np.random.default_rng(seed)
    env = BridgeVectorEnv(n_envs=16, episode_limit=40, start=start)
    for _ in range(40):
        before = env.cells
        env.step(rng.integers(5, size=(16, 2)))
        after = env.cells
        assert all(tuple(cell) in FREE for cell in after.reshape(-1, 2))
        assert np.abs(after - before).sum(axis=-1).max() <= 1
        assert (after[is_done(before)] == before[is_done(before)]).all()
        shared = (after[:, 0] == after[:, 1]).all(axis=-1)
        assert is_done(after)[shared].any(axis=1).all()


def test_the_limit_truncates_and_still_pays():
    env = BridgeVectorEnv(n_envs=2, episode_limit=3)
    stay = np.zeros((2, 2), dtype=int)
    outs = [env.step(stay) for _ in range(3)]
    assert [out.truncated.tolist() for out in outs] == [[False] * 2, [False] * 2, [True] * 2]
    assert not any(out.terminated.any() for out in outs)
    distances = np.sqrt([1 + 9, 1 + 9])
    assert [out.reward[0] for out in outs] == pytest.approx([-0.1 * distances.mean()] * 3)
    assert not any(out.info["solved"].any() for out in outs)


def test_an_end_in_the_last_step_is_an_end():
    rng = np.random.default_rng(0)
    env = BridgeVectorEnv(n_envs=1, episode_limit=8)
    for actions in optimal_plan(1, LEFT, rng):
        out = env.step(actions[None])
    assert out.terminated.all() and not out.truncated.any() and out.reward == [0]
    assert out.info["solved"].tolist() == [1]


def test_a_finished_board_stays_as_it_is_until_reset():
    env = BridgeVectorEnv(n_envs=2, episode_limit=20)
    plan = optimal_plan(0, UP, np.random.default_rng(0))
    for actions in plan:  # environment 1 stays at the start
        env.step(np.stack([actions, [STAY, STAY]]))
    frozen = env.observe()["state"][0]
    out = env.step(np.array([[LEFT, RIGHT], [LEFT, LEFT]]))
    assert (env.observe()["state"][0] == frozen).all()
    assert out.reward[0] == 0 and not out.terminated[0] and not out.info["solved"][0]
    assert out.reward[1] < 0 and env.cells[1].tolist() == [[1, 1], [1, 2]]
    env.observe()["state"][:] = 7  # what is handed out is a copy
    assert (env.observe()["state"][0] == frozen).all()
    env.reset()
    assert (env.cells == STARTS["adjacent"]).all()


# ------------------------------------------------------------------------------------- datasets


def replay(dataset) -> None:
    """Play a dataset's actions again and compare every number of it."""
    batch = dataset.episodes(np.arange(len(dataset)), dataset.metadata.episode_limit + 1)
    env = BridgeVectorEnv(n_envs=len(dataset), episode_limit=dataset.metadata.episode_limit)
    env.reset()
    for t in range(dataset.metadata.episode_limit + 1):
        filled = batch["filled"][:, t, 0] == 1
        seen = env.observe()
        for key in ("state", "obs", "avail_actions"):
            assert (seen[key][filled] == batch[key][filled, t]).all()
        if t == dataset.metadata.episode_limit:
            break
        live = dataset.lengths > t
        out = env.step(batch["actions"][:, t, :, 0])
        assert (out.reward[live] == batch["reward"][live, t, 0]).all()
        assert (out.terminated[live] == batch["terminated"][live, t, 0]).all()
        assert ((out.terminated | out.truncated)[live] == (dataset.lengths[live] == t + 1)).all()


@pytest.fixture(scope="module")
def mixed():
    return make_dataset("bridge", "bridge", "mixed")


@pytest.fixture(scope="module")
def optimal():
    return make_dataset("bridge", "bridge", "optimal")


def test_generated_trajectories_replay_exactly(mixed, optimal):
    replay(mixed)
    replay(optimal)


def test_optimal_plans_are_those_of_the_published_file(optimal):
    assert len(optimal) == 500 and (optimal.lengths == 8).all()
    assert optimal.metadata.return_mean == pytest.approx(-1.262, abs=5e-4)
    returns = np.unique(optimal.episode_returns().round(4))
    assert returns.tolist() == [-1.2904, -1.2591, -1.2355]
    states = optimal.episodes(np.arange(500))["state"]
    assert len(np.unique(states.reshape(500, -1), axis=0)) == 16
    first = optimal.arrays["actions"][optimal.offsets[:-1], :, 0]
    for plan in ((LEFT, LEFT), (RIGHT, RIGHT)):
        assert (first == plan).all(axis=1).sum() == 250
    assert optimal.arrays["terminated"].sum() == 500 and optimal.metadata.n_cut == 0


def test_no_faster_way_home():
    """Breadth-first search over all joint actions: 8 steps, so the plans are optimal in time."""
    actions = np.array([[a, b] for a in range(5) for b in range(5)])
    seen, frontier, steps = set(), {tuple(STARTS["adjacent"].ravel())}, 0
    while tuple(GOALS.ravel()) not in frontier:
        seen |= frontier
        cells = np.repeat(np.array(sorted(frontier)).reshape(-1, 2, 2), 25, axis=0)
        after = move(cells, np.tile(actions, (len(frontier), 1)))
        frontier = set(map(tuple, after.reshape(-1, 4).tolist())) - seen
        steps += 1
    assert steps == 8


def test_mixed_is_random_play_and_then_optimal(mixed, optimal):
    assert len(mixed) == 1000
    assert mixed.select(np.arange(500, 1000)).metadata.content_hash == (
        optimal.metadata.content_hash
    )
    random = mixed.select(np.arange(500))
    played = random.arrays["actions"][random.is_transition()]
    share = np.bincount(played.ravel(), minlength=5) / played.size
    assert share == pytest.approx([0.2] * 5, abs=0.02)
    # an episode that the limit stopped has no end, so that a learner bootstraps there
    ends = random.arrays["terminated"][random.offsets[1:] - 2, 0]
    assert random.lengths.max() == mixed.metadata.episode_limit == 20
    assert ends[random.lengths < 20].all() and not ends.all()
    assert random.metadata.return_mean == pytest.approx(-7.4, abs=0.4)


def test_generation_is_deterministic(optimal):
    again = make_dataset("bridge", "bridge", "optimal")
    assert again.metadata.content_hash == optimal.metadata.content_hash
    other = make_dataset("bridge", "bridge", "optimal", seed=1)
    assert other.metadata.content_hash != optimal.metadata.content_hash
    assert other.metadata.return_mean == pytest.approx(optimal.metadata.return_mean)


def test_a_limit_below_the_plans_is_refused():
    with pytest.raises(ConfigError, match="episode_limit"):
        make_dataset("bridge", "bridge", "optimal", episode_limit=7)
    onehot = make_dataset("bridge", "bridge", "optimal", episode_limit=8, observation="onehot")
    assert onehot.metadata.state_shape == 324 and onehot.arrays["terminated"].sum() == 500


def test_png_and_gif(tmp_path, optimal):
    batch = optimal.episodes([0, 1])
    states, actions = batch["state"], batch["actions"][..., 0]
    episode_png(tmp_path / "strip.png", states[0], actions[0], title="Bridge")
    with Image.open(tmp_path / "strip.png") as image:
        assert image.format == "PNG" and image.width > image.height > 100
    episodes_gif(tmp_path / "both.gif", states, actions, ["one", "two"])
    with Image.open(tmp_path / "both.gif") as image:
        assert image.format == "GIF" and image.n_frames == 9 and image.info["loop"] == 0
    episodes_gif(tmp_path / "one.gif", states[:1, :4])
    with Image.open(tmp_path / "one.gif") as image:
        assert image.n_frames == 4
