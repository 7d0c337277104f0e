"""Trains our learners by the run.py of an EPyMARL checkout, and tests them in its environment.

What run.py does, and who does it here:

    runner(args, logger)      reads the dataset, then makes the environment as ever
    buffer, mac, learner      our controller and learner, with the shapes of the data
    runner.run()              draws a minibatch and advances t_env; what goes through the buffer is
                              a blank, since that cannot carry all the keys that the learners read
    learner.train(batch)      trains on the runner's minibatch
    runner.run(test_mode)     plays an episode, as ever
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from components.episode_buffer import EpisodeBatch  # the checkout's

from inspo import __version__
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.epymarl.configs import ADDED, REGISTERED, own_keys, settings_of
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.offline import OfflineDataset, check_matches, load_dataset
from inspo.offline.behaviour import obtain
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.operations import keep_episodes
from inspo.utils.config import get, has, put
from inspo.utils.errors import ConfigError, named
from inspo.utils.logging import to_floats
from inspo.utils.seeding import spawn_seeds
from inspo.utils.settings import Settings
from runners.episode_runner import EpisodeRunner  # the checkout's

SHAPES = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")  # SMAC tells more


class OfflineRunner(EpisodeRunner):
    """Training is drawing minibatches of a dataset; testing is what the base class does.

    Attributes:
        settings: the configuration as our code reads it, with the shapes of the data (of the
            environment, where a checkpoint is only tested).
        dataset: until training begins, None thereafter.
        buffer: what minibatches are drawn from, once training has begun.
        minibatch: what the learner trains on next, `(batch, t_env before it)`; None at the end.
        learner: set by `make_learner`.
    """

    buffer: OfflineBuffer
    learner: Any

    def __init__(self, args: SimpleNamespace, logger: Any) -> None:
        settings = checked(args)
        only_tests = args.evaluate or args.save_replay
        self.dataset = None if only_tests else read_dataset(settings)
        self.minibatch: tuple[Any, int] | None = None
        super().__init__(args, logger)
        info = self.get_env_info()
        if self.dataset:
            self._compare(self.dataset, info)
            info = self.dataset.metadata.env_info()
        self.settings = settings.with_facts(**{key: int(info[key]) for key in SHAPES})
        args.buffer_size = args.batch_size  # run.py's buffer hands on what it is given
        args.offline_runner = self

    def _compare(self, dataset: OfflineDataset, info: Mapping[str, Any]) -> None:
        """Policies meet the environment through these three alone; the rest may differ."""
        facts, path = dataset.metadata, self.args.dataset["path"]
        log = self.logger.console_logger.info
        needed = {key: info[key] for key in ("n_agents", "n_actions", "obs_shape")}
        check_matches(facts, needed, name=path)
        log(
            f"{path}: {facts.env} {facts.map_name} {facts.quality}, {facts.n_episodes} episodes, "
            f"{facts.n_steps} steps, return {facts.return_mean:.2f} ± {facts.return_std:.2f}"
        )
        for key, value in facts.env_info().items():
            if int(info[key]) != value:
                log(f"{key} is {value} in the data and {info[key]} in the environment")

    def setup(self, scheme: Any, groups: Any, preprocess: Any, mac: Any) -> None:
        super().setup(scheme, groups, preprocess, mac)
        self.blank = EpisodeBatch(scheme, groups, self.args.batch_size, 1, preprocess=preprocess)
        self.blank.data.transition_data["filled"][:] = 1

    def run(self, test_mode: bool = False) -> Any:
        if test_mode:
            # Otherwise the base class may log the first episodes of a test as if they were all.
            self.log_train_stats_t = self.t_env
            return super().run(test_mode=True)
        if self.t_env >= self.args.t_max:  # run.py comes once more at t_max; our harness does not
            self.minibatch = None
            self.t_env += 1
            return self.blank
        if self.dataset:
            self.buffer = self._begin(self.dataset)
        batch = self.buffer.sample(self.args.batch_size)
        self.minibatch = batch, self.t_env
        self.t_env += batch.n_filled
        return self.blank

    def _begin(self, dataset: OfflineDataset) -> OfflineBuffer:
        """Fit the behaviour policies, or read them from the cache, and let the learner start."""
        a, content = self.settings, dataset.metadata.content_hash
        seed = spawn_seeds(self.args.seed, "sampling", 1)[0]
        buffer = OfflineBuffer(dataset, seed, a.device)
        self.dataset = None
        del dataset
        if a.standardise:
            self.mac.set_moments(*buffer.moments("obs"))
            buffer.standardise("state")
        if self.learner.needs_behaviour:
            cache = Path(a.local_results_path) / "behaviour"
            log = self.logger.console_logger.info
            fitted = obtain(buffer, self.mac, a, content, cache, log, lambda: None)
            fitted.annotate(buffer)
            # run.py may have read a checkpoint: then the learner goes on from that.
            loaded = copy.deepcopy(self.learner.state_dict()) if a.checkpoint_path else None
            self.learner.start_from(fitted)
            if loaded:
                self.learner.load_state_dict(loaded)
            self.learner.logger.log_stats(fitted.report, self.t_env)
        return buffer


class OfflineLearner:
    """One of our learners as run.py drives it; it trains on the runner's minibatch."""

    def __init__(self, learner: Any, runner: OfflineRunner) -> None:
        self.learner, self.runner = learner, runner
        self.cuda, self.save_models = learner.cuda, learner.save_models

    def train(self, batch: Any, t_env: int, episode_num: int) -> None:
        if self.runner.minibatch:
            self.learner.train(*self.runner.minibatch, episode_num)

    def load_models(self, path: str) -> None:
        """For a test the policy alone: what it was trained with need not be at hand."""
        args = self.runner.args
        part = self.learner.mac if args.evaluate or args.save_replay else self.learner
        part.load_models(path)


