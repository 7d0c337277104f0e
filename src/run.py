"""One experiment, read from top to bottom: build, train (online or offline), test, save, resume.

The only place that knows both learners and runners.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.components.replay_buffer import ReplayBuffer
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.controllers.basic_controller import BasicMAC
from inspo.envs import SHAPES
from inspo.envs.drawing import check_record
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.learners.learner import Learner
from inspo.learners.targets import carried_share
from inspo.offline import (
    DatasetMetadata,
    OfflineDataset,
    check_matches,
    differing_settings,
    load_dataset,
)
from inspo.offline import behaviour as behaviour_policies
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.collect import Part, acting_settings, collect, dataset_path, ensure_dataset
from inspo.offline.operations import keep_episodes
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.runners.vector_runner import EpisodeStats, VectorRunner
from inspo.utils.checkpoints import Checkpoint, load_checkpoint, put_back
from inspo.utils.errors import ConfigError, DatasetError, named
from inspo.utils.interrupts import GracefulExit
from inspo.utils.logging import Logger
from inspo.utils.phases import TRAINING
from inspo.utils.run_state import Pace, Progress, Saver
from inspo.utils.seeding import spawn_seeds
from inspo.utils.settings import Settings


def run(args: Settings, logger: Logger) -> dict[str, Any]:
    """Do what the configuration asks for. Returns the final test, for Sacred's record."""
    check_record(args)
    with GracefulExit(logger.warning) as stop:
        if args.collect.n_episodes:
            return run_collect(args, logger, stop)
        if args.evaluate:
            return run_evaluate(args, logger)
        if args.offline:
            return run_offline(args, logger, stop)
        return run_online(args, logger, stop)


# --------------------------------------------------------------------------------------------------
# Offline


def run_offline(args: Settings, logger: Logger, stop: GracefulExit) -> dict[str, Any]:
    """Train on a dataset. The simulator only tests; `test_nepisode=0` needs none."""
    started = time.monotonic()
    dataset, path = open_dataset(args, logger, stop)
    facts = dataset.metadata
    args = args.with_facts(**facts.env_info())
    runner = None
    if args.test_nepisode:
        logger.phase("starting the simulator")
        runner = runner_REGISTRY[args.runner](args, logger)
        check_matches(facts, runner.get_env_info(), args.map_name, str(path))
    scheme = build_scheme(facts.env_info())
    mac, learner = build(args, scheme, logger)
    if runner:
        runner.setup(scheme, {"agents": args.n_agents}, None, mac)
    buffer, kept = make_buffer(args, logger, dataset, mac)
    del dataset
    if learner.needs_behaviour:
        fit_behaviour(args, logger, stop, buffer, learner, kept)

    warn_of_slow_targets(args, logger, learner, kept)
    progress = Progress()
    parts = {"buffer.th": buffer}
    saver = Saver(args, logger, mac.agent, learner, progress, runner, parts)
    saver.begin()
    pace = Pace(learner.updates)
    training = logger.phase(TRAINING, args.t_max, initial=progress.t_env)
    with training, saver.explaining_failures():
        while progress.t_env < args.t_max and not stop.requested:
            if runner and progress.test_due(args.test_interval):
                learner.check_steps()
                test(logger, runner, progress, args.test_nepisode)
            batch = buffer.sample(args.batch_size)
            learner.train(batch, progress.t_env, progress.episode)
            steps = batch.n_filled
            progress.t_env += steps
            progress.episode += args.batch_size
            training.update(steps, learner.stage)
            if progress.log_due(args.log_interval):
                logger.log_stat("updates_per_second", pace(learner.updates), progress.t_env)
                logger.print_recent_stats()
            saver.save_if_due()  # last, so that a resumed run logs at the same steps
        saver.finish(stop)
    result = {
        "t_env": progress.t_env,
        "updates": learner.updates,
        "dataset": {
            "hash": facts.content_hash,
            "episodes": facts.n_episodes,
            "kept": kept.n_episodes,
            "return_mean": facts.return_mean,
            "win_rate": facts.win_rate,
            "simulator": facts.simulator,
        },
        "seconds": time.monotonic() - started,
    }
    return result | (final_test(args, logger, runner, progress) if runner else {})


