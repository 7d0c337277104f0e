"""One experiment, read from top to bottom: build, train (online or offline), test, save, resume.

The only place that knows both learners and runners.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch as th
from inspo.components.episode_batch import build_scheme
from inspo.components.replay_buffer import ReplayBuffer
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.envs import SHAPES
from inspo.envs.drawing import check_record
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.offline import behaviour as behaviour_policies
from inspo.offline import check_matches, differing_settings, load_dataset
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.collect import Part, acting_settings, collect, dataset_path, ensure_dataset
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.runners.vector_runner import EpisodeStats
from inspo.utils.checkpoints import (
    find_checkpoint,
    get_random_states,
    load_checkpoint,
    save_checkpoint,
    set_random_states,
)
from inspo.utils.errors import CheckpointError, ConfigError, DatasetError, EnvironmentFailure
from inspo.utils.interrupts import GracefulExit
from inspo.utils.logging import Logger, progress_bar
from inspo.utils.seeding import spawn_seeds

# What a resumed run may do otherwise than the run that it goes on from.
MAY_DIFFER = {
    "checkpoint_path",
    "env_max_failures",
    "env_timeout",
    "keep_checkpoints",
    "label",
    "load_step",
    "local_results_path",
    "resume",
    "save_model_interval",
    "torch_threads",
    "use_progress_bar",
    "use_tensorboard",
}


def run(args: SimpleNamespace, logger: Logger) -> dict[str, Any]:
    """Do what the configuration asks for. Returns the final test, for Sacred's record."""
    check_record(args)
    with GracefulExit(say=logger.warning) as stop:
        if args.collect["n_episodes"]:
            return run_collect(args, logger, stop)
        if args.evaluate:
            return run_evaluate(args, logger)
        if args.offline:
            return run_offline(args, logger, stop)
        return run_online(args, logger, stop)


# --------------------------------------------------------------------------------------------------
# The four modes


def run_offline(args, logger: Logger, stop: GracefulExit) -> dict[str, Any]:
    """Train on a dataset. The simulator only tests; `test_nepisode=0` needs none."""
    started = time.monotonic()
    config = vars(args).copy()
    bar = partial(progress_bar, enabled=args.use_progress_bar, desc="collecting", unit="episode")
    path = ensure_dataset(args, logger.info, bar, stop.check)
    known, advise = known_shapes(args)
    dataset = load_dataset(
        path,
        env=args.env,
        map_name=args.map_name,
        quality=args.quality,
        env_info=known,
        episode_limit=known.get("episode_limit", args.env_args.get("episode_limit")),
        in_memory=args.dataset["in_memory"],
        advise=advise,
    )
    facts = dataset.metadata
    if differing := "; ".join(differing_settings(facts, args.env_args, str(path))):
        words = f"{path} was collected under other settings: {differing}."
        if not args.dataset["path"]:  # found by its name, which does not tell
            raise DatasetError(
                f"{words} Make data of your own with another datasets_dir, or name this file with "
                "dataset.path=... to learn from it all the same."
            )
        logger.warning(words)
    logger.info(
        f"{path}: {facts.n_episodes} episodes, {facts.n_steps} steps, return "
        f"{facts.return_mean:.2f} ± {facts.return_std:.2f}"
        + ("" if facts.win_rate is None else f", win rate {facts.win_rate:.3f}")
    )
    runner = None
    if args.test_nepisode:
        runner = runner_REGISTRY[args.runner](args, logger)
        check_matches(facts, runner.get_env_info(), args.map_name, str(path))
    vars(args).update(facts.env_info())
    scheme = build_scheme(facts.env_info())
    mac, learner = build(args, scheme, logger)
    if runner:
        runner.setup(scheme, {"agents": args.n_agents}, None, mac)

    buffer = OfflineBuffer(dataset, spawn_seeds(args.seed, "sampling", 1)[0], args.device)
    del dataset
    if learner.needs_behaviour:
        cache = Path(args.datasets_dir) / "cache"
        fitted = behaviour_policies.obtain(
            buffer, mac, args, facts.content_hash, cache, logger.info, stop.check
        )
        fitted.annotate(buffer)
        learner.start_from(fitted)
        if not args.resume:  # a resumed run's history has it already
            logger.log_stats(fitted.report, 0)

    progress = Progress()
    saver = Saver(args, config, logger, learner, progress, runner, {"buffer.th": buffer})
    if args.resume:
        saver.resume()
    pace = Pace(learner.updates)
    bar = progress_bar(
        args.t_max, enabled=args.use_progress_bar, initial=progress.t_env, desc=args.name
    )
    with bar, saver.saving_if_the_environment_fails():
        while progress.t_env < args.t_max and not stop.requested:
            if runner and progress.test_due(args.test_interval):
                test(args, logger, runner, progress, args.test_nepisode)
            batch = buffer.sample(args.batch_size)
            learner.train(batch, progress.t_env, progress.episode)
            steps = int(batch["filled"].sum())
            progress.t_env += steps
            progress.episode += args.batch_size
            bar.update(steps)
            saver.save_if_due()
            if progress.log_due(args.log_interval):
                logger.log_stat("updates_per_second", pace(learner.updates), progress.t_env)
                logger.print_recent_stats()
    saver.finish(stop)
    result = {
        "t_env": progress.t_env,
        "updates": learner.updates,
        "dataset": {
            "hash": facts.content_hash,
            "episodes": facts.n_episodes,
            "return_mean": facts.return_mean,
            "win_rate": facts.win_rate,
            "simulator": facts.simulator,
        },
        "seconds": time.monotonic() - started,
    }
    if runner:
        result |= final_test(args, logger, runner, progress)
        runner.close_env()
    return result


