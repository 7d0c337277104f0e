"""Simple spread of the multi-agent particle environments (Lowe et al. 2017), on JaxMARL's engine.

N agents and N landmarks on a plane. The team is paid for landmarks that have an agent near and pays
for collisions, so any assignment of agents to landmarks is as good as any other: N! conventions.
Actions: 0 stays, 1 left, 2 right, 3 down, 4 up (an acceleration; what moves goes on for a while).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from inspo.envs.jax_env import JaxVectorEnv, Program, import_jax
from inspo.utils.errors import ConfigError

N_ACTIONS = 5
AGENTS = range(2, 7)
NAMES = "spread_N with N = 2 to 6 agents, and as many landmarks"


def n_agents_of(map_name: str) -> int:
    """N of `spread_N`; ConfigError for a name that is none."""
    found = re.fullmatch(r"spread_(\d+)", map_name)
    if not found or int(found[1]) not in AGENTS:
        raise ConfigError(f"env_args.map_name: expected {NAMES}; found '{map_name}'")
    return int(found[1])


class SpreadVectorEnv(JaxVectorEnv):
    """N copies of one game.

    map_name: `spread_3` has three agents and three landmarks.
    n_envs: N.
    episode_limit: steps of every episode; nothing else ends one, so a learner bootstraps there.
    local_ratio: share of the reward that are collisions, between 0 and 1; the rest, the distances.

    An agent sees its velocity and place, the landmarks and the other agents from there (and two
    silent channels of each, which JaxMARL keeps at 0). The state is every agent's place and
    velocity and every landmark's place. The reward, which all share, is the mean of the agents':
    -(1 - local_ratio) times the sum over landmarks of the distance to the nearest agent, less
    local_ratio for each agent that it touches.
    """

    def __init__(
        self,
        map_name: str = "spread_3",
        n_envs: int = 32,
        seed: int = 0,
        episode_limit: int = 25,
        local_ratio: float = 0.5,
    ):
        self.map_name, self.n_agents = map_name, n_agents_of(map_name)
        self.n_actions, self.episode_limit = N_ACTIONS, episode_limit
        self.state_shape = 6 * self.n_agents
        self.obs_shape = 4 + 2 * self.n_agents + 4 * (self.n_agents - 1)
        program = _build_program(self.n_agents, episode_limit, local_ratio)
        super().__init__("MPE", program, n_envs, seed)


class _Program(Program):
    """Spread of one configuration."""

    def __init__(self, spread: Any):
        super().__init__()
        self.spread = spread

    def begin(self, key: Any) -> Any:
        return self.spread.reset(key)[1]

    def advance(self, key: Any, state: Any, actions: Any) -> tuple[Any, dict[str, Any], Any]:
        spread = self.spread
        chosen = dict(zip(spread.agents, actions))
        _, state, reward, done, _ = spread.step_env(key, state, chosen)
        reward = self.jnp.stack([reward[agent] for agent in spread.agents]).mean()
        over = done["__all__"]
        return state, {"terminated": over & False, "truncated": over}, {"reward": reward}

    def see(self, state: Any) -> dict[str, Any]:
        jnp, n = self.jnp, self.spread.num_agents
        obs = self.spread.get_obs(state)
        parts = (state.p_pos[:n], state.p_vel[:n], state.p_pos[n:])
        return {
            "state": jnp.concatenate([part.reshape(-1) for part in parts]),
            "obs": jnp.stack([obs[agent] for agent in self.spread.agents]),
            "avail_actions": jnp.ones((n, N_ACTIONS)),
        }


@lru_cache(maxsize=16)
def _build_program(n_agents: int, episode_limit: int, local_ratio: float) -> _Program:
    """Cached, so that environments of one configuration (to train, to test) compile once."""
    import_jax()
    from jaxmarl.environments.mpe import SimpleSpreadMPE

    return _Program(
        SimpleSpreadMPE(
            num_agents=n_agents,
            num_landmarks=n_agents,
            local_ratio=local_ratio,
            max_steps=episode_limit - 1,  # which it tests before it counts
        )
    )
