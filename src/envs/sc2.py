"""StarCraft II: an adapter of SMAC's `StarCraft2Env` (Samvelyan et al. 2019, arXiv 1902.04043).

What the adapter adds to SMAC (oxwhirl/smac):
- A timeout is truncated, not terminated, whatever `continuing_episode` says: a learner bootstraps.
- A game that breaks off is an error. SMAC would start another one in its place and call the broken
  episode a defeat; here the process of the environment is replaced (`envs/process_vector.py`).
- Each game has a seed of its own. SMAC seeds a game once, at its launch; battles follow each other
  in its one random stream. So `reset(seed)` seeds the first battle of this object and no other.

Nothing of the game is imported before an `SC2Env` is made; the shapes are known without it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from inspo.envs.multiagentenv import SIZES, MultiAgentEnv
from inspo.utils.errors import ConfigError, EnvironmentFailure


@dataclass(frozen=True)
class Map:
    """What a map's shapes depend on. unit_types: kinds of units, told apart by a one-hot code."""

    allies: int
    enemies: int
    limit: int
    ally_shields: bool = False
    enemy_shields: bool = False
    unit_types: int = 0


MAPS = {
    "10m_vs_11m": Map(10, 11, 150),
    "1c3s5z": Map(9, 9, 180, True, True, 3),
    "25m": Map(25, 25, 150),
    "27m_vs_30m": Map(27, 30, 180),
    "2c_vs_64zg": Map(2, 64, 400, True),
    "2m_vs_1z": Map(2, 1, 150, False, True),
    "2s3z": Map(5, 5, 120, True, True, 2),
    "2s_vs_1sc": Map(2, 1, 300, True),
    "3m": Map(3, 3, 60),
    "3s5z": Map(8, 8, 150, True, True, 2),
    "3s5z_vs_3s6z": Map(8, 9, 170, True, True, 2),
    "3s_vs_3z": Map(3, 3, 150, True, True),
    "3s_vs_4z": Map(3, 4, 200, True, True),
    "3s_vs_5z": Map(3, 5, 250, True, True),
    "5m_vs_6m": Map(5, 6, 70),
    "6h_vs_8z": Map(6, 8, 150, False, True),
    "8m": Map(8, 8, 120),
    "8m_vs_9m": Map(8, 9, 120),
    "MMM": Map(10, 10, 150, False, False, 3),
    "MMM2": Map(10, 12, 180, False, False, 3),
    "bane_vs_bane": Map(24, 24, 200, False, False, 2),
    "corridor": Map(6, 24, 400, True),
    "so_many_baneling": Map(7, 32, 100, True),
}

SHAPING = (  # the arguments that the shapes depend on, the likeliest to differ first
    "state_last_action",
    "obs_last_action",
    "obs_timestep_number",
    "state_timestep_number",
    "obs_pathing_grid",
    "obs_terrain_height",
    "obs_all_health",
    "obs_own_health",
    "obs_instead_of_state",
)


# ------------------------------------------------------------------------ shapes, without the game


def env_info(
    map_name: str,
    state_last_action: bool,
    obs_last_action: bool,
    obs_timestep_number: bool,
    state_timestep_number: bool,
    obs_pathing_grid: bool,
    obs_terrain_height: bool,
    obs_all_health: bool,
    obs_own_health: bool,
    obs_instead_of_state: bool,
    **others: Any,
) -> dict[str, int]:
    """What SMAC's `get_env_info` says of these arguments, computed from `MAPS`.

    An observation is: 4 moves, then for each enemy and each other ally 4 numbers (in reach or in
    sight, distance, x, y) and its health, shield and type, then the agent's own health, shield and
    type. A state has 4 numbers of an ally and 3 of an enemy, with shield and type.
    """
    m = MAPS[map_name]
    n_actions = 6 + m.enemies
    ally_health, enemy_health = 1 + m.ally_shields, 1 + m.enemy_shields
    enemy = 4 + m.unit_types + obs_all_health * enemy_health
    ally = 4 + m.unit_types + obs_all_health * ally_health + obs_last_action * n_actions
    own = m.unit_types + (obs_all_health or obs_own_health) * ally_health + obs_timestep_number
    moves = 4 + 8 * obs_pathing_grid + 9 * obs_terrain_height
    obs = moves + m.enemies * enemy + (m.allies - 1) * ally + own
    state = m.allies * (4 + m.ally_shields + m.unit_types)
    state += m.enemies * (3 + m.enemy_shields + m.unit_types)
    state += m.allies * n_actions * state_last_action + state_timestep_number
    return {
        "state_shape": obs * m.allies if obs_instead_of_state else state,
        "obs_shape": obs,
        "n_actions": n_actions,
        "n_agents": m.allies,
        "episode_limit": m.limit,
    }


