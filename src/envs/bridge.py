"""Bridge: agents must cross a bridge one cell wide, where they cannot pass each other.

    b . # # . .      . 1 . # # . c .      . 1 # # d .      1, 2, ...: agents
    . . 1 2 . .      2 . . . . . . a      2 . # # . c      a, b, ...: their goals
    . . # # . a      . 3 . # # . b .      . . . . . .
                                          3 . # # . b
                                          . 4 # # a .

The game of two agents (`bridge`) is Fu et al. 2022's in the version of AlberDICE (Matsunaga et al.
2023), and its rules were read off AlberDICE's published trajectories: replaying them gives the same
numbers. They cross in opposite directions, so that one of the two has to go back first.

Those of three and four (`bridge_3`, `bridge_4`) are ours. All cross in the same direction, one
after the other. All of them are two steps from the mouth of the bridge and as far from it to their
goals, so every order of crossing takes the same 9 (four agents: 10) steps, and the mean distances
differ little. What an order needs is that exactly one goes while the others wait: if two teams
keep different orders, members of both may wait for each other for ever.

Rules of a step, for cells (row, column) and actions stay, up, down, right, left:
1. An agent on its goal is done: it stays there, whatever it plays, and stops nobody.
2. A move off the grid or into a wall is no move.
3. An agent cannot enter a cell in which another one stays, its own goal excepted. It can where
   the other one leaves.
4. Two agents that would swap cells both stay, unless the first of them thereby reaches its goal.
5. Of agents that would enter the same cell, the first moves and the others stay.
So agents share a cell only where it is the goal of one that is done.
The reward is shared: -0.1 x the mean over the agents of the Euclidean distance to the goal after
the step, where one that was done before counts 0.
"""

from __future__ import annotations

import numpy as np

from inspo.envs.bridge_boards import BOARD_OF, BOARDS, MOVES, STAY, Board
from inspo.envs.multiagentenv import VectorEnv, VectorStep, available
from inspo.utils.errors import ConfigError, require_known


def board_of(cells: np.ndarray) -> Board:
    """The board of cells `[..., n, 2]`."""
    return BOARD_OF[cells.shape[-2]]


