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
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from inspo.envs.multiagentenv import VectorEnv, VectorStep
from inspo.utils.paths import PROJECT_ROOT

CACHE_DIR = PROJECT_ROOT / ".jax_cache"


class SMAXVectorEnv(VectorEnv):
    """N battles on one map.

    map_name: a scenario of JaxMARL, or `5m_vs_5m`, which is ours.
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
        self.program = _build_program(
            map_name, max_steps, reward_scale, see_enemy_actions, walls_cause_death, attack_mode
        )
        smax = self.program.smax
        self.map_name, self.n_envs = map_name, n_envs
        self.n_agents, self.n_enemies = smax.num_allies, smax.num_enemies
        self.state_shape, self.obs_shape = smax.state_size, smax.obs_size
        self.n_actions = smax.num_ally_actions
        self.episode_limit = max_steps + 1
        self.simulator = f"jaxmarl {metadata.version('jaxmarl')} SMAX"
        self._battles: Any = None  # all that lives inside the jit: keys, units, who still fights
        self._seen: dict[str, np.ndarray] = {}
        self._active = np.zeros(n_envs, dtype=bool)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        # SeedSequence spreads neighbouring seeds and takes any non-negative integer.
        self._key = np.random.SeedSequence(int(seed)).generate_state(2, dtype=np.uint32)

    def reset(self) -> None:
        key, self._battles, seen = self.program.reset(self._key, self.n_envs)
        self._key = np.array(key)
        self._active = np.ones(self.n_envs, dtype=bool)
        self._look(seen)

    def observe(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self._seen.items()}

    def step(self, actions: np.ndarray) -> VectorStep:
        self._battles, seen, outcome = self.program.step(self._battles, self._checked(actions))
        self._look(seen)
        info = {name: np.array(value) for name, value in outcome.items()}
        reward, terminated, truncated = (
            info.pop(name) for name in ("reward", "terminated", "truncated")
        )
        self._active = self._active & ~(terminated | truncated)
        return VectorStep(reward, terminated, truncated, info)

    def get_rng(self) -> list[int]:
        """The key from which the next `reset` draws the streams of all N environments."""
        return [int(number) for number in self._key]

    def set_rng(self, state: list[int]) -> None:
        self._key = np.array(state, dtype=np.uint32)

    def _look(self, seen: dict[str, Any]) -> None:
        """Keep the observation of the present step: read-only views of JAX's memory, no copy."""
        self._seen = {name: np.asarray(value) for name, value in seen.items()}

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """`actions` as int32 `[N, n_agents]`, each one available; those of the finished are 0."""
        actions = np.where(self._active[:, None], actions, 0)
        avail = self._seen["avail_actions"]
        in_range = (actions >= 0) & (actions < avail.shape[-1])
        taken = np.where(in_range, actions, 0)[..., None]
        allowed = in_range & (np.take_along_axis(avail, taken, axis=-1)[..., 0] > 0)
        wrong = np.argwhere(~allowed & self._active[:, None])
        if len(wrong):
            env, agent = (int(i) for i in wrong[0])
            raise ValueError(
                f"environment {env}, agent {agent}: action {actions[env, agent]} is not available; "
                f"available are {np.flatnonzero(avail[env, agent]).tolist()}"
            )
        return actions.astype(np.int32)


