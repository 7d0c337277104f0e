"""Simulators by name.

`REGISTRY[name](map_name=..., **env_args)` gives a `MultiAgentEnv` (one object, for the episode and
parallel runners); `VECTOR_REGISTRY[name](map_name=..., n_envs=N, **env_args)` gives a `VectorEnv`
(for the vector runner). A name stands in one of the two or in both.

`SHAPES[name]()`, for a simulator that may be missing, is a module that knows its shapes without
it: `env_info(**env_args)` is what `get_env_info` would give, and `fitting(info, env_args)`
suggests what to do with data of other numbers.

An entry imports its module when it is called, so that training offline needs no simulator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any


def _make(module: str, name: str, **env_args: Any) -> Any:
    return getattr(import_module(f"inspo.envs.{module}"), name)(**env_args)


REGISTRY: dict[str, Callable[..., Any]] = {"sc2": partial(_make, "sc2", "SC2Env")}
VECTOR_REGISTRY: dict[str, Callable[..., Any]] = {
    "smax": partial(_make, "smax", "SMAXVectorEnv"),
    "mpe": partial(_make, "mpe", "SpreadVectorEnv"),
    "overcooked": partial(_make, "overcooked", "OvercookedVectorEnv"),
    "matrix": partial(_make, "matrix", "MatrixVectorEnv"),
    "bridge": partial(_make, "bridge", "BridgeVectorEnv"),
}
SHAPES: dict[str, Callable[[], Any]] = {"sc2": partial(import_module, "inspo.envs.sc2")}
