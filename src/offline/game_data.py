"""Datasets that are made in seconds: matrix games, Bridge, and scripted teams (`teams`).

`generate(env, map_name, quality, path, seed)` writes one; the same seed gives the same content.

What is in them stands in docs/datasets.md; the recipes are InSPO's (arXiv 2412.07639, Figures 1 and
2, Appendix C.2), and Bridge is as in AlberDICE's published files.

`tabular.matrix_games` says which other matrix games and qualities there are. Their datasets are the
smallest of at least 1,200 episodes (`m_ne`: 1,000) in which the proportions of the joint actions
are exact and each occurs 8 times. The counts are exact, not drawn; the order of the episodes is
drawn. In `balanced` of two agents, where 1,000 is not a multiple of 9, one joint action, AA, occurs
112 times and the others 111 times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from inspo.envs import VECTOR_REGISTRY
from inspo.envs.bridge import BridgeVectorEnv
from inspo.envs.bridge_boards import BOARDS, DOWN, LEFT, RIGHT, STAY, UP, Board
from inspo.envs.matrix import MatrixVectorEnv
from inspo.envs.mpe import AGENTS
from inspo.envs.multiagentenv import VectorEnv
from inspo.offline import overcooked_data, teams
from inspo.offline.formats.canonical_writer import write_dataset
from inspo.offline.offline_dataset import DatasetMetadata, OfflineDataset
from inspo.tabular import matrix_games
from inspo.utils.errors import ConfigError, require_known

MIN_COUNT = 8  # episodes of the rarest joint action of a matrix game
MAX_EPISODES = 200_000
BRIDGE_EPISODES = {2: 500, 3: 600, 4: 600}  # of each kind; 600 = 100 x 3! = 25 x 4!
BRIDGE_QUALITIES = ("optimal", "mixed")

# (env, map) that `dataset.py list` names; for other numbers of agents the data are made likewise.
LISTED = [
    *(("matrix", name) for name in matrix_games.QUALITIES),
    *(("bridge", board) for board in BOARDS),
    *(("mpe", f"spread_{n}") for n in AGENTS),
    *(("overcooked", layout) for layout in overcooked_data.TEAMS),
]


def qualities(env: str, map_name: str) -> tuple[str, ...]:
    """What this module makes for a map; nothing for one that it does not know."""
    if env == "matrix":
        game = matrix_games.find(map_name)
        return matrix_games.QUALITIES[game.kind] if game else ()
    if env == "mpe" or (env == "overcooked" and map_name in overcooked_data.TEAMS):
        return teams.QUALITIES
    return BRIDGE_QUALITIES if env == "bridge" and map_name in BOARDS else ()


# --------------------------------------------------------------------------------------------------
# Matrix games


def exact_counts(probabilities: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total` and are nearest to `probabilities * total`, same shape.

    What is left after rounding down goes to the largest remainders, the first one in a tie.
    """
    # 1e-9: 0.1 * 0.1 * 1000 is 10.000000000000002, and its like may fall below the whole number
    wanted = np.asarray(probabilities, dtype=np.float64) * total
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    remainders = (wanted - counts).ravel()
    first = np.argsort(-np.round(remainders, 9), kind="stable")[: total - counts.sum()]
    np.add.at(counts.ravel(), first, 1)
    return counts