class _Program:
    """The jitted functions of one configuration.

    reset: (key, N) -> (next key, battles, seen). step: (battles, actions) -> (battles, seen,
    outcome). `seen` are the arrays of `observe`, `outcome` those of `VectorStep`. The methods are
    written for one battle; `vmap` adds the leading [N].
    """

    def __init__(self, smax: Any, reward_scale: float):
        self.jax, self.jnp = _import_jax()
        self.smax, self.reward_scale = smax, reward_scale
        self.allies = [f"ally_{i}" for i in range(smax.num_allies)]
        self.reset = self.jax.jit(self._reset_all, static_argnums=1)
        self.step = self.jax.jit(self.jax.vmap(self._step))

    def _reset_all(self, key: Any, n_envs: int) -> tuple[Any, Any, Any]:
        key, *keys = self.jax.random.split(key, n_envs + 1)
        return key, *self.jax.vmap(self._reset)(self.jnp.stack(keys))

    def _reset(self, key: Any) -> tuple[Any, Any]:
        key, reset_key = self.jax.random.split(key)
        _, state = self.smax.reset(reset_key)
        # The enemies' policy state begins weakly typed: without the cast, `step` compiles twice.
        state = self.jax.tree.map(lambda x: x.astype(x.dtype), state)
        return {"key": key, "state": state, "active": self.jnp.array(True)}, self._see(state)

    def _step(self, battle: Any, actions: Any) -> tuple[Any, Any, Any]:
        jnp, smax, active = self.jnp, self.smax, battle["active"]
        key, step_key = self.jax.random.split(battle["key"])
        # `step` would reset by itself and lose the terminal observation.
        _, state, reward, done, _ = smax.step_env(
            step_key, battle["state"], dict(zip(self.allies, actions))
        )
        alive = state.state.unit_alive
        dead_allies = smax.num_allies - alive[: smax.num_allies].sum()
        dead_enemies = smax.num_enemies - alive[smax.num_allies :].sum()
        won = (dead_enemies == smax.num_enemies) & (dead_allies < smax.num_allies)
        terminated = (dead_enemies == smax.num_enemies) | (dead_allies == smax.num_allies)
        ends = {"terminated": terminated, "truncated": done["__all__"] & ~terminated}
        numbers = {
            "reward": reward[self.allies[0]] * self.reward_scale,
            "battle_won": won,
            "dead_allies": dead_allies,
            "dead_enemies": dead_enemies,
        }
        outcome = {name: active & value for name, value in ends.items()} | {
            name: jnp.where(active, value, 0).astype("float32") for name, value in numbers.items()
        }
        after = {"key": key, "state": state, "active": ~done["__all__"]}
        battle = self.jax.tree.map(lambda new, old: jnp.where(active, new, old), after, battle)
        return battle, self._see(battle["state"]), outcome

    def _see(self, state: Any) -> dict[str, Any]:
        jnp = self.jnp
        obs, avail = self.smax.get_obs(state), self.smax.get_avail_actions(state)
        return {
            "state": self._world_state(state).astype(jnp.float32),
            "obs": jnp.stack([obs[ally] for ally in self.allies]).astype(jnp.float32),
            "avail_actions": jnp.stack([avail[ally] for ally in self.allies]).astype(jnp.int32),
        }

    def _world_state(self, state: Any) -> Any:
        """SMAX's own `[n_units features | teams | types]`, everything in [0, 1]."""
        jnp, smax = self.jnp, self.smax
        n_units, features = smax.num_allies + smax.num_enemies, list(smax.own_features)
        flat = smax.get_world_state(state)
        units = flat[: -2 * n_units].reshape(n_units, len(features))
        teams, types = flat[-2 * n_units : -n_units], flat[-n_units:]
        scale = np.ones(len(features), dtype=np.float32)
        scale[features.index("position_x")] = 1.0 / smax.map_width
        scale[features.index("position_y")] = 1.0 / smax.map_height
        # A cooldown falls on without end after it has run out; below zero it means nothing.
        cooldown, longest = features.index("weapon_cooldown"), smax.unit_type_weapon_cooldowns
        units = units * scale
        units = units.at[:, cooldown].divide(longest[state.state.unit_types])
        units = jnp.clip(units, 0.0, 1.0)
        types = types / (len(longest) - 1)
        return jnp.concatenate([units.reshape(-1), teams, types])


@lru_cache(maxsize=16)
def _build_program(map_name: str, max_steps: int, reward_scale: float, *options: Any) -> _Program:
    """Cached, so that environments of one configuration (to train, to test) compile once.

    options: see_enemy_actions, walls_cause_death, attack_mode.
    """
    _import_jax()
    from jaxmarl.environments.smax import HeuristicEnemySMAX, map_name_to_scenario

    names = ("see_enemy_actions", "walls_cause_death", "attack_mode")
    smax = HeuristicEnemySMAX(
        scenario=map_name_to_scenario(map_name), max_steps=max_steps, **dict(zip(names, options))
    )
    return _Program(smax, reward_scale)


@lru_cache(maxsize=1)
def _import_jax() -> tuple[Any, Any]:
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
def _quiet() -> Iterator[None]:
    """Swallow warnings and what is printed to stdout.

    JaxMARL's import also sets sys.stdout and sys.stderr to sys.__stdout__ and sys.__stderr__, which
    would end the capture of Sacred or pytest; both come back as they were.
    """
    saved = {name: vars(sys)[name] for name in ("stdout", "stderr", "__stdout__")}
    sink = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            vars(sys).update(stdout=sink, __stdout__=sink)
            yield
        finally:
            vars(sys).update(saved)
