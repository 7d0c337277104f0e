"""Bridge: two agents must cross a bridge one cell wide, in opposite directions.

    b . # # . .      b  goal of agent 2      a  goal of agent 1
    . . 1 2 . .      the bridge is the middle row; its two cells between the walls hold one agent
    . . # # . a      across, so that one of the two has to go back first

The game is Fu et al. 2022's in the version of AlberDICE (Matsunaga et al. 2023), and its rules
were read off AlberDICE's published trajectories: replaying them gives the same numbers.

Rules of a step, for cells (row, column) and actions stay, up, down, right, left:
1. An agent on its goal is done: it stays there, whatever it plays, and stops nobody.
2. A move off the grid or into a wall is no move.
3. An agent cannot enter a cell in which the other one stays, its own goal excepted. It can where
   the other one leaves.
4. Two agents that would swap cells both stay, unless agent 1 thereby reaches its goal.
5. Of two agents that would enter the same cell, agent 1 moves and agent 2 stays.
So two agents share a cell only where it is the goal of one that is done.
The reward is shared: -0.1 x the mean over both agents of the Euclidean distance to the goal after
the step, where one that was done before counts 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inspo.envs.multiagentenv import VectorEnv, VectorStep

N_ROWS, N_COLUMNS = 3, 6
N_CELLS = N_ROWS * N_COLUMNS
WALLS = ((0, 2), (0, 3), (2, 2), (2, 3))
GOALS = np.array([[2, 5], [0, 0]])  # [agent, (row, column)]
STARTS = {
    "adjacent": np.array([[1, 2], [1, 3]]),  # side by side on the bridge
    "apart": np.array([[1, 1], [1, 4]]),  # at the two ends of it
}
STAY, UP, DOWN, RIGHT, LEFT = range(5)
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, 1], [0, -1]])  # [action, (row, column)]

_WALL = np.zeros((N_ROWS, N_COLUMNS), dtype=bool)
_WALL[tuple(np.array(WALLS).T)] = True


def same_cell(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether cells `[..., 2]` are equal, bool `[...]`."""
    return np.logical_and.reduce(a == b, axis=-1)


def is_done(cells: np.ndarray) -> np.ndarray:
    """Whether each agent is on its goal: cells `[..., 2, 2]` -> bool `[..., 2]`."""
    return same_cell(cells, GOALS)