def run_online(args, logger: Logger, stop: GracefulExit) -> dict[str, Any]:
    """Play, learn from what was played, and test, as EPyMARL does."""
    started = time.monotonic()
    config = vars(args).copy()
    runner = runner_REGISTRY[args.runner](args, logger)
    vars(args).update(runner.get_env_info())
    if not hasattr(args, "train_interval"):
        raise ConfigError(
            f"{args.name} learns from data alone. Use an offline environment "
            f"(--env-config={args.env}_offline), or an online learner (qmix, mappo)."
        )
    if not args.buffer_size and args.batch_size_run != args.train_interval:
        raise ConfigError(
            f"{args.name} learns from the episodes just played: expected train_interval = "
            f"batch_size_run, found {args.train_interval} and {args.batch_size_run}."
        )
    scheme = build_scheme(runner.get_env_info())
    mac, learner = build(args, scheme, logger)
    runner.setup(scheme, {"agents": args.n_agents}, None, mac)
    buffer = None
    if args.buffer_size:
        seed = spawn_seeds(args.seed, "sampling", 1)[0]
        steps = runner.episode_limit + 1
        buffer = ReplayBuffer(scheme, args.n_agents, args.buffer_size, steps, seed, args.device)

    progress = Progress()
    parts = {"buffer.th": buffer} if buffer else {}
    saver = Saver(args, config, logger, learner, progress, runner, parts)
    if args.resume:
        saver.resume()
    pace = Pace(learner.updates)
    bar = progress_bar(
        args.t_max, enabled=args.use_progress_bar, initial=progress.t_env, desc=args.name
    )
    with bar, saver.saving_if_the_environment_fails():
        while progress.t_env < args.t_max and not stop.requested:
            if args.test_nepisode and progress.test_due(args.test_interval):
                test(args, logger, runner, progress, args.test_nepisode)
            episodes = runner.run(test_mode=False)
            if buffer:
                buffer.insert_episode_batch(episodes)
            progress.played += episodes.batch_size
            progress.episode += episodes.batch_size
            while progress.played >= args.train_interval:
                progress.played -= args.train_interval
                if buffer is None:
                    batch = episodes[:, : episodes.max_t_filled()].to(args.device)
                elif buffer.can_sample(args.batch_size):
                    batch = buffer.sample(args.batch_size)
                else:
                    continue
                learner.train(batch, runner.t_env, progress.episode)
            bar.update(runner.t_env - progress.t_env)
            progress.t_env = runner.t_env
            if progress.log_due(args.log_interval):
                logger.log_stats(runner.train_stats.summary(), progress.t_env)
                logger.log_stat("epsilon", mac.action_selector.epsilon, progress.t_env)
                logger.log_stat("updates_per_second", pace(learner.updates), progress.t_env)
                runner.train_stats = EpisodeStats()
                logger.print_recent_stats()
            saver.save_if_due()
    saver.finish(stop)
    result = {
        "t_env": progress.t_env,
        "updates": learner.updates,
        "seconds": time.monotonic() - started,
    }
    if args.test_nepisode:
        result |= final_test(args, logger, runner, progress)
    runner.close_env()
    return result


