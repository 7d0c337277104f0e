"""Simulators by name.

`REGISTRY[name](map_name=..., **env_args)` gives a `MultiAgentEnv` (one object, for the episode and
parallel runners); `VECTOR_REGISTRY[name](map_name=..., n_envs=N, **env_args)` gives a `VectorEnv`
(for the vector runner). A name stands in one of the two or in both. Entries import their simulator
when they are called, so that training offline needs none of them.

`SHAPES[name]()`, for a simulator that may be missing, is a module that knows its shapes without
it: `env_info(**env_args)` is what `get_env_info` would say, and `fitting(found, env_args)` says
what to do with data of other numbers.
"""

from __future__ import annotations


def _smax_vector(**kwargs):
    from inspo.envs.smax import SMAXVectorEnv

    return SMAXVectorEnv(**kwargs)


def _sc2(**kwargs):
    from inspo.envs.sc2 import SC2Env

    return SC2Env(**kwargs)


def _sc2_shapes():
    from inspo.envs import sc2

    return sc2


def _matrix_vector(**kwargs):
    from inspo.envs.matrix import MatrixVectorEnv

    return MatrixVectorEnv(**kwargs)


def _bridge_vector(**kwargs):
    from inspo.envs.bridge import BridgeVectorEnv

    return BridgeVectorEnv(**kwargs)


REGISTRY = {"sc2": _sc2}
VECTOR_REGISTRY = {"smax": _smax_vector, "matrix": _matrix_vector, "bridge": _bridge_vector}
SHAPES = {"sc2": _sc2_shapes}
