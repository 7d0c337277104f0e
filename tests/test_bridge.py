"""Bridge: its rules by hand-made cases, generated trajectories, pictures, and its datasets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from inspo.envs import VECTOR_REGISTRY
from inspo.envs.bridge import BridgeVectorEnv, decode, encode, move, team_reward
from inspo.envs.bridge_boards import BOARD_OF, BOARDS, DOWN, LEFT, MOVES, RIGHT, STAY, UP, Board
from inspo.offline.game_data import make_dataset, optimal_plan, plan_in_order
from inspo.utils.errors import ConfigError
from paper.boards import episode_png, episodes_gif

TWO = BOARDS["bridge"]
GOALS, STARTS = TWO.goals, TWO.starts
FREE = list(map(tuple, np.argwhere(~TWO.wall)))
N_AGENTS = pytest.mark.parametrize("n_agents", [3, 4])


def board(*cells) -> np.ndarray:
    """One board `[1, 2, 2]` of the cells of agents 1 and 2."""
    return np.array([cells])


# ------------------------------------------------------------------------------------ the rules

# name: the cells of agents 1 and 2, their actions, the cells after. Transitions of AlberDICE's
# trajectories (random play of the file `mix`); all other boards are held to `by_the_rules`.
CASES = {
    "side by side to the left": ((1, 2), (1, 3), LEFT, LEFT, (1, 1), (1, 2)),
    "one follows the other": ((1, 2), (1, 3), RIGHT, RIGHT, (1, 3), (1, 4)),
    "one follows up": ((1, 0), (2, 0), RIGHT, UP, (1, 1), (1, 0)),
    "agent 1 into a cell that is held": ((1, 2), (1, 3), RIGHT, STAY, (1, 2), (1, 3)),
    "agent 2 into a cell that is held": ((1, 2), (1, 3), STAY, LEFT, (1, 2), (1, 3)),
    "swap": ((1, 2), (1, 3), RIGHT, LEFT, (1, 2), (1, 3)),
    "agent 1 wins a cell": ((1, 1), (1, 3), RIGHT, LEFT, (1, 2), (1, 3)),
    "agent 1 wins even agent 2's goal": ((0, 1), (1, 0), LEFT, UP, (0, 0), (1, 0)),
    "agent 1 wins its goal": ((2, 4), (1, 5), RIGHT, DOWN, (2, 5), (1, 5)),
    "agent 1 into its goal, held": ((2, 4), (2, 5), RIGHT, STAY, (2, 5), (2, 5)),
    "agent 2 into its goal, held": ((0, 0), (1, 0), LEFT, UP, (0, 0), (0, 0)),
    "agent 1 swaps into its goal": ((2, 4), (2, 5), RIGHT, LEFT, (2, 5), (2, 4)),
    "agent 2 does not": ((0, 0), (0, 1), RIGHT, LEFT, (0, 0), (0, 1)),
    "one passes a done agent 1": ((2, 5), (2, 4), DOWN, RIGHT, (2, 5), (2, 5)),
    "one passes a done agent 2": ((0, 1), (0, 0), LEFT, UP, (0, 0), (0, 0)),
    "a done agent stays": ((2, 5), (1, 3), UP, STAY, (2, 5), (1, 3)),
}


def test_published_transitions():
    """All boards at once: they do not touch each other."""
    before, actions, after = (
        np.array([case[part] for case in CASES.values()])
        for part in (slice(0, 2), slice(2, 4), slice(4, None))
    )
    copy, found = before.copy(), move(before, actions)
    wrong = [name for name, a, b in zip(CASES, found, after) if (a != b).any()]
    assert not wrong and (before == copy).all()


def by_the_rules(board: Board, cells: list, actions: list) -> list:
    """The rules one agent at a time, as a reference for `move`."""
    goals, agents = [tuple(goal) for goal in board.goals], range(board.n_agents)
    cells = [tuple(cell) for cell in cells]
    wish = list(cells)
    for i in agents:
        row, column = np.array(cells[i]) + MOVES[actions[i]]
        inside = 0 <= row < board.wall.shape[0] and 0 <= column < board.wall.shape[1]
        if cells[i] != goals[i] and inside and not board.wall[row, column]:
            wish[i] = (row, column)
    moving = {i for i in agents if wish[i] != cells[i]}
    stopped = set()
    for i, j in itertools.combinations(sorted(moving), 2):
        if wish[i] == wish[j]:
            stopped.add(j)
        if wish[i] == cells[j] and wish[j] == cells[i] and wish[i] != goals[i]:
            stopped |= {i, j}
    changed = True
    while changed:
        held = {cells[j] for j in agents if cells[j] != goals[j] and j not in moving - stopped}
        more = {i for i in moving - stopped if wish[i] in held and wish[i] != goals[i]}
        stopped, changed = stopped | more, bool(more)
    return [wish[i] if i in moving - stopped else cells[i] for i in agents]


def test_two_agents_move_by_the_rules():
    """All 324 boards x 25 actions."""
    cells = np.repeat(np.array(list(np.ndindex(3, 6, 3, 6))).reshape(-1, 2, 2), 25, axis=0)
    actions = np.tile(np.array(list(np.ndindex(5, 5))), (324, 1))
    expected = [by_the_rules(TWO, *case) for case in zip(cells.tolist(), actions.tolist())]
    assert (move(cells, actions) == np.array(expected)).all()


@N_AGENTS
def test_more_agents_move_by_the_rules(n_agents):
    """Boards drawn at random, most of them crowded, so that agents do stand in each other's way."""
    board, rng = BOARD_OF[n_agents], np.random.default_rng(n_agents)
    free = np.argwhere(~board.wall)
    near = np.abs(free - rng.choice(free, size=(600, 1))).sum(axis=2) <= 2
    cells = np.stack([rng.choice(free[row], size=n_agents) for row in near])
    cells[:120, 0] = board.goals[0]  # some are done
    actions = rng.integers(5, size=(600, n_agents))
    after = move(cells, actions)
    expected = [by_the_rules(board, *case) for case in zip(cells.tolist(), actions.tolist())]
    assert (after == np.array(expected)).all()
    assert 0.2 < (after == cells).all(axis=2).mean() < 0.8


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
    onehot = make_dataset("bridge", "bridge", "optimal", episode_limit=8, observation="onehot")
    assert onehot.metadata.state_shape == 324 and onehot.arrays["terminated"].sum() == 500
    for actions in ([[5, 0]], [[0, -1]]):
        with pytest.raises(ValueError, match=r"available are \[0, 1, 2, 3, 4\]"):
            env.step(np.array(actions))