def run_evaluate(args, logger: Logger) -> dict[str, Any]:
    """Test the policy of `checkpoint_path` on exactly `test_nepisode` episodes."""
    runner, step = load_policy(args, logger)
    progress = Progress(t_env=step)
    stats = test(args, logger, runner, progress, args.test_nepisode)
    logger.print_recent_stats()
    if args.save_replay:
        logger.info(f"replay written to {runner.save_replay()}")
    if args.record:
        logger.info(f"an episode is drawn in {runner.record(args.record)}")
    runner.close_env()
    return {"t_env": step, **raw_values(stats)}


def run_collect(args, logger: Logger, stop: GracefulExit) -> dict[str, Any]:
    """Roll out the policy of `checkpoint_path` into a dataset file."""
    if not (args.collect["path"] or args.quality):
        raise ConfigError(
            "collect: where to? Name the file with collect.path=..., or quality=... for its place "
            f"in datasets_dir ({args.datasets_dir})."
        )
    runner, step = load_policy(args, logger)
    runner.close_env()
    path = Path(args.collect["path"]) if args.collect["path"] else dataset_path(args)
    part = Part(
        settings=acting_settings(args),
        weights={k: v.cpu() for k, v in runner.mac.agent.state_dict().items()},
        episodes=args.collect["n_episodes"],
        epsilon=args.test_epsilon,
        greedy=args.test_greedy,
        source=f"{args.name}, {Path(args.checkpoint_path).name}, t_env {step}, "
        f"{'greedy' if args.test_greedy else 'sampled'}, epsilon {args.test_epsilon}",
    )
    bar = partial(progress_bar, enabled=args.use_progress_bar, desc="collecting", unit="episode")
    facts = collect([part], args, path, args.seed, bar, stop.check)
    logger.info(
        f"{path}: {facts.n_episodes} episodes, return {facts.return_mean:.2f}, "
        f"win rate {facts.win_rate}, hash {facts.content_hash[:16]}"
    )
    return {"path": str(path), "hash": facts.content_hash, "return_mean": facts.return_mean}


# --------------------------------------------------------------------------------------------------
# Pieces


def known_shapes(args) -> tuple[dict[str, int], Callable[[dict[str, int]], str] | None]:
    """The environment's numbers where they are known without it, and what to do with others."""
    if args.env not in SHAPES:
        return {}, None
    shapes = SHAPES[args.env]()
    return shapes.env_info(**args.env_args), partial(shapes.fitting, env_args=args.env_args)


def build(args, scheme, logger):
    """The controller and the learner, on `args.device`."""
    mac = mac_REGISTRY[args.mac](scheme, {"agents": args.n_agents}, args)
    learner = learner_REGISTRY[args.learner](mac, scheme, logger, args)
    if args.device != "cpu":
        learner.cuda()
    return mac, learner


