"""SMAX, JaxMARL's re-creation of the StarCraft Multi-Agent Challenge, as one batched simulator.

Allies are ours, enemies follow JaxMARL's heuristic. All N battles are advanced by one jitted call.
Actions: 0 to 3 move (up, right, down, left), 4 stops, 5 + i attacks enemy i. SMAX has no no-op: a
dead agent may only stop, and its observation is zero.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from inspo.envs.multiagentenv import VectorEnv, VectorStep
from inspo.utils.errors import ConfigError, nearest

ATTACK_MODES = ("closest", "random")
CACHE_DIR = Path(__file__).resolve().parents[2] / ".jax_cache"


@dataclass(frozen=True)
class UnitLayout:
    """How an observation is built, and what the unit types can do.

    An observation is one block of `unit_features` for each other ally and then for each enemy,
    and last a block of `own_features`; a unit that is dead or out of sight is a block of zeros.
    The arrays are indexed by unit type; distances are in map units, times in seconds.
    """

    n_allies: int
    n_enemies: int
    n_move_actions: int  # the stop action, the last of them, included
    unit_features: tuple[str, ...]
    own_features: tuple[str, ...]
    map_size: tuple[float, float]
    step_seconds: float
    max_health: np.ndarray
    attack_range: np.ndarray
    sight_range: np.ndarray
    weapon_cooldown: np.ndarray
    velocity: np.ndarray


class SMAXVectorEnv(VectorEnv):
    """N battles on one map.

    map_name: a scenario of JaxMARL (`known_maps`), or `5m_vs_5m`, which is ours.
    n_envs: N. Results are bit-identical for one N; another N drifts by rounding.
    max_steps: SMAX tests its limit before it counts, so episodes have up to `max_steps + 1` steps.
    reward_scale: SMAX's return is at most 2 (damage 1, win 1); 10 gives SMAC's scale of 20.
    see_enemy_actions: observations show the last move and target of visible enemies.
    walls_cause_death: a unit that touches the map's border dies.
    attack_mode: whom the enemies attack first, `closest` or `random` (among those in range).
    """

    def __init__(
        self,
        map_name: str = "2s3z",
        n_envs: int = 32,
        seed: int = 0,
        max_steps: int = 100,
        reward_scale: float = 10.0,
        see_enemy_actions: bool = True,
        walls_cause_death: bool = True,
        attack_mode: str = "closest",
    ):
        for name, value in {"n_envs": n_envs, "max_steps": max_steps}.items():
            if value < 1:
                raise ConfigError(f"smax: {name} must be at least 1, found {value}")
        if attack_mode not in ATTACK_MODES:
            raise ConfigError(
                f"smax: attack_mode must be one of {', '.join(ATTACK_MODES)}, found {attack_mode!r}"
            )
        self._program = _build_program(
            map_name, max_steps, reward_scale, see_enemy_actions, walls_cause_death, attack_mode
        )
        self.map_name = map_name
        self.layout = self._program.layout
        self.n_envs = n_envs
        self.n_agents = self.layout.n_allies
        self.n_enemies = self.layout.n_enemies
        self.episode_limit = max_steps + 1
        self.simulator = f"jaxmarl {metadata.version('jaxmarl')} SMAX"
        self._battles: Any = None  # all that lives inside the jit: keys, units, who still fights
        self._seen: dict[str, np.ndarray] = {}
        self._active = np.zeros(n_envs, dtype=bool)
        self.seed(seed)

    def get_env_info(self) -> dict[str, int]:
        return {
            **self._program.shapes,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def seed(self, seed: int) -> None:
        # SeedSequence spreads neighbouring seeds and takes any non-negative integer.
        self._key = np.random.SeedSequence(int(seed)).generate_state(2, dtype=np.uint32)

    def reset(self) -> None:
        key, self._battles, seen = self._program.reset(self._key, self.n_envs)
        self._key = np.array(key)
        self._active = np.ones(self.n_envs, dtype=bool)
        self._look(seen)

    def observe(self) -> dict[str, np.ndarray]:
        self._require_reset()
        return {name: value.copy() for name, value in self._seen.items()}

    def step(self, actions: np.ndarray) -> VectorStep:
        self._require_reset()
        actions = self._checked(actions)
        self._battles, seen, outcome = self._program.step(self._battles, actions)
        self._look(seen)
        outcome = {name: np.array(value) for name, value in outcome.items()}
        reward, terminated, truncated = (
            outcome.pop(name) for name in ("reward", "terminated", "truncated")
        )
        self._active = self._active & ~(terminated | truncated)
        return VectorStep(reward, terminated, truncated, info=outcome)

    def get_rng(self) -> list[int]:
        """The key from which the next `reset` draws the streams of all N environments."""
        return [int(word) for word in self._key]

    def set_rng(self, state: list[int]) -> None:
        key = np.array(state, dtype=np.uint32)
        if key.shape != (2,):
            raise ValueError(f"the random state of SMAX is a list of two ints, found {state!r}")
        self._key = key

    def _require_reset(self) -> None:
        if self._battles is None:
            raise RuntimeError("call reset() before the first observe() or step()")

    def _look(self, seen: dict[str, Any]) -> None:
        """Keep the observation of the present step: read-only views of JAX's memory, no copy."""
        self._seen = {name: np.asarray(value) for name, value in seen.items()}

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """`actions` as int32 `[N, n_agents]`, each one available; those of the finished are 0."""
        actions = np.asarray(actions)
        expected = (self.n_envs, self.n_agents)
        if actions.shape != expected or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape {expected}, "
                f"found {actions.dtype} of shape {actions.shape}"
            )
        actions = np.where(self._active[:, None], actions, 0)
        avail = self._seen["avail_actions"]
        n_actions = avail.shape[-1]
        in_range = (actions >= 0) & (actions < n_actions)
        taken = np.where(in_range, actions, 0)[..., None]
        allowed = in_range & (np.take_along_axis(avail, taken, axis=-1)[..., 0] > 0)
        wrong = np.argwhere(~allowed & self._active[:, None])
        if len(wrong):
            env, agent = (int(i) for i in wrong[0])
            raise ValueError(
                f"environment {env}, agent {agent}: action {actions[env, agent]} is not available; "
                f"available are {np.flatnonzero(avail[env, agent]).tolist()} of 0..{n_actions - 1}"
            )
        return actions.astype(np.int32)