def episode_counts(map_name: str, quality: str) -> tuple[np.ndarray, np.ndarray]:
    """The joint actions of a matrix dataset, int `[M, n]`, and the episodes of each, int `[M]`.

    ConfigError if the names are none, or if `MAX_EPISODES` do not hold the rarest joint action
    `MIN_COUNT` times.
    """
    actions, weights = matrix_games.frequencies(map_name, quality)
    unit, rarest, n_agents = int(weights.sum()), int(weights.min()), actions.shape[1]
    least = 1000 if quality in matrix_games.QUALITIES["m_ne"] else 1200
    total = unit * max(-(-least // unit), -(-MIN_COUNT // rarest))
    if quality == "balanced" and n_agents == 2:
        total = 1000  # as it was before there were more agents; 1,008 would be exact
    if total > MAX_EPISODES:
        raise ConfigError(
            f"quality: '{quality}' of {map_name} needs {total:,} episodes, for the rarest joint "
            f"action to occur {MIN_COUNT} times; at most {MAX_EPISODES:,} are made. Take fewer "
            "agents or another quality; the closed form (tabular.paper_games) knows this one too."
        )
    return actions, exact_counts(weights / unit, total)


def joint_actions(map_name: str, quality: str, rng: np.random.Generator) -> np.ndarray:
    """Joint actions int `[E, 1, n]` of a matrix dataset, in exact proportions and random order."""
    actions, counts = episode_counts(map_name, quality)
    return rng.permutation(np.repeat(actions, counts, axis=0))[:, None]


# --------------------------------------------------------------------------------------------------
# Bridge

TURNED = {STAY: STAY, UP: DOWN, DOWN: UP, RIGHT: LEFT, LEFT: RIGHT}


def optimal_plan(first_to_cross: int, room: int, rng: np.random.Generator) -> np.ndarray:
    """One plan of 8 steps that takes both agents home from side by side: actions int `[8, 2]`.

    Written for agent 2 crossing first (`first_to_cross=1`); turned by 180 degrees, the board is the
    same with the agents exchanged. Agent 1 backs off the bridge, makes room in one of the three
    cells beside its end (`room`: LEFT, UP or DOWN), comes back and crosses; agent 2 follows and
    goes home. Remaining choices are drawn uniformly, as in AlberDICE's file, and so are the actions
    of an agent that is done, from those that would not move it.
    """
    # agent 2 stands where the bridge ends, has to leave it, and cannot enter agent 1's cell
    corner = {LEFT: (UP, LEFT), UP: (LEFT, UP)}.get(room)
    corner = corner or ((LEFT, UP) if rng.random() < 0.5 else (UP, LEFT))
    last = (RIGHT, DOWN) if rng.random() < 0.5 else (DOWN, RIGHT)
    back = {LEFT: RIGHT, UP: DOWN, DOWN: UP}[room]
    second = [LEFT, room, back, RIGHT, RIGHT, RIGHT, *last]
    first = [LEFT, LEFT, *corner, *rng.choice([STAY, UP, LEFT], size=4)]
    if first_to_cross == 1:
        return np.array([second, first]).T
    return np.array([[TURNED[a] for a in first], [TURNED[a] for a in second]]).T


def plan_in_order(board: Board, order: Sequence[int]) -> np.ndarray:
    """The plan of three or four agents that cross in this order, int `[steps, n]`.

    Each waits where it starts until the one before it has made a step.
    """
    path_length = len(board.paths[0])
    plan = np.full((path_length + len(order) - 1, len(order)), STAY)
    for turn, agent in enumerate(order):
        plan[turn : turn + path_length, agent] = board.paths[agent]
    return plan


def shortest_plans(board: Board, rng: np.random.Generator) -> np.ndarray:
    """Optimal plans, every order of crossing equally often, int `[E, steps, n]`, shuffled.

    Of two agents, each room is used by a third of the plans. The rooms differ in the distances on
    the way, so the returns are -1.290, -1.259 and -1.235, and the mean is that of AlberDICE's file,
    -1.262.
    """
    shuffled = rng.permutation(BRIDGE_EPISODES[board.n_agents])
    if board.n_agents == 2:
        rooms = (LEFT, UP, DOWN)
        return np.stack([optimal_plan(k % 2, rooms[k // 2 % 3], rng) for k in shuffled])
    orders = list(permutations(range(board.n_agents)))
    return np.stack([plan_in_order(board, orders[k % len(orders)]) for k in shuffled])


def bridge_actions(
    map_name: str, quality: str, limit: int, streams: Sequence[np.random.Generator]
) -> np.ndarray:
    """The actions of a Bridge dataset, int `[E, limit, n]` (0 after the end)."""
    what = f"quality: of bridge/{map_name} no data are generated that are called"
    require_known(quality, qualities("bridge", map_name), what)
    board = BOARDS[map_name]
    plans = shortest_plans(board, streams[0])
    episodes, steps, n_agents = plans.shape
    if limit < steps:
        raise ConfigError(
            f"env_args.episode_limit: the optimal plans of {map_name} take {steps} steps, so the "
            f"data need a limit of {steps} or more; found {limit}."
        )
    optimal = np.zeros((episodes, limit, n_agents), dtype=np.int64)
    optimal[:, :steps] = plans
    if quality == "optimal":
        return optimal
    return np.concatenate([streams[1].integers(5, size=optimal.shape), optimal])


# --------------------------------------------------------------------------------------------------
# From actions to a dataset


def play(
    env: VectorEnv, act: Callable[[int, dict[str, np.ndarray]], np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The rows of one episode in each of the E environments of `env`.

    act: the step and what is observed -> actions int `[E, n]`. Returns (key -> `[rows, ...]`,
    lengths `[E]`) as `OfflineDataset` holds them.
    """
    n_steps = env.episode_limit + 1
    steps: dict[str, list[np.ndarray]] = {}
    filled = np.zeros((env.n_envs, n_steps), dtype=bool)
    playing = np.ones(env.n_envs, dtype=bool)
    ended = np.zeros(env.n_envs, dtype=bool)
    env.reset()
    for t in range(n_steps):
        row = env.observe()
        filled[:, t] = playing  # that of the terminal observation too
        playing = playing & ~ended
        row["actions"] = np.zeros((env.n_envs, env.n_agents, 1), dtype=np.int64)
        row["reward"] = np.zeros((env.n_envs, 1), dtype=np.float32)
        row["terminated"] = np.zeros((env.n_envs, 1), dtype=np.uint8)
        if playing.any():
            actions = act(t, row)
            out = env.step(actions)
            row["actions"][playing] = actions[playing][..., None]
            row["reward"][:, 0] = out.reward
            row["terminated"][:, 0] = out.terminated
            ended = ended | out.terminated | out.truncated
        for key, value in row.items():
            steps.setdefault(key, []).append(value)
    arrays = {key: np.stack(values, axis=1)[filled] for key, values in steps.items()}
    return arrays, filled.sum(axis=1) - 1


def make_dataset(
    env: str,
    map_name: str,
    quality: str,
    seed: int = 0,
    episode_limit: int = 20,
    observation: str = "coordinates",
    **options: Any,
) -> OfflineDataset:
    """The dataset in memory.

    episode_limit: of all but matrix games. observation: Bridge's. options: further `env_args` of
    the environments of scripted teams.
    """
    # one stream for each kind of data, so that `mixed` contains exactly the episodes of `optimal`
    streams = [np.random.default_rng([seed, stream]) for stream in range(2)]
    source, env_args = f"generated, seed {seed}", ""
    if env in teams.SCRIPTS:
        script = teams.SCRIPTS[env]
        team = teams.teams_of_episodes(env, map_name, quality, streams[0])
        options["episode_limit"] = episode_limit
        env_args = json.dumps(options, sort_keys=True)
        source += f", {', '.join(f'team {t}: {n}' for t, n in enumerate(np.bincount(team)))}"
        simulator: VectorEnv = VECTOR_REGISTRY[env](
            map_name=map_name, n_envs=len(team), seed=seed, **options
        )
        members = np.tile(team[:, None], simulator.n_agents)
        arrays, lengths = play(
            simulator, lambda t, seen: script.act(map_name, members, seen["state"], streams[1])
        )
    elif env == "matrix":
        actions = joint_actions(map_name, quality, streams[0])
        simulator = MatrixVectorEnv(map_name, n_envs=len(actions))
        arrays, lengths = play(simulator, lambda t, seen: actions[:, t])
    else:
        actions = bridge_actions(map_name, quality, episode_limit, streams)
        simulator = BridgeVectorEnv(
            map_name, len(actions), episode_limit=episode_limit, observation=observation
        )
        arrays, lengths = play(simulator, lambda t, seen: actions[:, t])
    info: dict[str, Any] = simulator.get_env_info()
    metadata = DatasetMetadata(
        env=env,
        map_name=map_name,
        quality=quality,
        simulator=getattr(simulator, "simulator", f"{env} 1"),
        source=source,
        created_by="offline.games",  # as it was called when the first were made
        env_args=env_args or None,
        **info,
    )
    return OfflineDataset.build(arrays, lengths, metadata)


def generate(
    env: str, map_name: str, quality: str, path: str | Path, seed: int = 0, **options: Any
) -> OfflineDataset:
    """Make a dataset (see `make_dataset`), write it to `path` and return it.

    A file of that name is replaced, in one move and by the same content, so that runs started
    together that all miss the file may all make it.
    """
    dataset = make_dataset(env, map_name, quality, seed, **options)
    write_dataset(path, dataset, overwrite=True)
    return dataset