# ------------------------------------------------------------------------------------- episodes


def test_the_limit_truncates_and_still_pays():
    env = BridgeVectorEnv(n_envs=2, episode_limit=3)
    stay = np.zeros((2, 2), dtype=int)
    outs = [env.step(stay) for _ in range(3)]
    assert [out.truncated.tolist() for out in outs] == [[False] * 2, [False] * 2, [True] * 2]
    assert not any(out.terminated.any() for out in outs)
    distances = np.sqrt([1 + 9, 1 + 9])
    assert [out.reward[0] for out in outs] == pytest.approx([-0.1 * distances.mean()] * 3)
    assert not any(out.info["solved"].any() for out in outs)


def test_a_finished_board_stays_as_it_is_until_reset():
    env = BridgeVectorEnv(n_envs=2, episode_limit=20)
    plan = optimal_plan(0, UP, np.random.default_rng(0))
    for actions in plan:  # environment 1 stays at the start
        out = env.step(np.stack([actions, [STAY, STAY]]))
    frozen = env.observe()["state"][0]
    assert out.terminated.tolist() == [True, False] and out.info["solved"].tolist() == [1, 0]
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
    facts = dataset.metadata
    env = BridgeVectorEnv(facts.map_name, len(dataset), episode_limit=facts.episode_limit)
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


def steps_home(board: Board) -> np.ndarray:
    """What each agent alone needs from every cell, `[n, rows, columns]`; 99 in a wall."""
    steps = np.full((board.n_agents, *board.wall.shape), 99)
    for agent, goal in enumerate(map(tuple, board.goals)):
        steps[agent][goal], queue = 0, [goal]
        for cell in queue:
            for beside in map(tuple, cell + MOVES[1:]):
                inside = min(beside) >= 0 and (beside < np.array(board.wall.shape)).all()
                if inside and not board.wall[beside] and steps[agent][beside] == 99:
                    steps[agent][beside] = steps[agent][cell] + 1
                    queue.append(beside)
    return steps