def known_maps() -> list[str]:
    """The names that `map_name` may take."""
    _import_jax()
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    return sorted(MAP_NAME_TO_SCENARIO)


@dataclass(frozen=True)
class _Program:
    """The jitted functions of one configuration, and the facts known without compiling them.

    reset: (key, N) -> (next key, battles, seen). step: (battles, actions) -> (battles, seen,
    outcome). `seen` are the arrays of `observe`, `outcome` those of `VectorStep`.
    """

    reset: Callable
    step: Callable
    layout: UnitLayout
    shapes: dict[str, int]


@lru_cache(maxsize=16)
def _build_program(
    map_name: str,
    max_steps: int,
    reward_scale: float,
    see_enemy_actions: bool,
    walls_cause_death: bool,
    attack_mode: str,
) -> _Program:
    """Cached, so that environments of one configuration (to train, to test) compile once."""
    jax, jnp = _import_jax()
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    if map_name not in known_maps():
        raise ConfigError(
            f"smax: unknown map_name '{map_name}'.{nearest(map_name, known_maps())} "
            f"Known maps: {', '.join(known_maps())}"
        )
    smax = HeuristicEnemySMAX(
        scenario=map_name_to_scenario(map_name),
        max_steps=max_steps,
        see_enemy_actions=see_enemy_actions,
        walls_cause_death=walls_cause_death,
        attack_mode=attack_mode,
    )
    layout = _layout(smax)
    n_allies, n_units = layout.n_allies, layout.n_allies + layout.n_enemies
    weapon_cooldown = jnp.asarray(layout.weapon_cooldown)
    allies = [f"ally_{i}" for i in range(n_allies)]

    # What follows is written for one environment; `vmap` adds the leading [N].

    def world_state(state):
        """SMAX's own `[n_units features | teams | types]`, everything in [0, 1]."""
        flat = smax.get_world_state(state)
        units = flat[: -2 * n_units].reshape(n_units, len(layout.own_features))
        teams, types = flat[-2 * n_units : -n_units], flat[-n_units:]
        scale = np.ones(len(layout.own_features), dtype=np.float32)
        for name, size in zip(("position_x", "position_y"), layout.map_size):
            scale[layout.own_features.index(name)] = 1.0 / size
        # A cooldown falls on without end after it has run out; below zero it means nothing.
        cooldown = layout.own_features.index("weapon_cooldown")
        units = units * scale
        units = units.at[:, cooldown].divide(weapon_cooldown[state.state.unit_types])
        units = jnp.clip(units, 0.0, 1.0)
        types = types / (len(weapon_cooldown) - 1)
        return jnp.concatenate([units.reshape(-1), teams, types])

    def see(state):
        obs, avail = smax.get_obs(state), smax.get_avail_actions(state)
        return {
            "state": world_state(state).astype(jnp.float32),
            "obs": jnp.stack([obs[ally] for ally in allies]).astype(jnp.float32),
            "avail_actions": jnp.stack([avail[ally] for ally in allies]).astype(jnp.int32),
        }

    def reset_one(key):
        key, reset_key = jax.random.split(key)
        _, state = smax.reset(reset_key)
        # The enemies' policy state begins weakly typed: without the cast, `step` compiles twice.
        state = jax.tree.map(lambda x: x.astype(x.dtype), state)
        return {"key": key, "state": state, "active": jnp.array(True)}, see(state)

    def step_one(battle, actions):
        active = battle["active"]
        key, step_key = jax.random.split(battle["key"])
        # `step` would reset by itself and lose the terminal observation.
        _, state, reward, done, _ = smax.step_env(
            step_key, battle["state"], dict(zip(allies, actions))
        )
        alive = state.state.unit_alive
        dead_allies = n_allies - alive[:n_allies].sum()
        dead_enemies = layout.n_enemies - alive[n_allies:].sum()
        won = (dead_enemies == layout.n_enemies) & (dead_allies < n_allies)
        terminated = (dead_enemies == layout.n_enemies) | (dead_allies == n_allies)
        outcome = {
            "reward": reward[allies[0]] * reward_scale,
            "terminated": terminated,
            "truncated": done["__all__"] & ~terminated,
            "battle_won": won,
            "dead_allies": dead_allies,
            "dead_enemies": dead_enemies,
        }
        flags = ("terminated", "truncated")
        outcome = {
            name: active & value if name in flags else jnp.where(active, value, 0).astype("float32")
            for name, value in outcome.items()
        }
        after = {"key": key, "state": state, "active": ~done["__all__"]}
        battle = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, battle)
        return battle, see(battle["state"]), outcome

    def reset(key, n_envs):
        key, *keys = jax.random.split(key, n_envs + 1)
        return key, *jax.vmap(reset_one)(jnp.stack(keys))

    return _Program(
        reset=jax.jit(reset, static_argnums=1),
        step=jax.jit(jax.vmap(step_one)),
        layout=layout,
        shapes={
            "state_shape": int(smax.state_size),
            "obs_shape": int(smax.obs_size),
            "n_actions": int(smax.num_ally_actions),
        },
    )


