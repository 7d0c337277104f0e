REGISTRY = {}

from .episode_runner import EpisodeRunner  # noqa: E402

REGISTRY["episode"] = EpisodeRunner