class Log:
    """The checkout's logger with the method that our learners call; one copy from the device."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def log_stats(self, stats: Mapping[str, Any], t: int) -> None:
        for key, value in to_floats(stats).items():
            self.logger.log_stat(key, value, t)


def make_learner(mac: Any, scheme: Any, logger: Any, args: SimpleNamespace) -> OfflineLearner:
    """What `learner: offline` is; the critics are made for the states of the data."""
    require_offline(args)
    runner = args.offline_runner
    state = scheme["state"] | {"vshape": runner.settings.state_shape}
    make = named(learner_REGISTRY, runner.settings.learner, "learner")
    runner.learner = make(mac, scheme | {"state": state}, Log(logger), runner.settings)
    return OfflineLearner(runner.learner, runner)


def make_controller(scheme: Any, groups: Any, args: SimpleNamespace) -> Any:
    """What `mac: offline` is."""
    require_offline(args)
    settings = args.offline_runner.settings
    return named(mac_REGISTRY, settings.mac, "mac")(scheme, groups, settings)


def require_offline(args: SimpleNamespace) -> None:
    for key in REGISTERED:
        if vars(args)[key] != "offline":
            raise ConfigError(
                f"{key}: expected 'offline', found '{vars(args)[key]}': runner, mac and learner of "
                "the package inspo go together; choose all of them, or none"
            )


def checked(args: SimpleNamespace) -> Settings:
    """The configuration of EPyMARL, with the algorithm's keys held to our types and rules."""
    require_offline(args)
    values = copy.deepcopy(vars(args))
    keys = [key for key in own_keys(args.algorithm) if key not in ("name", *REGISTERED)] + ADDED
    if vars(args).get("inspo_version") != __version__ or not all(has(values, key) for key in keys):
        raise ConfigError(
            f"--config={args.algorithm} was not written by the inspo that is installed "
            f"({__version__}): run `inspo-plugin install` on this checkout again"
        )
    words = [f"{key}={get(values, key)!r}" for key in keys]
    ours = settings_of(args.algorithm, "matrix", "use_presets=False", *words)
    for key in [*keys, "learner", "mac"]:
        put(values, key, get(ours, key))
    return Settings(ours | values)


def read_dataset(settings: Settings) -> OfflineDataset:
    """The dataset that the configuration names, of the map that it names."""
    path = settings.dataset.path
    if not path:
        raise ConfigError("dataset.path: offline training needs data: `with dataset.path=DATA.h5`")
    dataset = load_dataset(
        path,
        map_name=settings.env_args.get("map_name"),
        in_memory=settings.dataset.in_memory,
    )
    return keep_episodes(dataset, settings.dataset.keep, settings.dataset.keep_share)
