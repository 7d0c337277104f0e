"""A random two-agent environment that writes down what it did, for the tests of the runners.

In a module of its own, so that spawned workers can import it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np

from inspo.envs.multiagentenv import MultiAgentEnv
from inspo.utils.errors import ConfigError


class ToyEnv(MultiAgentEnv):
    """Ends at random or at the limit; rewards, masks and observations are drawn from its seed.

    The state is (the episode's seed modulo 2^20, the step). Each finished episode becomes the file
    `log_dir/{seed modulo 2^20}_{a counter}.json`. `crash`: raise, `exit` without a word, or `hang`
    in the step of number `crash_at` of this process, and in all later ones; `init` raises and
    `refuse` is a user's error in the constructor. `child`: start a process, as a game would be, and
    write one's own number and its to `log_dir/{own number}.pids`.
    """

    n_agents = 2

    def __init__(
        self, map_name="toy", log_dir=".", episode_limit=4, crash="", crash_at=3, child=False
    ):
        if crash == "init":
            raise RuntimeError("no such simulator")
        if crash == "refuse":
            raise ConfigError("no game here")
        self.log_dir, self.episode_limit = Path(log_dir), episode_limit
        self.crash, self.crash_at = crash, crash_at
        self.played, self.steps = 0, 0
        if child:
            game = subprocess.Popen(["sleep", "600"])
            print("the game says hello")
            (self.log_dir / f"{os.getpid()}.pids").write_text(f"{os.getpid()} {game.pid}")

    def reset(self, seed=None):
        self.rng = np.random.default_rng(seed)
        self.number, self.t = seed % 2**20, 0
        self.length = int(self.rng.integers(1, self.episode_limit + 3))  # may lie past the limit
        self.log = {key: [] for key in ("state", "obs", "avail", "actions", "reward")}
        self.log |= {"terminated": False, "truncated": False, "pid": os.getpid()}
        self._draw()
        return self.get_obs(), {}

    def _draw(self):
        self.obs = self.rng.normal(size=(2, 3)).astype(np.float32)
        self.avail = (self.rng.random((2, 3)) < 0.6).astype(np.int32)
        self.avail[:, 0] |= 1 - self.avail.max(1)
        for key, value in (("state", self.get_state()), ("obs", self.obs), ("avail", self.avail)):
            self.log[key].append(value.tolist())

    def step(self, actions):
        self.steps += 1
        if self.crash and self.steps >= self.crash_at:
            if self.crash == "exit":
                os._exit(7)
            if self.crash == "hang":
                time.sleep(600)
            raise ValueError("the toy broke")
        assert all(self.avail[i, a] for i, a in enumerate(actions))
        self.t += 1
        reward = float(np.float32(self.rng.normal()))
        terminated = self.t >= self.length
        truncated = self.t >= self.episode_limit  # both may be true; the end is then a true one
        self.log["actions"].append([int(a) for a in actions])
        self.log["reward"].append(reward)
        self._draw()
        info = {}
        if terminated or truncated:
            info["battle_won"] = float(reward > 0)
            self.log |= {"terminated": terminated, "truncated": truncated}
            self.played += 1
            name = f"{self.number}_{os.getpid()}_{self.played}.json"
            (self.log_dir / name).write_text(json.dumps(self.log))
        return self.get_obs(), reward, terminated, truncated, info

    def get_obs(self):
        return list(self.obs)

    def get_state(self):
        return np.array([self.number, self.t], dtype=np.float32)

    def get_avail_actions(self):
        return self.avail

    def get_env_info(self):
        return {
            "state_shape": 2,
            "obs_shape": 3,
            "n_actions": 3,
            "n_agents": 2,
            "episode_limit": self.episode_limit,
        }