def load_policy(args, logger: Logger):
    """A runner that plays the policy of `checkpoint_path`, and its step."""
    if not args.checkpoint_path:
        raise CheckpointError(
            "checkpoint_path is empty: evaluate and collect need the model folder of a run, "
            "as in `with evaluate=True checkpoint_path=results/models/RUN`."
        )
    saved = load_checkpoint(
        args.checkpoint_path,
        args.load_step,
        map_location=args.device,
        expect={"alg": args.name},
        only=["agent.th"],
    )
    runner = runner_REGISTRY[args.runner](args, logger)
    vars(args).update(runner.get_env_info())
    scheme = build_scheme(runner.get_env_info())
    mac = mac_REGISTRY[args.mac](scheme, {"agents": args.n_agents}, args)
    load_agent(mac, saved)
    mac.agent.to(args.device)
    runner.setup(scheme, {"agents": args.n_agents}, None, mac)
    logger.info(f"policy of {saved.folder}")
    return runner, saved.step


def load_agent(mac, saved) -> None:
    try:
        mac.agent.load_state_dict(saved.files["agent.th"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{saved.folder}/agent.th does not fit this configuration (a checkpoint of "
            f"{saved.text.get('env')} {saved.text.get('map_name')}): {error}"
        ) from error


@dataclass
class Progress:
    """Where the run stands: all the counters that a resumed run must find again."""

    t_env: int = 0
    episode: int = 0
    played: int = 0  # episodes played since the last update (online)
    last_test: int | None = None
    last_log: int = 0
    last_save: int = 0
    history: list[dict] = field(default_factory=list)  # of the tests

    def test_due(self, interval: int) -> bool:
        return self.last_test is None or self.t_env - self.last_test >= interval

    def log_due(self, interval: int) -> bool:
        if self.t_env - self.last_log < interval:
            return False
        self.last_log = self.t_env
        return True


class Pace:
    """Updates per second since the last call, tests and saving included."""

    def __init__(self, updates: int):
        self.updates, self.time = updates, time.monotonic()

    def __call__(self, updates: int) -> float:
        now = time.monotonic()
        rate = (updates - self.updates) / max(now - self.time, 1e-9)
        self.updates, self.time = updates, now
        return rate


def test(args, logger: Logger, runner, progress: Progress, n_episodes: int) -> EpisodeStats:
    """Play `n_episodes` test episodes with the present policy and log what became of them."""
    stats = runner.test(n_episodes)
    summary = stats.summary("test_")
    if hasattr(runner.env, "exact_statistics"):  # a matrix game needs no sampling
        summary |= runner.env.exact_statistics(first_policies(runner))
    logger.log_stats(summary, progress.t_env)
    progress.last_test = progress.t_env
    progress.history.append({"t_env": progress.t_env, **summary})
    return stats


def first_policies(runner) -> list[th.Tensor]:
    """What tests draw every agent's first action of an episode from, `[A]` each."""
    batch = runner.run(test_mode=True)
    runner.mac.init_hidden(batch.batch_size)
    outputs = runner.mac.forward(batch, t=0, test_mode=True)[:1]
    avail = batch["avail_actions"][:1, 0].to(outputs.device)
    probabilities = runner.mac.action_selector.probabilities(outputs, avail)
    return list(probabilities[0].double().cpu().numpy())


def final_test(args, logger: Logger, runner, progress: Progress) -> dict[str, Any]:
    """The test that counts: the last policy on `final_test_nepisode` episodes."""
    stats = test(args, logger, runner, progress, args.final_test_nepisode)
    logger.print_recent_stats()
    return {
        "simulator": getattr(runner.env, "simulator", args.env),
        # A copy: Sacred would write one object that stands in two places as a reference.
        "final": dict(progress.history[-1]),
        "tests": progress.history,
        **raw_values(stats),
    }


def raw_values(stats: EpisodeStats) -> dict[str, Any]:
    """Each episode's return, length and end, as plain lists."""
    return {"returns": stats.returns, "lengths": stats.lengths, **stats.infos}


class Saver:
    """Writes checkpoints that hold everything, and puts a run back where one was written.

    `parts` are the pieces with a `state_dict` that are kept only in the newest checkpoints (the
    replay buffer of an online run is large); the rest goes into every checkpoint.
    """

    def __init__(self, args, config, logger, learner, progress, runner, parts):
        self.args, self.logger, self.learner = args, logger, learner
        self.progress, self.runner, self.parts = progress, runner, parts
        self.config = {k: v for k, v in config.items() if k not in ("device", "unique_token")}
        self.folder = Path(args.local_results_path) / "models" / args.unique_token

    def save_if_due(self) -> None:
        p = self.progress
        if self.args.save_model and p.t_env - p.last_save >= self.args.save_model_interval:
            self.save()

    def save(self) -> None:
        p = self.progress
        p.last_save = p.t_env
        run_state = {
            "progress": vars(p).copy(),
            "random": get_random_states(),
            "logger": self.logger.state_dict(),
            "runner": self.runner.state_dict() if self.runner else None,
        }
        # Before the checkpoint that refers to it: a kill in between leaves the older pair whole.
        save_checkpoint(
            self.folder / "resume",
            p.t_env,
            {name: part.state_dict() for name, part in self.parts.items()},
            keep_checkpoints=2,
        )
        save_checkpoint(
            self.folder,
            p.t_env,
            {
                "agent.th": self.learner.mac.agent.state_dict(),
                "learner.th": self.learner.state_dict(),
                "run.th": run_state,
            },
            {
                "alg": self.args.name,
                "env": self.args.env,
                "map_name": self.args.map_name,
                "config": self.config,
            },
            keep_checkpoints=self.args.keep_checkpoints,
        )

    @contextmanager
    def saving_if_the_environment_fails(self) -> Iterator[None]:
        """An environment that keeps failing ends the run, which can then go on from here."""
        try:
            yield
        except EnvironmentFailure as failure:
            self.save()
            raise EnvironmentFailure(
                f"{failure}\nSaved step {self.progress.t_env}; go on with resume={self.folder}"
            ) from failure

    def finish(self, stop: GracefulExit) -> None:
        """The last checkpoint; raises Interrupted if the run was asked to stop."""
        if self.args.save_model or stop.requested:
            self.save()
        stop.check(f"saved step {self.progress.t_env}; go on with resume={self.folder}")

    def resume(self) -> None:
        """Continue the run whose model folder is `resume`, in that folder."""
        a = self.args
        # To the CPU: what belongs on the device is moved there, and Adam's counts of steps, which
        # on a GPU it would have to wait for at every update, stay.
        saved = load_checkpoint(a.resume, a.load_step, expect={"alg": a.name})
        self._check_config(saved)
        held = find_checkpoint(Path(a.resume) / "resume", saved.step)
        parts = load_checkpoint(held, map_location=a.device)
        if parts.step != saved.step:
            raise CheckpointError(
                f"{a.resume}: step {saved.step} cannot be resumed from, its buffer was replaced by "
                f"that of step {parts.step}. Use load_step=0, the last step."
            )
        self.folder = Path(a.resume)
        self.learner.load_state_dict(saved.files["learner.th"])
        for name, part in self.parts.items():
            part.load_state_dict(parts.files[name])
        state = saved.files["run.th"]
        vars(self.progress).update(state["progress"])
        self.logger.load_state_dict(state["logger"])
        if self.runner:
            self.runner.load_state_dict(state["runner"])
        set_random_states(state["random"])
        self.logger.info(f"resumed {self.folder} at step {saved.step}")

    def _check_config(self, saved) -> None:
        before = saved.text["config"]
        differing = [
            f"{key} was {before.get(key)!r} and is {value!r}"
            for key, value in self.config.items()
            if key not in MAY_DIFFER and before.get(key) != value
        ]
        if differing:
            raise CheckpointError(
                f"{saved.folder} is of a run with another configuration: {'; '.join(differing)}. "
                "Resume with the command line of that run."
            )