def fitting(info: dict[str, int], env_args: Mapping[str, Any]) -> str:
    """What to do with data whose `get_env_info` is `info`, other than `env_args` give.

    Tries every combination of `SHAPING` on every map, and names the nearest that gives them. The
    limit does not count: readers cut data at it.
    """
    shapes = {key: size for key, size in info.items() if key != "episode_limit"}
    best: tuple[int, dict[str, Any]] | None = None
    for values in product((True, False), repeat=len(SHAPING)):
        shaping = dict(zip(SHAPING, values))
        changed: dict[str, Any] = {k: v for k, v in shaping.items() if v != env_args[k]}
        for name in MAPS:
            if not shapes.items() <= env_info(name, **shaping).items():
                continue
            other_map = {} if name == env_args["map_name"] else {"map_name": name}
            candidate = (100 * len(other_map) + len(changed), other_map | changed)
            if best is None or candidate[0] < best[0]:
                best = candidate
    if best is None:
        return (
            "No setting of this SMAC gives the data's numbers on any of its maps: they come from "
            "another variant of it (OMIGA's use the same map names). The data of the InSPO paper "
            f"fit: `python src/dataset.py download cfcql/{env_args['map_name']}`."
        )
    settings = (("" if k == "map_name" else "env_args.") + f"{k}={v}" for k, v in best[1].items())
    return f"To use these data: with {' '.join(settings)}"


# ------------------------------------------------------------------------- what must be installed

WITHOUT_GAME = (
    "Use the Docker image, which has all of it (docker/run.sh), or install the game by hand "
    "(docs/starcraft.md). Training from data needs no game: `with test_nepisode=0`. "
    "--env-config=smax_offline is an embedded simulator of such battles, with data of its own."
)


def game_folder() -> Path:
    """Where pysc2 looks for the game."""
    return Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()


def _builds() -> list[int]:
    """The builds of the game in its folder."""
    names = [path.parent.name for path in game_folder().glob("Versions/Base*/SC2_x64")]
    return sorted(int(name[4:]) for name in names if name[4:].isdigit())


def require_game(map_name: str) -> None:
    """ConfigError unless the game and the map are where pysc2 will look for them."""
    folder = game_folder()
    if not _builds():
        given = "SC2PATH" if "SC2PATH" in os.environ else "SC2PATH is not set; its default"
        raise ConfigError(
            f"sc2: StarCraft II is not here: expected a program Versions/Base*/SC2_x64 in {folder} "
            f"({given}), found {'none' if folder.is_dir() else 'no such folder'}. {WITHOUT_GAME}"
        )
    path = folder / "Maps" / "SMAC_Maps" / f"{map_name}.SC2Map"
    if not path.is_file():
        raise ConfigError(
            f"sc2: the map is not here: expected the file {path}. SMAC's maps come by "
            f"docker/install_maps.sh {path.parent}. {WITHOUT_GAME}"
        )


def smac_class() -> Any:
    """`smac.env.StarCraft2Env`; ConfigError with the reason if it cannot be imported."""
    try:
        from smac.env import StarCraft2Env
    except Exception as error:  # protobuf and pysc2 fail in many ways where versions do not fit
        raise ConfigError(
            "sc2: SMAC cannot be imported: `from smac.env import StarCraft2Env` failed with "
            f"{type(error).__name__}: {error}. Expected the package of requirements-sc2.txt "
            f"(PyPI's `smac` is another one). {WITHOUT_GAME}"
        ) from error
    return StarCraft2Env


