"""Plays N episodes at once, each environment in a process of its own."""

from __future__ import annotations

from functools import partial

from inspo.envs import REGISTRY
from inspo.envs.multiagentenv import VectorEnv
from inspo.envs.process_vector import ProcessVectorEnv
from inspo.runners.vector_runner import VectorRunner, find


class ParallelRunner(VectorRunner):
    """`VectorRunner` over `batch_size_run` processes with one `MultiAgentEnv` each."""

    def make_env(self) -> VectorEnv:
        args = self.args
        make = partial(find(REGISTRY, args), **args.env_args)
        return ProcessVectorEnv([make] * self.batch_size, args.env_timeout, args.env_max_failures)
