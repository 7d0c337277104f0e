"""Trains the project's learners by this checkout's run.py, and tests them in its environment.

What run.py does, and who does it here:

    runner(args, logger)      reads the dataset, then makes the environment as ever
    buffer, mac, learner      the project's controller and learner, with the shapes of the data
    runner.run()              draws a minibatch and advances t_env; what goes through the buffer is
                              a blank, since that cannot carry all the keys that the learners read
    learner.train(batch)      trains on the runner's minibatch
    runner.run(test_mode)     plays an episode, as ever
"""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from inspo.components.episode_buffer import EpisodeBatch
from inspo.runners.episode_runner import EpisodeRunner
from inspo_plugin import CONTROLLERS, LEARNERS, PARTS
from inspo_plugin.project.offline import check_matches, load_dataset
from inspo_plugin.project.offline.behaviour import obtain
from inspo_plugin.project.offline.buffer import OfflineBuffer
from inspo_plugin.project.utils.config import convert, get, put
from inspo_plugin.project.utils.errors import ConfigError
from inspo_plugin.project.utils.logging import to_floats
from inspo_plugin.project.utils.seeding import spawn_seeds

SHAPES = ("n_agents", "n_actions", "obs_shape", "state_shape", "episode_limit")  # SMAC tells more


class OfflineRunner(EpisodeRunner):
    """Training is drawing minibatches of a dataset; testing is what the base class does.

    Attributes:
        settings: the configuration as the project's code reads it: a checked copy of `args`, with
            the shapes of the data (of the environment, where a checkpoint is only tested).
        minibatch: what the learner trains on next, `(batch, t_env before it)`; None at the end.
        learner: set by `make_learner`.
    """

    def __init__(self, args, logger):
        self.settings = checked(args)
        self.dataset = None
        if not (args.evaluate or args.save_replay):
            self.dataset = read_dataset(self.settings)
        super().__init__(args, logger)
        info = self.get_env_info()
        if self.dataset:
            self._compare(info)
            info = self.dataset.metadata.env_info()
        vars(self.settings).update({key: int(info[key]) for key in SHAPES})
        self.buffer = self.minibatch = self.learner = None
        args.buffer_size = args.batch_size  # run.py's buffer hands on what it is given
        args.offline_runner = self

    def _compare(self, info) -> None:
        """Policies meet the environment through these three alone; the rest may differ."""
        facts, path = self.dataset.metadata, self.settings.dataset["path"]
        needed = ("n_agents", "n_actions", "obs_shape")
        check_matches(facts, {key: info[key] for key in needed}, name=path)
        say = self.logger.console_logger.info
        say(
            f"{path}: {facts.env} {facts.map_name} {facts.quality}, {facts.n_episodes} episodes, "
            f"{facts.n_steps} steps, return {facts.return_mean:.2f} ± {facts.return_std:.2f}"
        )
        for key, value in facts.env_info().items():
            if int(info[key]) != value:
                say(f"{key} is {value} in the data and {info[key]} in the environment")

    def setup(self, scheme, groups, preprocess, mac):
        super().setup(scheme, groups, preprocess, mac)
        self.blank = EpisodeBatch(scheme, groups, self.args.batch_size, 1, preprocess=preprocess)
        self.blank.data.transition_data["filled"][:] = 1

    def run(self, test_mode=False):
        if test_mode:
            # Otherwise the base class may log the first episodes of a test as if they were all.
            self.log_train_stats_t = self.t_env
            return super().run(test_mode=True)
        if self.t_env >= self.args.t_max:  # run.py comes once more at t_max; our harness does not
            self.minibatch = None
            self.t_env += 1
            return self.blank
        if self.buffer is None:
            self._begin()
        batch = self.buffer.sample(self.args.batch_size)
        self.minibatch = batch, self.t_env
        self.t_env += int(batch["filled"].sum())
        return self.blank

    def _begin(self) -> None:
        """Fit the behaviour policies, or read them from the cache, and let the learner start."""
        a, facts = self.settings, self.dataset.metadata
        self.buffer = OfflineBuffer(self.dataset, spawn_seeds(a.seed, "sampling", 1)[0], a.device)
        self.dataset = None
        if not self.learner.needs_behaviour:
            return
        cache = Path(a.local_results_path) / "behaviour"
        say = self.logger.console_logger.info
        fitted = obtain(
            self.buffer, self.mac, a, facts.content_hash, cache, say, check=lambda: None
        )
        fitted.annotate(self.buffer)
        # run.py may have read a checkpoint: then the learner goes on from that.
        loaded = copy.deepcopy(self.learner.state_dict()) if a.checkpoint_path else None
        self.learner.start_from(fitted)
        if loaded:
            self.learner.load_state_dict(loaded)
        self.learner.logger.log_stats(fitted.report, self.t_env)