def move(cells: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """One step of N boards (rules 1 to 5 above).

    cells: int `[N, 2, 2]`, (row, column) of both agents. actions: int `[N, 2]`.
    Returns the new cells `[N, 2, 2]`.
    """
    done = is_done(cells)
    wish = cells + MOVES[actions]
    inside = ((wish >= 0) & (wish < (N_ROWS, N_COLUMNS))).all(axis=-1)
    row, column = np.where(inside[..., None], wish, 0).transpose(2, 0, 1)
    free = inside & ~_WALL[row, column] & ~done
    wish = np.where(free[..., None], wish, cells)

    moving = ~same_cell(wish, cells)
    home = is_done(wish)
    first, second = 0, 1
    in_the_way = ~np.logical_or.reduce(done, axis=1)  # a done agent stops nobody
    meet = same_cell(wish[:, first], wish[:, second])
    swap = same_cell(wish[:, first], cells[:, second]) & same_cell(wish[:, second], cells[:, first])
    # where `meet` is true and one of the two does not move, the other one runs into it
    stopped = np.stack(
        [
            ~home[:, first] & (meet & ~moving[:, second] | swap),
            meet & (moving[:, first] | ~home[:, second]) | swap & ~home[:, first],
        ],
        axis=1,
    )
    stopped &= in_the_way[:, None] & moving
    return np.where(stopped[..., None], cells, wish)


def team_reward(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The shared reward of a step from cells `before` to `after` `[N, 2, 2]`, float32 `[N]`."""
    distance = np.linalg.norm(GOALS - after, axis=-1)
    own = np.where(is_done(before), 0.0, -0.1 * distance).astype(np.float32)
    return own.mean(axis=1)


def encode(cells: np.ndarray, observation: str = "coordinates") -> np.ndarray:
    """The state of cells `[N, 2, 2]`, float32 `[N, 8]` or `[N, 324]`.

    `coordinates`: row, column, goal row, goal column of agent 1, then of agent 2. `onehot`: 1 at
    the index `18 x cell of agent 1 + cell of agent 2`, where `cell = 6 x row + column`.
    """
    if observation == "coordinates":
        goals = np.broadcast_to(GOALS, cells.shape)
        return np.concatenate([cells, goals], axis=-1).reshape(len(cells), 8).astype(np.float32)
    flat = cells[..., 0] * N_COLUMNS + cells[..., 1]  # [N, 2]
    states = np.zeros((len(cells), N_CELLS**2), dtype=np.float32)
    states[np.arange(len(cells)), flat[:, 0] * N_CELLS + flat[:, 1]] = 1
    return states


def decode(states: np.ndarray) -> np.ndarray:
    """The cells int `[N, 2, 2]` of states `[N, 8]` (coordinates) or `[N, 324]` (onehot)."""
    states = np.asarray(states)
    if states.shape[-1] == 8:
        return np.rint(states.reshape(-1, 2, 4)[..., :2]).astype(np.int64)
    joint = states.argmax(axis=-1)
    flat = np.stack([joint // N_CELLS, joint % N_CELLS], axis=-1)
    return np.stack([flat // N_COLUMNS, flat % N_COLUMNS], axis=-1)


class BridgeVectorEnv(VectorEnv):
    """N boards of Bridge in numpy. Nothing in it is random.

    map_name: `bridge`. episode_limit: steps after which an episode is truncated; the reward of
    that step is paid as of any other. (AlberDICE's own simulator calls the limit an end and pays
    0 there.) start: `adjacent` on the bridge, or `apart` at its ends. observation: how the state
    is written, `coordinates` (8 numbers) or `onehot` (324); both agents observe the whole state.
    info: `solved`, 1 in the step in which both agents are done.
    """

    def __init__(
        self,
        map_name: str = "bridge",
        n_envs: int = 1,
        episode_limit: int = 20,
        start: str = "adjacent",
        observation: str = "coordinates",
    ):
        self.map_name, self.start, self.observation = map_name, start, observation
        self.n_envs = int(n_envs)
        self.n_agents = 2
        self.episode_limit = episode_limit
        self._seed = 0
        self.reset()

    def get_env_info(self) -> dict[str, int]:
        size = encode(self.cells[:1], self.observation).shape[1]
        return {
            "state_shape": size,
            "obs_shape": size,
            "n_actions": len(MOVES),
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def seed(self, seed: int) -> None:
        self._seed = int(seed)  # kept for get_rng; nothing in the game is random

    def get_rng(self) -> Any:
        return {"seed": self._seed}

    def set_rng(self, state: Any) -> None:
        self._seed = int(state["seed"])

    def reset(self) -> None:
        self.cells = np.tile(STARTS[self.start], (self.n_envs, 1, 1))  # [N, 2, 2]
        self._finished = np.zeros(self.n_envs, dtype=bool)
        self._steps = 0  # all start together, so one clock serves all

    def observe(self) -> dict[str, np.ndarray]:
        state = encode(self.cells, self.observation)
        return {
            "state": state,
            "obs": np.repeat(state[:, None], self.n_agents, axis=1),
            "avail_actions": np.ones((self.n_envs, self.n_agents, len(MOVES)), dtype=np.int32),
        }

    def step(self, actions: np.ndarray) -> VectorStep:
        live = ~self._finished
        played = np.where(live[:, None], actions, STAY)
        if ((played < 0) | (played >= len(MOVES))).any():
            raise ValueError(f"Bridge has the actions 0 to {len(MOVES) - 1}; found {played}")
        before = self.cells
        self.cells = np.where(live[:, None, None], move(before, played), before)
        self._steps += 1
        terminated = live & is_done(self.cells).all(axis=1)
        truncated = live & ~terminated & (self._steps >= self.episode_limit)
        self._finished |= terminated | truncated
        reward = np.where(live, team_reward(before, self.cells), 0).astype(np.float32)
        return VectorStep(reward, terminated, truncated, {"solved": terminated.astype(np.float32)})
