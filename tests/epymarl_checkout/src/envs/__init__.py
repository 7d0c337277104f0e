"""A game of chance for three, whose states and limit are not those of the tests' data."""

import numpy as np


class Chance:
    n_agents, episode_limit = 3, 5

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        self.t, self.length = 0, self.rng.integers(1, 8)
        self.obs = self.rng.normal(size=(3, 6))

    def step(self, actions):
        assert all(self.get_avail_actions()[i][int(a)] for i, a in enumerate(actions))
        self.t += 1
        self.obs = self.rng.normal(size=(3, 6))
        truncated = self.t >= self.episode_limit
        info = {"episode_limit": truncated}
        return self.obs, float(sum(actions)), self.t >= self.length, truncated, info

    def get_obs(self):
        return list(self.obs)

    def get_state(self):
        return self.obs.flatten()

    def get_avail_actions(self):
        return [[1] * 5, [1, 1, self.t % 2, 1, 1], [0, 0, 0, 0, 1]]

    def get_env_info(self):
        return {
            "state_shape": 18,
            "obs_shape": 6,
            "n_actions": 5,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
            "agent_features": ["health"],  # SMAC tells more than the contract asks for
        }

    def close(self):
        pass


REGISTRY = {"chance": Chance}