class OfflineLearner:
    """A learner of the project as run.py drives it; it trains on the runner's minibatch."""

    def __init__(self, learner, runner):
        self.learner, self.runner = learner, runner

    def train(self, batch, t_env, episode_num):
        if self.runner.minibatch:
            self.learner.train(*self.runner.minibatch, episode_num)

    def cuda(self):
        self.learner.cuda()

    def save_models(self, path):
        self.learner.save_models(path)

    def load_models(self, path):
        """For a test the policy alone: what it was trained with need not be at hand."""
        args = self.runner.args
        part = self.learner.mac if args.evaluate or args.save_replay else self.learner
        part.load_models(path)


class Log:
    """The checkout's logger with the method that the learners call; one copy from the device."""

    def __init__(self, logger):
        self.logger = logger

    def log_stats(self, stats, t):
        for key, value in to_floats(stats).items():
            self.logger.log_stat(key, value, t)


def make_learner(name, mac, scheme, logger, args) -> OfflineLearner:
    """What `learners.REGISTRY[name]` is; the critics are made for the states of the data."""
    runner = runner_of(args)
    state = scheme["state"] | {"vshape": runner.settings.state_shape}
    make = project_class("learners", name)
    runner.learner = make(mac, scheme | {"state": state}, Log(logger), runner.settings)
    return OfflineLearner(runner.learner, runner)


def make_controller(name, scheme, groups, args):
    """What `controllers.REGISTRY[name]` is."""
    return project_class("controllers", name)(scheme, groups, runner_of(args).settings)


def project_class(kind, name):
    module, qualified = PARTS[kind][name]
    return getattr(import_module(f"inspo_plugin.project.{module}"), qualified)


def runner_of(args) -> OfflineRunner:
    if args.runner != "offline":
        raise ConfigError(
            f"runner: {args.learner} and {args.mac} learn from data: expected 'offline', "
            f"found '{args.runner}'"
        )
    return args.offline_runner


# --------------------------------------------------------------------------------------------------
# Configuration


def checked(args) -> SimpleNamespace:
    """A copy of `args` in which the algorithm's keys have the types and values they may have."""
    for key, known in (("learner", LEARNERS), ("mac", CONTROLLERS)):
        found = vars(args)[key]
        if found not in known:
            raise ConfigError(
                f"{key}: the runner 'offline' feeds {', '.join(known)}; found '{found}'. "
                "Choose another runner, or the configuration of an offline algorithm."
            )
    values = copy.deepcopy(vars(args))
    for key, (declared, rule) in PARTS["keys"][args.algorithm].items():
        put(values, key, convert(key, get(values, key), declared, rule, None))
    return SimpleNamespace(**values)


def read_dataset(settings):
    """The dataset that the configuration names, of the map that it names."""
    path = settings.dataset["path"]
    if not path:
        raise ConfigError("dataset.path: offline training needs data: `with dataset.path=DATA.h5`")
    return load_dataset(
        Path(path).expanduser(),
        map_name=settings.env_args.get("map_name"),
        in_memory=settings.dataset["in_memory"],
    )