def _layout(smax) -> UnitLayout:
    return UnitLayout(
        n_allies=smax.num_allies,
        n_enemies=smax.num_enemies,
        n_move_actions=smax.num_movement_actions,
        unit_features=tuple(smax.unit_features),
        own_features=tuple(smax.own_features),
        map_size=(float(smax.map_width), float(smax.map_height)),
        step_seconds=smax.world_steps_per_env_step * smax.time_per_step,
        max_health=np.array(smax.unit_type_health),
        attack_range=np.array(smax.unit_type_attack_ranges),
        sight_range=np.array(smax.unit_type_sight_ranges),
        weapon_cooldown=np.array(smax.unit_type_weapon_cooldowns),
        velocity=np.array(smax.unit_type_velocities),
    )


@lru_cache(maxsize=1)
def _import_jax():
    """`jax` and `jax.numpy`, set up for one CPU process; JaxMARL imported quietly.

    Late, when the first environment is built: the import starts XLA's threads, and a process
    forked afterwards hangs, so programs without SMAX must not pay for it.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the GPU's memory belongs to torch
    with _quiet():
        import jax
        import jax.numpy as jnp
        import jaxmarl  # noqa: F401
        from jaxmarl.environments.smax import Scenario, register_scenario

    # Compiling takes seconds for each (map, N); from the cache it takes under one.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(CACHE_DIR))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Ours: 5m_vs_6m, as SMAC has it, is all but unwinnable on SMAX.
    register_scenario("5m_vs_5m", Scenario(jnp.zeros(10, dtype=jnp.uint8), 5, 5, False, False))
    return jax, jnp


@contextlib.contextmanager
def _quiet():
    """Swallow warnings and what is printed to stdout.

    JaxMARL's import also sets sys.stdout and sys.stderr to sys.__stdout__ and sys.__stderr__, which
    would end the capture of Sacred or pytest; both come back as they were.
    """
    saved, sink = (sys.stdout, sys.stderr, sys.__stdout__), io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sys.stdout = sys.__stdout__ = sink
            yield
        finally:
            sys.stdout, sys.stderr, sys.__stdout__ = saved