# --------------------------------------------------------------------------------- the adapter


class SC2Env(MultiAgentEnv):
    """One game of StarCraft II with one map of SMAC. `smac_args`: `StarCraft2Env`'s arguments.

    info of the last step: `battle_won`, `timeout` (the limit came first), `dead_allies`,
    `dead_enemies`. seed: None for the seed that the first `reset` gets.
    """

    def __init__(self, map_name: str, seed: int | None = None, **smac_args: Any):
        self._class = smac_class()
        require_game(map_name)
        self._args = {"map_name": map_name, "seed": seed, **smac_args}
        if unknown := self._args.keys() - inspect.signature(self._class).parameters.keys():
            raise ConfigError(
                f"sc2: the installed SMAC has no argument {', '.join(sorted(unknown))}; install "
                "the one of requirements-sc2.txt."
            )
        self._check_arguments()
        self._launched = False
        self._make(seed)
        self.n_agents = self._game.n_agents
        self.episode_limit = self._game.episode_limit

    def _check_arguments(self) -> None:
        """Refuse what SMAC and pysc2 refuse only at the launch, or when a replay is written."""
        version, prefix = self._args.get("game_version"), self._args.get("replay_prefix", "")
        if version is not None:
            from pysc2 import run_configs

            try:
                run_configs.get(version=version)
            except Exception as error:
                raise ConfigError(f"env_args.game_version: {version}: {error}") from error
        if os.sep in prefix:
            raise ConfigError(
                f"env_args.replay_prefix: expected a name, found the path {prefix}; folders "
                "belong into env_args.replay_dir."
            )

    def _make(self, seed: int | None) -> None:
        self._game = self._class(**{**self._args, "seed": seed})
        # SMAC calls this where the connection breaks, in the middle of a reset or a step.
        self._game.full_restart = _break_off

    def reset(self, seed: int | None = None) -> tuple[list[np.ndarray], dict[str, Any]]:
        if not self._launched and self._args["seed"] is None and seed is not None:
            self._make(int(seed))
        self._launched = True
        self._obs, _ = self._game.reset()
        return self._obs, {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[list[np.ndarray], float, bool, bool, dict[str, Any]]:
        timeouts = self._game.timeouts
        reward, ended, info = self._game.step([int(a) for a in actions])
        timeout = self._game.timeouts > timeouts  # `info` does not have it
        self._obs = self._game.get_obs()
        info = {
            "battle_won": float(info["battle_won"]),
            "timeout": float(timeout),
            "dead_allies": float(info["dead_allies"]),
            "dead_enemies": float(info["dead_enemies"]),
        }
        return self._obs, float(reward), bool(ended) and not timeout, timeout, info

    def get_obs(self) -> list[np.ndarray]:
        return self._obs

    def get_state(self) -> np.ndarray:
        return np.asarray(self._game.get_state(), dtype=np.float32)

    def get_avail_actions(self) -> np.ndarray:
        return np.asarray(self._game.get_avail_actions(), dtype=np.int32)

    def get_env_info(self) -> dict[str, int]:
        info = self._game.get_env_info()
        return {key: int(info[key]) for key in SIZES}

    def get_stats(self) -> dict[str, float]:
        game = self._game  # not its get_stats, which divides by the number of battles
        return {"battles_game": game.battles_game, "battles_won": game.battles_won}

    def describe(self) -> str:
        version = self._args.get("game_version") or f"build {_builds()[-1]}"
        with open(game_folder() / f"Versions/Base{_builds()[-1]}/SC2_x64", "rb") as program:
            real = program.read(4) == b"\x7fELF"  # Blizzard's; stand-ins for trials are scripts
        name = "StarCraft II" if real else "a stand-in for StarCraft II"
        return f"{name} {version}, SMAC"

    def save_replay(self) -> str:
        self._game.save_replay()
        # SMAC takes a relative folder as one below the game's own.
        return str(game_folder() / "Replays" / self._args.get("replay_dir", ""))

    def close(self) -> None:
        self._game.close()


def _break_off() -> None:
    raise EnvironmentFailure(
        "the game has crashed, or its connection broke (runner=parallel starts it anew)"
    )