def open_dataset(args: Settings, logger: Logger, stop: GracefulExit) -> tuple[OfflineDataset, Path]:
    """The dataset that the configuration asks for, made first if it can be, and its path."""
    logger.phase("looking for the data")  # which another run may be making
    collecting = partial(logger.phase, "collecting data", unit="episode")
    path = ensure_dataset(args, logger.info, collecting, stop.check)
    logger.phase("reading the data")
    known, advise = known_shapes(args)
    dataset = load_dataset(
        path,
        env=args.env,
        map_name=args.map_name,
        quality=args.quality,
        env_info=known,
        episode_limit=known.get("episode_limit", args.env_args.get("episode_limit")),
        in_memory=args.dataset.in_memory,
        advise=advise,
        phase=logger.phase,
    )
    facts = dataset.metadata
    if differing := "; ".join(differing_settings(facts, args.env_args, str(path))):
        message = f"{path} was collected under other settings: {differing}."
        if not args.dataset.path:  # found by its name, which does not tell
            raise DatasetError(
                f"{message} Make data of your own with another datasets_dir, or name this file "
                "with dataset.path=... to learn from it all the same."
            )
        logger.warning(message)
    logger.info(
        f"{path}: {facts.n_episodes} episodes, {facts.n_steps} steps, return "
        f"{facts.return_mean:.2f} ± {facts.return_std:.2f}"
        + ("" if facts.win_rate is None else f", win rate {facts.win_rate:.3f}")
    )
    if dataset.equal.n_copies:
        logger.warning(f"{path}: {dataset.equal}; `dataset.py dedupe` leaves them out")
    return dataset, path


def make_buffer(
    args: Settings, logger: Logger, dataset: OfflineDataset, mac: BasicMAC
) -> tuple[OfflineBuffer, DatasetMetadata]:
    """What is learnt from, and the facts of it."""
    dataset = keep_episodes(dataset, args.dataset.keep, args.dataset.keep_share, logger.info)
    buffer = OfflineBuffer(dataset, spawn_seeds(args.seed, "sampling", 1)[0], args.device)
    if args.standardise:
        mac.set_moments(*buffer.moments("obs"))
        buffer.standardise("state")
    return buffer, dataset.metadata


def warn_of_slow_targets(
    args: Settings, logger: Logger, learner: Learner, facts: DatasetMetadata
) -> None:
    """Warn of a run whose target networks cannot carry values back to where they are needed."""
    length = facts.n_steps / facts.n_episodes
    updates = int(args.t_max / (args.batch_size * (length + 1)))
    schedule = learner.target_schedule(updates, args.batch_size * length)
    if schedule is None:
        return
    share = carried_share(schedule, max(1, round(length)), args.gamma)
    if share < 0.9:
        logger.warning(
            f"after t_max={args.t_max:,} steps, about {updates:,} updates, critics can hold at "
            f"most {share:.0%} of values over {length:.0f} steps: their targets move "
            f"{schedule.moves:,} times by {schedule.tau:g}, td_lambda is {schedule.td_lambda:g}. "
            "More updates (t_max, or a smaller batch_size) or faster targets carry more"
        )


def known_shapes(args: Settings) -> tuple[dict[str, int], Callable[[dict[str, int]], str] | None]:
    """The environment's numbers where they are known without it, and what to do with others."""
    if args.env not in SHAPES:
        return {}, None
    shapes = SHAPES[args.env]()
    return shapes.env_info(**args.env_args), partial(shapes.fitting, env_args=args.env_args)


def fit_behaviour(
    args: Settings,
    logger: Logger,
    stop: GracefulExit,
    buffer: OfflineBuffer,
    learner: Learner,
    facts: DatasetMetadata,
) -> None:
    """Fit the behaviour policies, or read them from the cache, and give them to the learner."""
    fitted = behaviour_policies.obtain(
        buffer,
        learner.mac,
        args,
        facts.content_hash,
        Path(args.datasets_dir) / "cache",
        logger.info,
        stop.check,
        logger.phase,
    )
    fitted.annotate(buffer)
    learner.start_from(fitted)
    if not args.resume:  # a resumed run's history has it already
        logger.log_stats(fitted.report, 0)