def same_cell(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether cells `[..., 2]` are equal, bool `[...]`."""
    return np.logical_and.reduce(a == b, axis=-1)


def is_done(cells: np.ndarray) -> np.ndarray:
    """Whether each agent is on its goal: cells `[..., n, 2]` -> bool `[..., n]`."""
    return same_cell(cells, board_of(cells).goals)


def move(cells: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """One step of N boards (rules 1 to 5 above).

    cells: int `[N, n, 2]`, (row, column) of the agents. actions: int `[N, n]`.
    Returns the new cells `[N, n, 2]`.
    """
    wall, n_agents = board_of(cells).wall, cells.shape[1]
    done = is_done(cells)
    wish = cells + MOVES[actions]
    inside = ((wish >= 0) & (wish < wall.shape)).all(axis=-1)
    row, column = np.where(inside[..., None], wish, 0).transpose(2, 0, 1)
    moving = inside & ~wall[row, column] & ~done & (actions != STAY)
    wish = np.where(moving[..., None], wish, cells)

    home = is_done(wish)
    both = moving[:, :, None] & moving[:, None]  # [N, n, n], as are the next
    onto = same_cell(wish[:, :, None], cells[:, None])  # i would enter the cell of j
    earlier = np.tri(n_agents, k=-1, dtype=bool)  # j before i
    contested = both & earlier & same_cell(wish[:, :, None], wish[:, None])
    first_home = np.where(earlier, home[:, None], home[:, :, None])
    swap = both & onto & onto.transpose(0, 2, 1) & ~first_home
    stopped = np.logical_or.reduce(contested | swap, axis=2)
    for _ in range(n_agents - 1):  # one that is stopped may stop the one behind it
        holding = ~done & (~moving | stopped)
        stopped |= moving & ~home & np.logical_or.reduce(onto & holding[:, None], axis=2)
    return np.where((moving & ~stopped)[..., None], wish, cells)


def team_reward(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The shared reward of a step from cells `before` to `after` `[N, n, 2]`, float32 `[N]`."""
    distance = np.linalg.norm(board_of(after).goals - after, axis=-1)
    own = np.where(is_done(before), 0.0, -0.1 * distance).astype(np.float32)
    return own.mean(axis=1)


def encode(cells: np.ndarray, observation: str = "coordinates") -> np.ndarray:
    """The state of cells `[N, n, 2]`, float32 `[N, 4 n]`, or `[N, 324]` of two agents.

    `coordinates`: row, column, goal row, goal column of agent 1, then of agent 2, and so on.
    `onehot`: 1 at the index `18 x cell of agent 1 + cell of agent 2`, where
    `cell = 6 x row + column`.
    """
    board = board_of(cells)
    if observation == "coordinates":
        goals = np.broadcast_to(board.goals, cells.shape)
        return np.concatenate([cells, goals], axis=-1).reshape(len(cells), -1).astype(np.float32)
    n_cells, n_columns = board.wall.size, board.wall.shape[1]
    flat = cells[..., 0] * n_columns + cells[..., 1]  # [N, 2]
    states = np.zeros((len(cells), n_cells**2), dtype=np.float32)
    states[np.arange(len(cells)), flat[:, 0] * n_cells + flat[:, 1]] = 1
    return states


def decode(states: np.ndarray) -> np.ndarray:
    """The cells int `[N, n, 2]` of states `[N, 4 n]` (coordinates) or `[N, 324]` (onehot)."""
    states = np.asarray(states)
    wall = BOARD_OF[2].wall
    if states.shape[-1] == wall.size**2:
        cells = np.unravel_index(states.argmax(axis=-1), 2 * wall.shape)
        return np.stack(cells, axis=-1).reshape(-1, 2, 2)
    return np.rint(states.reshape(len(states), -1, 4)[..., :2]).astype(np.int64)


class BridgeVectorEnv(VectorEnv):
    """N boards of Bridge in numpy. Nothing in it is random.

    map_name: `bridge`, `bridge_3` or `bridge_4`. episode_limit: steps after which an episode is
    truncated; the reward of that step is paid as of any other. (AlberDICE's own simulator calls the
    limit an end and pays 0 there.) start: `adjacent`, as drawn above; of two agents also `apart`,
    at the ends of the bridge. observation: how the state is written, `coordinates` (4 numbers an
    agent) or `onehot` (324, of two agents); all agents observe the whole state. ConfigError for
    other values. info: `solved`, 1 in the step in which all agents are done.
    """

    def __init__(
        self,
        map_name: str = "bridge",
        n_envs: int = 1,
        episode_limit: int = 20,
        start: str = "adjacent",
        observation: str = "coordinates",
    ):
        require_known(map_name, BOARDS, "env_args.map_name: no board of Bridge is called")
        self.board = BOARDS[map_name]
        require_known(start, self.board.starts, f"env_args.start: {map_name} has no start")
        if observation == "onehot" and self.board.n_agents > 2:
            size = self.board.wall.size**self.board.n_agents
            raise ConfigError(
                f"env_args.observation: a one-hot state of {map_name} would be {size:,} numbers "
                "wide; use coordinates."
            )
        self.map_name, self.start, self.observation = map_name, start, observation
        self.n_envs = int(n_envs)
        self.n_agents, self.n_actions = self.board.n_agents, len(MOVES)
        self.episode_limit = episode_limit
        self.reset()
        self.state_shape = self.obs_shape = encode(self.cells[:1], self.observation).shape[1]

    def reset(self) -> None:
        self.cells = np.tile(self.board.starts[self.start], (self.n_envs, 1, 1))  # [N, n, 2]
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
        played = available(actions, self.observe()["avail_actions"], live)
        before = self.cells
        self.cells = np.where(live[:, None, None], move(before, played), before)
        self._steps += 1
        terminated = live & is_done(self.cells).all(axis=1)
        truncated = live & ~terminated & (self._steps >= self.episode_limit)
        self._finished |= terminated | truncated
        reward = np.where(live, team_reward(before, self.cells), 0).astype(np.float32)
        return VectorStep(reward, terminated, truncated, {"solved": terminated.astype(np.float32)})
