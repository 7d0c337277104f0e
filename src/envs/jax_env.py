"""What JaxMARL's simulators share here: N episodes advanced by one jitted call."""

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

from inspo.envs.multiagentenv import VectorEnv, VectorStep, available
from inspo.utils.paths import PROJECT_ROOT
from inspo.utils.quiet import ENVIRONMENT

CACHE_DIR = PROJECT_ROOT / ".jax_cache"


class Program:
    """The jitted functions of one configuration of a simulator.

    reset: (key, N) -> (next key, episodes, seen). step: (episodes, actions) -> (episodes, seen,
    outcome). `seen` are the arrays of `VectorEnv.observe`, `outcome` those of `VectorStep`.
    Subclasses write `begin`, `advance` and `see` for a single episode; `vmap` adds the leading [N].
    """

    def __init__(self) -> None:
        self.jax, self.jnp = import_jax()
        self.reset = self.jax.jit(self._reset_all, static_argnums=1)
        self.step = self.jax.jit(self.jax.vmap(self._step))

    def begin(self, key: Any) -> Any:
        """The simulator's state as an episode begins."""
        raise NotImplementedError

    def advance(self, key: Any, state: Any, actions: Any) -> tuple[Any, dict[str, Any], Any]:
        """One step of actions `[n]`: the next state; `terminated` and `truncated`; `reward` and
        whatever else the runner shall read, as numbers."""
        raise NotImplementedError

    def see(self, state: Any) -> dict[str, Any]:
        """state `[S]`, obs `[n, O]`, avail_actions `[n, A]`."""
        raise NotImplementedError

    def _reset_all(self, key: Any, n_envs: int) -> tuple[Any, Any, Any]:
        key, *keys = self.jax.random.split(key, n_envs + 1)
        return key, *self.jax.vmap(self._reset)(self.jnp.stack(keys))

    def _reset(self, key: Any) -> tuple[Any, Any]:
        key, reset_key = self.jax.random.split(key)
        state = self.begin(reset_key)
        # Some of it begins weakly typed: without the cast, `step` compiles twice.
        state = self.jax.tree.map(lambda x: x.astype(x.dtype), state)
        return {"key": key, "state": state, "active": self.jnp.array(True)}, self._seen(state)

    def _step(self, episode: Any, actions: Any) -> tuple[Any, Any, Any]:
        jnp, active = self.jnp, episode["active"]
        key, step_key = self.jax.random.split(episode["key"])
        state, ends, numbers = self.advance(step_key, episode["state"], actions)
        outcome = {name: active & value for name, value in ends.items()} | {
            name: jnp.where(active, value, 0).astype("float32") for name, value in numbers.items()
        }
        done = ends["terminated"] | ends["truncated"]
        after = {"key": key, "state": state, "active": ~done}
        episode = self.jax.tree.map(lambda new, old: jnp.where(active, new, old), after, episode)
        return episode, self._seen(episode["state"]), outcome

    def _seen(self, state: Any) -> dict[str, Any]:
        types = {"state": "float32", "obs": "float32", "avail_actions": "int32"}
        return {name: value.astype(types[name]) for name, value in self.see(state).items()}


class JaxVectorEnv(VectorEnv):
    """N episodes of a program. Subclasses set the sizes before they call `__init__`.

    Results are bit-identical for one N; another N drifts by rounding.
    """

    def __init__(self, name: str, program: Program, n_envs: int, seed: int):
        self.program, self.n_envs = program, n_envs
        self.simulator = f"jaxmarl {metadata.version('jaxmarl')} {name}"
        self._episodes: Any = None  # all that lives inside the jit: keys, states, who still plays
        self._now: dict[str, np.ndarray] = {}
        self._active = np.zeros(n_envs, dtype=bool)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        # SeedSequence spreads neighbouring seeds and takes any non-negative integer.
        self._key = np.random.SeedSequence(int(seed)).generate_state(2, dtype=np.uint32)

    def reset(self) -> None:
        key, self._episodes, seen = self.program.reset(self._key, self.n_envs)
        self._key = np.array(key)
        self._active = np.ones(self.n_envs, dtype=bool)
        self._look(seen)

    def observe(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self._now.items()}

    def step(self, actions: np.ndarray) -> VectorStep:
        actions = available(actions, self._now["avail_actions"], self._active).astype(np.int32)
        self._episodes, seen, outcome = self.program.step(self._episodes, actions)
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
        self._now = {name: np.asarray(value) for name, value in seen.items()}


@lru_cache(maxsize=1)
def import_jax() -> tuple[Any, Any]:
    """`jax` and `jax.numpy`, set up for one CPU process; JaxMARL imported quietly.

    Late, when the first environment is built: the import starts XLA's threads, and a process
    forked afterwards hangs, so programs without SMAX must not pay for it.
    """
    for name in ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        os.environ.setdefault(name, ENVIRONMENT[name])
    with _quiet():
        import jax
        import jax.numpy as jnp
        import jaxmarl  # noqa: F401

    # Compiling takes seconds for each (map, N); from the cache it takes under one.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(CACHE_DIR))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
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
