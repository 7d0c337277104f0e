"""A game that crashes as its seed says, and writes down what happened, in the ledger of `games.py`.

In a module of its own, which imports little: each crash starts a process that imports it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from inspo.envs.multiagentenv import MultiAgentEnv
from inspo.utils.errors import EnvironmentFailure

LIMIT = 4
CRASHES = ("raise", "exit", "kill", "reset", "failure", "abort")
HANG = 0.002  # share of the episodes that never answer


class CrashingGame(MultiAgentEnv):
    """Two agents, three actions. Half of the episodes end in a crash, in their reset or in a step.

    The state is (the episode's number, the step). A line of the ledger is
    `{"number", "end", "return", "length"}`; end: `whole`, or how it crashes, written just before.
    """

    n_agents = 2
    episode_limit = LIMIT

    def __init__(self, map_name: str = "crash", ledger: str = "ledger.jsonl"):
        self.ledger = ledger
        # As a game would be: a process of its own, known by the ledger's name.
        subprocess.Popen(["sh", "-c", f"sleep 600; : {ledger}"])

    def reset(self, seed: int | None = None) -> Any:
        assert seed is not None
        rng = np.random.default_rng(seed)
        self.number, self.t, self.total = seed % 2**24, 0, 0.0
        self.length = int(rng.integers(1, LIMIT + 1))
        self.rewards = rng.normal(size=LIMIT).astype(np.float32)
        crash = str(rng.choice(CRASHES)) if rng.random() < 0.5 else ""
        self.crash = "hang" if rng.random() < HANG else crash
        self.crash_at = int(rng.integers(0, self.length))
        if self.crash == "reset":
            self._crash()
        return self.get_obs(), {}

    def step(self, actions: Any) -> Any:
        if self.crash and self.t == self.crash_at:
            self._crash()
        reward = float(self.rewards[self.t])
        self.t += 1
        self.total += reward
        ended = self.t == self.length
        if ended:
            self._write("whole")
        return self.get_obs(), reward, ended, False, {"battle_won": float(reward > 0)}

    def _crash(self) -> None:
        self._write(self.crash)
        if self.crash == "exit":
            os._exit(7)
        if self.crash == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.crash == "abort":
            os.abort()
        if self.crash == "hang":
            time.sleep(600)
        if self.crash == "failure":
            raise EnvironmentFailure("the game is gone")
        raise ValueError("the game broke")

    def _write(self, end: str) -> None:
        line = {"number": self.number, "end": end, "return": self.total, "length": self.t}
        with Path(self.ledger).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def get_obs(self) -> Any:
        return [np.array([self.t, i], dtype=np.float32) for i in range(2)]

    def get_state(self) -> Any:
        return np.array([self.number, self.t], dtype=np.float32)

    def get_avail_actions(self) -> Any:
        return np.ones((2, 3), dtype=np.int32)

    def get_env_info(self) -> dict[str, int]:
        sizes = {"state_shape": 2, "obs_shape": 2, "n_actions": 3, "n_agents": 2}
        return {**sizes, "episode_limit": LIMIT}

    def close(self) -> None:
        pass
