"""Plays one episode at a time in one environment of this process."""

from __future__ import annotations

from envs import REGISTRY
from envs.process_vector import SerialVectorEnv
from runners.vector_runner import VectorRunner
from utils.errors import ConfigError


class EpisodeRunner(VectorRunner):
    """`VectorRunner` over one `MultiAgentEnv`."""

    def make_env(self):
        if self.batch_size != 1:
            raise ConfigError(
                f"runner: episode plays one episode at a time, but batch_size_run is "
                f"{self.batch_size}. Set batch_size_run=1, or runner=parallel."
            )
        args = self.args
        return SerialVectorEnv([lambda: REGISTRY[args.env](**args.env_args)])
