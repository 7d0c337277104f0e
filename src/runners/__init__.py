"""Runners by name: `REGISTRY[args.runner](args, logger)`."""

from inspo.runners.episode_runner import EpisodeRunner
from inspo.runners.parallel_runner import ParallelRunner
from inspo.runners.vector_runner import VectorRunner

REGISTRY: dict[str, type[VectorRunner]] = {
    "episode": EpisodeRunner,
    "parallel": ParallelRunner,
    "vector": VectorRunner,
}