# --------------------------------------------------------------------------------------------------
# Online


def run_online(args: Settings, logger: Logger, stop: GracefulExit) -> dict[str, Any]:
    """Play, learn from what was played, and test, as EPyMARL does."""
    started = time.monotonic()
    logger.phase("starting the simulator")
    runner = runner_REGISTRY[args.runner](args, logger)
    check_online(args)
    args = args.with_facts(**runner.get_env_info())
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
    saver = Saver(args, logger, mac.agent, learner, progress, runner, parts)
    saver.begin()
    runner.t_env = progress.t_env
    pace = Pace(learner.updates)
    training = logger.phase(TRAINING, args.t_max, initial=progress.t_env)
    with training, saver.explaining_failures():
        while progress.t_env < args.t_max and not stop.requested:
            learner.check_steps()  # acting waits for the device anyway
            if args.test_nepisode and progress.test_due(args.test_interval):
                test(logger, runner, progress, args.test_nepisode)
            episodes = runner.run(test_mode=False)
            if buffer:
                buffer.insert_episode_batch(episodes)
            progress.played += episodes.batch_size
            progress.episode += episodes.batch_size
            while progress.played >= args.train_interval:
                progress.played -= args.train_interval
                if batch := training_batch(args, episodes, buffer):
                    learner.train(batch, runner.t_env, progress.episode)
            training.update(runner.t_env - progress.t_env)
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
        return result | final_test(args, logger, runner, progress)
    runner.close_env()
    return result


def check_online(args: Settings) -> None:
    """ConfigError for an algorithm that cannot learn from the episodes of a runner."""
    if "train_interval" not in args:
        raise ConfigError(
            f"{args.name} learns from data alone. Use an offline environment "
            f"(--env-config={args.env}_offline), or an online learner (qmix, mappo)."
        )
    if not args.buffer_size and args.batch_size_run != args.train_interval:
        raise ConfigError(
            f"{args.name} learns from the episodes just played: expected train_interval = "
            f"batch_size_run, found {args.train_interval} and {args.batch_size_run}."
        )
    if args.buffer_size and not args.batch_size:
        raise ConfigError(
            f"batch_size: expected at least 1, since {args.name} learns from a buffer "
            f"(buffer_size={args.buffer_size}); found 0"
        )
    if 0 < args.buffer_size < args.batch_size:
        raise ConfigError(
            f"buffer_size: expected at least batch_size={args.batch_size}, found "
            f"{args.buffer_size}: {args.name} would never train."
        )


def training_batch(
    args: Settings, episodes: EpisodeBatch, buffer: ReplayBuffer | None
) -> EpisodeBatch | None:
    """What an update learns from; None while the buffer has too few episodes."""
    if buffer is None:
        return episodes[:, : episodes.max_t_filled()].to(args.device)
    return buffer.sample(args.batch_size) if buffer.can_sample(args.batch_size) else None


# --------------------------------------------------------------------------------------------------
# A saved policy


def run_evaluate(args: Settings, logger: Logger) -> dict[str, Any]:
    """Test the policy of `checkpoint_path` on exactly `test_nepisode` episodes."""
    runner, step = load_policy(args, logger)
    progress = Progress(t_env=step)
    stats = test(logger, runner, progress, args.test_nepisode)
    logger.print_recent_stats()
    if args.record:
        logger.info(f"an episode is drawn in {runner.record(args.record)}")
    if args.save_replay:
        logger.info(f"replay written to {runner.save_replay()}")
    runner.close_env()
    return {"t_env": step, **raw_values(stats)}


