"""A `VectorEnv` made of `MultiAgentEnv` objects: in this process, or in one process each."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import traceback
from collections.abc import Callable

import numpy as np

from envs.multiagentenv import MultiAgentEnv, VectorEnv, VectorStep
from utils.errors import UserError

EnvFactory = Callable[[], MultiAgentEnv]


def _observation(env: MultiAgentEnv) -> dict[str, np.ndarray]:
    return {
        "state": np.asarray(env.get_state(), dtype=np.float32),
        "obs": np.asarray(env.get_obs(), dtype=np.float32),
        "avail_actions": np.asarray(env.get_avail_actions(), dtype=np.int32),
    }


class SerialVectorEnv(VectorEnv):
    """Environments of this process, stepped one after the other."""

    def __init__(self, makers: list[EnvFactory]):
        self._start(makers)
        self.n_envs = len(makers)
        try:
            self._info = self._call(0, "get_env_info")
        except BaseException:
            self.close()
            raise
        self.n_agents = self._info["n_agents"]
        self.episode_limit = self._info["episode_limit"]
        self._episodes = 0
        self._base_seed = 0
        self._last: list[dict[str, np.ndarray]] = []
        self._done = np.zeros(self.n_envs, dtype=bool)

    def _start(self, makers: list[EnvFactory]) -> None:
        self._envs = [make() for make in makers]

    def _call(self, i: int, method: str, *args):
        return getattr(self._envs[i], method)(*args)

    def _call_many(self, calls: dict[int, tuple]) -> dict[int, tuple]:
        """calls: environment -> (method, arguments). Returns (result, observation) of each."""
        results = {}
        for i, (method, *args) in calls.items():
            results[i] = (self._call(i, method, *args), _observation(self._envs[i]))
        return results

    def get_env_info(self):
        return self._info

    def seed(self, seed: int) -> None:
        self._base_seed, self._episodes = seed, 0

    def reset(self) -> None:
        # Each episode of each environment has a seed of its own, so that a restart can go on.
        root = np.random.SeedSequence([self._base_seed, self._episodes])
        seeds = [int(s) for s in root.generate_state(self.n_envs)]
        self._episodes += 1
        self._done[:] = False
        results = self._call_many({i: ("reset", seed) for i, seed in enumerate(seeds)})
        self._last = [results[i][1] for i in range(self.n_envs)]

    def observe(self):
        return {key: np.stack([obs[key] for obs in self._last]) for key in self._last[0]}

    def step(self, actions: np.ndarray) -> VectorStep:
        n = self.n_envs
        reward = np.zeros(n, dtype=np.float32)
        terminated, truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        info: dict[str, np.ndarray] = {}
        calls = {i: ("step", actions[i]) for i in np.flatnonzero(~self._done)}
        for i, (result, observation) in self._call_many(calls).items():
            _, reward[i], terminated[i], truncated[i], env_info = result
            self._last[i] = observation
            for name, value in env_info.items():
                if np.ndim(value) == 0:
                    info.setdefault(name, np.zeros(n, dtype=np.float32))[i] = value
        truncated &= ~terminated
        self._done |= terminated | truncated
        return VectorStep(reward, terminated, truncated, info)

    def get_rng(self):
        return [self._base_seed, self._episodes]

    def set_rng(self, state) -> None:
        self._base_seed, self._episodes = state

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _serve(pipe, make: EnvFactory) -> None:
    """Body of a worker: answers (method, *args) with (ok, result, observation)."""
    try:
        env = make()
        while True:
            method, *args = pipe.recv()
            result = getattr(env, method)(*args)
            observation = _observation(env) if method in ("reset", "step") else None
            pipe.send((True, result, observation))
            if method == "close":
                return
    except (EOFError, KeyboardInterrupt):
        return  # the parent is gone, or is leaving
    except BaseException:
        with contextlib.suppress(OSError):  # the parent is gone too
            pipe.send((False, traceback.format_exc(), None))


class ProcessVectorEnv(SerialVectorEnv):
    """Each environment in a process of its own; a step waits for the slowest."""

    def _start(self, makers: list[EnvFactory]) -> None:
        # Spawned, not forked: a fork copies the threads' locks of torch and of the simulators.
        context = mp.get_context("spawn")
        self._pipes, self._workers = [], []
        for make in makers:
            here, there = context.Pipe()
            worker = context.Process(target=_serve, args=(there, make), daemon=True)
            worker.start()
            there.close()
            self._pipes.append(here)
            self._workers.append(worker)

    def _send(self, i: int, call: tuple) -> None:
        with contextlib.suppress(OSError):  # it died: `_receive` tells how
            self._pipes[i].send(call)

    def _receive(self, i: int):
        try:
            ok, result, observation = self._pipes[i].recv()
        except (EOFError, ConnectionResetError):
            self._workers[i].join(timeout=5)
            code = self._workers[i].exitcode
            raise UserError(
                f"environment worker {i} died (exit code {code}) without a word."
            ) from None
        if not ok:
            raise UserError(f"environment worker {i} failed:\n{result}")
        return result, observation

    def _call(self, i: int, method: str, *args):
        self._send(i, (method, *args))
        return self._receive(i)[0]

    def _call_many(self, calls):
        for i, call in calls.items():
            self._send(i, call)
        return {i: self._receive(i) for i in calls}

    def close(self) -> None:
        for pipe, worker in zip(self._pipes, self._workers):
            with contextlib.suppress(OSError):  # it may have died already
                pipe.send(("close",))
            worker.join(timeout=5)
            if worker.is_alive():
                worker.terminate()
            pipe.close()