@pytest.mark.parametrize(("name", "least"), [("bridge", 8), ("bridge_3", 9)])
def test_no_faster_way_home(name, least):
    """Breadth-first search over all joint actions, without the states from which an agent could
    not get home in time even alone: the plans are optimal in time."""
    board = BOARDS[name]
    n, shape, alone = board.n_agents, board.wall.shape * board.n_agents, steps_home(board)
    actions = np.array(list(np.ndindex(*[5] * n)))

    def solved(limit: int) -> bool:
        seen, frontier = np.zeros(np.prod(shape), dtype=bool), board.starts["adjacent"][None]
        for left in range(limit - 1, -1, -1):
            before = np.repeat(frontier, len(actions), axis=0)
            after = move(before, np.tile(actions, (len(frontier), 1)))
            need = alone[np.arange(n), after[..., 0], after[..., 1]]
            after = after[(need <= left).all(axis=1)].reshape(-1, 2 * n)
            reached = np.unique(np.ravel_multi_index(tuple(after.T), shape))
            reached = reached[~seen[reached]]
            seen[reached] = True
            frontier = np.stack(np.unravel_index(reached, shape), axis=1).reshape(-1, n, 2)
        return len(frontier) > 0  # with no step left, all are home

    assert solved(least) and not solved(least - 1)


@N_AGENTS
def test_every_order_of_crossing_takes_as_long_and_is_worth_as_much(n_agents):
    board, name = BOARD_OF[n_agents], f"bridge_{n_agents}"
    orders = list(itertools.permutations(range(n_agents)))
    env = BridgeVectorEnv(name, n_envs=len(orders))
    plans = np.stack([plan_in_order(board, order) for order in orders])
    middle = board.wall.shape[1] // 2  # a column of the bridge
    crossed, total = np.full((len(orders), n_agents), -1), np.zeros(len(orders))
    for t in range(plans.shape[1]):
        out = env.step(plans[:, t])
        total += out.reward
        crossed[(env.cells[..., 1] == middle) & (crossed < 0)] = t
    assert plans.shape[1] == {3: 9, 4: 10}[n_agents] and out.terminated.all()
    assert [tuple(row) for row in crossed.argsort(axis=1)] == orders
    assert np.ptp(total) < 0.02 * np.abs(total).mean()


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


@N_AGENTS
def test_data_of_more_agents(n_agents):
    name, orders = f"bridge_{n_agents}", math.factorial(n_agents)
    mixed, optimal = (make_dataset("bridge", name, quality) for quality in ("mixed", "optimal"))
    replay(mixed)
    assert len(optimal) == 600 and (optimal.lengths == {3: 9, 4: 10}[n_agents]).all()
    episodes = optimal.episodes(np.arange(600))["actions"].reshape(600, -1)
    _, counts = np.unique(episodes, axis=0, return_counts=True)
    assert counts.tolist() == [600 // orders] * orders
    assert mixed.select(np.arange(600, 1200)).metadata.content_hash == optimal.metadata.content_hash
    random = mixed.select(np.arange(600))
    played = random.arrays["actions"][random.is_transition()]
    assert np.bincount(played.ravel()) / played.size == pytest.approx([0.2] * 5, abs=0.02)
    assert mixed.metadata.n_agents == n_agents and mixed.metadata.state_shape == 4 * n_agents


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BridgeVectorEnv("bridge_5"), r"map_name: .*'bridge_5'.*Known: bridge, bridge_3"),
        (lambda: BridgeVectorEnv("bridge_3", start="apart"), r"start: .*'apart'\. Known: adjacent"),
        (lambda: BridgeVectorEnv(start="apert"), r"start: .*'apert'\..* Known: adjacent, apart"),
        (lambda: BridgeVectorEnv("bridge_3", observation="onehot"), "13,824 numbers wide"),
        (lambda: BridgeVectorEnv("bridge_4", observation="onehot"), "810,000 numbers wide"),
        (lambda: make_dataset("bridge", "bridge_5", "optimal"), "Known: none"),
        (lambda: make_dataset("bridge", "bridge_3", "optimum"), "Did you mean 'optimal'"),
        (lambda: make_dataset("bridge", "bridge_3", "mixed", episode_limit=8), "take 9 steps"),
        (lambda: make_dataset("bridge", "bridge_4", "mixed", episode_limit=9), "take 10 steps"),
        (lambda: make_dataset("bridge", "bridge", "optimal", episode_limit=7), "episode_limit"),
    ],
)
def test_bad_input_says_what_there_is(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_png_and_gif(tmp_path, optimal):
    batch = optimal.episodes([0, 1])
    states, actions = batch["state"][:, :4], batch["actions"][:, :4, :, 0]
    episodes_gif(tmp_path / "both.gif", states, actions, ["one", "two"])
    with Image.open(tmp_path / "both.gif") as image:
        assert image.format == "GIF" and image.n_frames == 4 and image.info["loop"] == 0
    three = BOARDS["bridge_3"].starts["adjacent"][None]
    episode_png(tmp_path / "three.png", encode(three), title="Bridge")
    with Image.open(tmp_path / "three.png") as image:
        assert image.format == "PNG" and image.width > image.height > 100