def run_collect(args: Settings, logger: Logger, stop: GracefulExit) -> dict[str, Any]:
    """Roll out the policy of `checkpoint_path` into a dataset file."""
    if not (args.collect.path or args.quality):
        raise ConfigError(
            "collect: where to? Name the file with collect.path=..., or quality=... for its place "
            f"in datasets_dir ({args.datasets_dir})."
        )
    runner, step = load_policy(args, logger)
    runner.close_env()
    path = Path(args.collect.path) if args.collect.path else dataset_path(args)
    part = Part(
        settings=acting_settings(args),
        weights={k: v.cpu() for k, v in runner.mac.agent.state_dict().items()},
        episodes=args.collect.n_episodes,
        epsilon=args.test_epsilon,
        greedy=args.test_greedy,
        source=f"{args.name}, {Path(args.checkpoint_path).name}, t_env {step}, "
        f"{'greedy' if args.test_greedy else 'sampled'}, epsilon {args.test_epsilon}",
    )
    collecting = partial(logger.phase, "collecting data", unit="episode")
    facts = collect([part], args, path, args.seed, collecting, stop.check)
    logger.info(
        f"{path}: {facts.n_episodes} episodes, return {facts.return_mean:.2f}, "
        f"win rate {facts.win_rate}, hash {facts.content_hash[:16]}"
    )
    return {"path": str(path), "hash": facts.content_hash, "return_mean": facts.return_mean}


def load_policy(args: Settings, logger: Logger) -> tuple[VectorRunner, int]:
    """A runner that plays the policy of `checkpoint_path`, and its step."""
    saved = load_checkpoint(
        args.checkpoint_path,
        args.load_step,
        map_location=args.device,
        expect={"alg": args.name},
        only=["agent.th"],
    )
    runner = runner_REGISTRY[args.runner](args, logger)
    args = args.with_facts(**runner.get_env_info())
    scheme = build_scheme(runner.get_env_info())
    mac = named(mac_REGISTRY, args.mac, "mac")(scheme, {"agents": args.n_agents}, args)
    load_agent(mac, saved)
    mac.agent.to(args.device)
    runner.setup(scheme, {"agents": args.n_agents}, None, mac)
    logger.info(f"policy of {saved.folder}")
    return runner, saved.step


def load_agent(mac: BasicMAC, saved: Checkpoint) -> None:
    note = f" (a checkpoint of {saved.text.get('env')} {saved.text.get('map_name')})"
    put_back(mac.agent, saved.files["agent.th"], saved.folder / "agent.th", note)


# --------------------------------------------------------------------------------------------------
# Pieces


def build(args: Settings, scheme: dict[str, Any], logger: Logger) -> tuple[BasicMAC, Learner]:
    """The controller and the learner, on `args.device`."""
    mac = named(mac_REGISTRY, args.mac, "mac")(scheme, {"agents": args.n_agents}, args)
    learner = named(learner_REGISTRY, args.learner, "learner")(mac, scheme, logger, args)
    if args.device != "cpu":
        learner.cuda()
    return mac, learner


def test(
    logger: Logger, runner: VectorRunner, progress: Progress, n_episodes: int, name: str = "test"
) -> EpisodeStats:
    """Play `n_episodes` test episodes with the present policy and log what became of them."""
    with logger.phase(name, n_episodes, unit="episode", brief=True) as phase:
        stats = runner.test(n_episodes, phase.update)
    summary = stats.summary("test_")
    if hasattr(runner.env, "exact_statistics"):  # a matrix game needs no sampling
        batch = runner.run(test_mode=True)
        summary |= runner.env.exact_statistics(runner.mac.joint_policy(batch))
    logger.log_stats(summary, progress.t_env)
    progress.last_test = progress.t_env
    progress.history.append({"t_env": progress.t_env, **summary})
    return stats


def final_test(
    args: Settings, logger: Logger, runner: VectorRunner, progress: Progress
) -> dict[str, Any]:
    """The test that is reported: the last policy's. Closes the runner."""
    stats = test(logger, runner, progress, args.final_test_nepisode, "final test")
    logger.print_recent_stats()
    simulator = getattr(runner.env, "simulator", args.env)
    runner.close_env()
    return {
        "simulator": simulator,
        # A copy: Sacred would write one object that stands in two places as a reference.
        "final": dict(progress.history[-1]),
        "tests": progress.history,
        **raw_values(stats),
    }


def raw_values(stats: EpisodeStats) -> dict[str, Any]:
    """Each episode's return, length and end, as plain lists."""
    return {"returns": stats.returns, "lengths": stats.lengths, **stats.infos}
