"""Plays one episode at a time in one environment of this process."""

from __future__ import annotations

from functools import partial

from inspo.envs import REGISTRY
from inspo.envs.multiagentenv import VectorEnv
from inspo.envs.process_vector import SerialVectorEnv
from inspo.runners.vector_runner import VectorRunner, find
from inspo.utils.errors import ConfigError


class EpisodeRunner(VectorRunner):
    """`VectorRunner` over one `MultiAgentEnv`."""

    def make_env(self) -> VectorEnv:
        if self.batch_size != 1:
            raise ConfigError(
                f"runner: episode plays one episode at a time, but batch_size_run is "
                f"{self.batch_size}. Set batch_size_run=1, or runner=parallel."
            )
        return SerialVectorEnv([partial(find(REGISTRY, self.args), **self.args.env_args)])
