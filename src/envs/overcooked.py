"""Overcooked (Carroll et al. 2019), on JaxMARL's engine: two cooks in one kitchen.

Three onions in a pot cook for 20 steps, the soup goes onto a plate, and each one delivered pays 20.
Actions: 0 up, 1 down, 2 right, 3 left (a step, or a turn where something is in the way), 4 stays,
5 interacts with what is in front: takes, puts down, fills a pot, delivers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from inspo.envs.jax_env import JaxVectorEnv, Program, import_jax
from inspo.utils.errors import require_known

N_AGENTS, N_ACTIONS = 2, 6
# W counter, P pot, O onions, B plates, X where soups go. JaxMARL has the same as lists of numbers.
LAYOUTS = {
    "cramped_room": ("WWPWW", "O   O", "W   W", "WBWXW"),
    "asymm_advantages": ("WWWWWWWWW", "O WXWOW X", "W   P   W", "W   P   W", "WWWBWBWWW"),
    "coord_ring": ("WWWPW", "W   P", "B W W", "O   W", "WOXWW"),
    "forced_coord": ("WWWPW", "O W P", "O W W", "B W W", "WWWXW"),
    "counter_circuit": ("WWWPPWWW", "W      W", "B WWWW X", "W      W", "WWWOOWWW"),
}
DIRECTIONS = np.array([[-1, 0], [1, 0], [0, 1], [0, -1]])  # of the first four actions
STAY, INTERACT = 4, 5
NOTHING, ONION, PLATE, SOUP = range(4)
COOKING_STEPS = 20
ITEMS = (3, 5, 9)  # what is held or lies about, by JaxMARL's numbers: an onion, a plate, a soup
POT_EMPTY, POT_FULL = 23, 20  # JaxMARL's status of a pot: 23 to 20 count onions, 20 to 0 the steps
PADDING = 4  # of JaxMARL's map


class OvercookedVectorEnv(JaxVectorEnv):
    """N copies of one kitchen.

    map_name: one of JaxMARL's five layouts.
    n_envs: N.
    episode_limit: steps of every episode; nothing else ends one, so a learner bootstraps there.
    shaping: share of JaxMARL's shaped reward (3 for an onion into a pot and for a plate that is
        needed, 5 for a soup onto a plate) that is paid beside the deliveries.

    An agent sees itself, then the other, each as the cell where it is (one number for each cell of
    the floor, row by row), its direction (4) and what it holds (onion, plate, soup); then each pot
    (onions / 3, steps left / 20, 1 if done) and each counter that can be reached (onion, plate,
    soup). The state is what the first agent sees.
    """

    def __init__(
        self,
        map_name: str = "coord_ring",
        n_envs: int = 32,
        seed: int = 0,
        episode_limit: int = 400,
        shaping: float = 0.0,
    ):
        self.map_name, self.n_agents, self.n_actions = map_name, N_AGENTS, N_ACTIONS
        self.kitchen, self.episode_limit = Kitchen(map_name), episode_limit
        self.obs_shape = self.state_shape = self.kitchen.width
        program = _build_program(map_name, episode_limit, shaping)
        super().__init__("Overcooked", program, n_envs, seed)


class Kitchen:
    """What stands where in a layout, as (row, column), and where each number of the state is.

    floor, pots, counters: cells int `[k, 2]`, row by row; of the counters, those that can be
    reached. grid: the letter of each cell, as in LAYOUTS.
    """

    def __init__(self, map_name: str):
        require_known(map_name, LAYOUTS, "env_args.map_name: there is no kitchen that is called")
        self.grid = np.array([list(row) for row in LAYOUTS[map_name]])
        self.floor, self.pots = self.cells(" "), self.cells("P")
        beside = (self.cells("W")[:, None, None] + DIRECTIONS[:, None] == self.floor).all(-1)
        self.counters = self.cells("W")[beside.any((1, 2))]
        self.agent_width = len(self.floor) + 4 + len(ITEMS)
        self.width = N_AGENTS * self.agent_width + 3 * (len(self.pots) + len(self.counters))

    def cells(self, letter: str) -> np.ndarray:
        """The cells of one kind, int `[k, 2]`."""
        return np.argwhere(self.grid == letter)

    def ring(self) -> np.ndarray:
        """The floor clockwise round its middle, int `[k, 2]`: a ring in two of the layouts."""
        down, right = (self.floor - self.floor.mean(0)).T
        return self.floor[np.argsort(np.arctan2(down, right))]

    def read(self, state: np.ndarray) -> dict[str, np.ndarray]:
        """What a state `[..., S]` says.

        cell: index into `floor` `[..., 2]`. facing: direction, as the actions 0 to 3 have them
        `[..., 2]`. held: 0 nothing, 1 onion, 2 plate, 3 soup `[..., 2]`. pots: onions, steps left
        and whether it is done `[..., pots, 3]`. lying: as `held` `[..., counters]`.
        """
        agents, pots, lying = np.split(
            state, [2 * self.agent_width, 2 * self.agent_width + 3 * len(self.pots)], axis=-1
        )
        agents = agents.reshape(*state.shape[:-1], N_AGENTS, self.agent_width)
        cell, facing, held = np.split(agents, [len(self.floor), len(self.floor) + 4], axis=-1)
        item = np.array([ONION, PLATE, SOUP])
        return {
            "cell": cell.argmax(-1),
            "facing": facing.argmax(-1),
            "held": (held @ item).astype(int),
            "pots": np.rint(pots.reshape(*state.shape[:-1], -1, 3) * (3, COOKING_STEPS, 1)).astype(
                int
            ),
            "lying": (lying.reshape(*state.shape[:-1], -1, len(ITEMS)) @ item).astype(int),
        }


class _Program(Program):
    """A kitchen of one configuration."""

    def __init__(self, engine: Any, kitchen: Kitchen, shaping: float):
        super().__init__()
        self.engine, self.kitchen, self.shaping = engine, kitchen, shaping

    def begin(self, key: Any) -> Any:
        return self.engine.reset(key)[1]

    def advance(self, key: Any, state: Any, actions: Any) -> tuple[Any, dict[str, Any], Any]:
        chosen = dict(zip(self.engine.agents, actions))
        _, state, reward, done, info = self.engine.step_env(key, state, chosen)
        paid = reward[self.engine.agents[0]]  # which both are told
        shaped = sum(info["shaped_reward"].values())
        over = done["__all__"]
        ends = {"terminated": over & False, "truncated": over}
        return state, ends, {"reward": paid + self.shaping * shaped}

    def see(self, state: Any) -> dict[str, Any]:
        jnp, kitchen = self.jnp, self.kitchen
        at = state.agent_pos[:, ::-1].astype(int)  # (row, column)
        items = jnp.array(ITEMS)
        agents = jnp.concatenate(
            [
                (at[:, None] == jnp.array(kitchen.floor)).all(-1),
                state.agent_dir_idx[:, None] == jnp.arange(4),
                state.agent_inv[:, None] == items,
            ],
            axis=1,
        )
        things = state.maze_map[PADDING:-PADDING, PADDING:-PADDING]
        status = things[tuple(kitchen.pots.T)][:, 2].astype("float32")
        filling = status > POT_FULL
        onions = jnp.where(filling, POT_EMPTY - status, 3) / 3
        pots = jnp.stack(
            [onions, jnp.where(filling, 0, status) / COOKING_STEPS, status == 0], axis=1
        )
        lying = things[tuple(kitchen.counters.T)][:, :1] == items
        rest = jnp.concatenate([pots.reshape(-1), lying.reshape(-1)])
        obs = jnp.stack(
            [jnp.concatenate([agents[i], agents[1 - i], rest]) for i in range(N_AGENTS)]
        )
        return {"state": obs[0], "obs": obs, "avail_actions": jnp.ones((N_AGENTS, N_ACTIONS))}


@lru_cache(maxsize=16)
def _build_program(map_name: str, episode_limit: int, shaping: float) -> _Program:
    """Cached, so that environments of one configuration (to train, to test) compile once."""
    import_jax()
    import warnings

    from jaxmarl.environments.overcooked.layouts import overcooked_layouts
    from jaxmarl.environments.overcooked.overcooked import Overcooked

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it names its second version
        engine = Overcooked(overcooked_layouts[map_name], max_steps=episode_limit)
    return _Program(engine, Kitchen(map_name), shaping)
