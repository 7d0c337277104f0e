"""SMAX, JaxMARL's re-creation of the StarCraft Multi-Agent Challenge, as one batched simulator.

Allies are ours, enemies follow JaxMARL's heuristic. All N battles are advanced by one jitted call.
Actions: 0 to 3 move (up, right, down, left), 4 stops, 5 + i attacks enemy i. SMAX has no no-op: a
dead agent may only stop, and its observation is zero.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from inspo.envs.jax_env import JaxVectorEnv, Program, import_jax


class SMAXVectorEnv(JaxVectorEnv):
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
        program = _build_program(
            map_name, max_steps, reward_scale, see_enemy_actions, walls_cause_death, attack_mode
        )
        smax, self.map_name = program.smax, map_name
        self.n_agents, self.n_enemies = smax.num_allies, smax.num_enemies
        self.state_shape, self.obs_shape = smax.state_size, smax.obs_size
        self.n_actions = smax.num_ally_actions
        self.episode_limit = max_steps + 1
        super().__init__("SMAX", program, n_envs, seed)


class _Program(Program):
    """SMAX of one configuration."""

    def __init__(self, smax: Any, reward_scale: float):
        super().__init__()
        self.smax, self.reward_scale = smax, reward_scale
        self.allies = [f"ally_{i}" for i in range(smax.num_allies)]

    def begin(self, key: Any) -> Any:
        return self.smax.reset(key)[1]

    def advance(self, key: Any, state: Any, actions: Any) -> tuple[Any, dict[str, Any], Any]:
        smax = self.smax
        # `step` would reset by itself and lose the terminal observation.
        _, state, reward, done, _ = smax.step_env(key, state, dict(zip(self.allies, actions)))
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
        return state, ends, numbers

    def see(self, state: Any) -> dict[str, Any]:
        jnp = self.jnp
        obs, avail = self.smax.get_obs(state), self.smax.get_avail_actions(state)
        return {
            "state": self._world_state(state),
            "obs": jnp.stack([obs[ally] for ally in self.allies]),
            "avail_actions": jnp.stack([avail[ally] for ally in self.allies]),
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
    _, jnp = import_jax()
    from jaxmarl.environments.smax import (
        HeuristicEnemySMAX,
        Scenario,
        map_name_to_scenario,
        register_scenario,
    )

    # Ours: 5m_vs_6m, as SMAC has it, is all but unwinnable on SMAX.
    register_scenario("5m_vs_5m", Scenario(jnp.zeros(10, dtype=jnp.uint8), 5, 5, False, False))

    names = ("see_enemy_actions", "walls_cause_death", "attack_mode")
    smax = HeuristicEnemySMAX(
        scenario=map_name_to_scenario(map_name), max_steps=max_steps, **dict(zip(names, options))
    )
    return _Program(smax, reward_scale)
