"""Cross-play: what teams earn whose members belong to two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch as th

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers.basic_controller import BasicMAC
from inspo.estimation.play import game_of
from inspo.estimation.policies import Policy, is_shipped, load_policy, short_names
from inspo.offline.collect import read_policy
from inspo.offline.offline_dataset import UNKNOWN, DatasetMetadata
from inspo.offline.teams import SCRIPTS
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.utils.checkpoints import find_checkpoint, read_manifest
from inspo.utils.errors import CheckpointError, ConfigError, require_known
from inspo.utils.phases import Phase
from inspo.utils.seeding import seed_everything, spawn_seeds
from inspo.utils.settings import Settings

LOSS_OF_A_CLASH = 0.25  # teams that lose less of their return do not clash


class Acting(Protocol):
    """What a runner wants of a controller."""

    def init_hidden(self, batch_size: int) -> None:
        """Forget; `batch_size` episodes begin."""

    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any, test_mode: bool
    ) -> th.Tensor:
        """Actions of step t_ep for the episodes `bs`, long `[len(bs), n]`."""


class Script:
    """A scripted team of `offline.teams` as a controller."""

    def __init__(self, env: str, map_name: str, team: int):
        self.module, self.map_name, self.team = SCRIPTS[env], map_name, team

    def init_hidden(self, batch_size: int) -> None:
        self.rng = np.random.default_rng(int(th.randint(1 << 31, ())))

    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any, test_mode: bool
    ) -> th.Tensor:
        state = ep_batch["state"][bs, t_ep].numpy()
        members = np.full((len(state), ep_batch["actions"].shape[2]), self.team)
        return th.from_numpy(self.module.act(self.map_name, members, state, self.rng))


class Mixed:
    """A controller whose agent i is agent i of `members[i]`."""

    def __init__(self, members: Sequence[Acting]):
        self.members = members

    def init_hidden(self, batch_size: int) -> None:
        for member in {id(member): member for member in self.members}.values():
            member.init_hidden(batch_size)

    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any, test_mode: bool
    ) -> th.Tensor:
        chosen: dict[int, th.Tensor] = {}
        for member in self.members:
            if id(member) not in chosen:
                actions = member.select_actions(ep_batch, t_ep, t_env, bs, test_mode)
                chosen[id(member)] = actions.cpu()
        return th.stack([chosen[id(m)][:, i] for i, m in enumerate(self.members)], dim=1)


@dataclass(frozen=True)
class Task:
    """What is played: an environment, its map and its settings."""

    env: str
    map_name: str
    env_args: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.env} {self.map_name}"


def task_of(folders: Sequence[Path], env: str | None, map_name: str | None) -> Task:
    """The task of the first policy, or without policies the one that is named.

    ConfigError if neither says it, CheckpointError for a policy of another task, or of the same
    one under other settings.
    """
    tasks = [_stored_task(folder) for folder in folders]
    if not tasks:
        if env is None or map_name is None:
            raise ConfigError(
                "cross-play of scripted teams alone: expected --env and --map, which policies "
                "would say"
            )
        require_known(env, SCRIPTS, "--env: there are no scripted teams of")
        return Task(env, map_name, {})
    first = tasks[0]
    for folder, task in zip(folders, tasks):
        if (task.env, task.map_name) != (first.env, first.map_name):
            raise CheckpointError(
                f"{folder} is a policy of {task}, but {folders[0]} is of {first}: cross-play needs "
                "policies of one task"
            )
        differing = [
            f"env_args.{key} {first.env_args[key]} and {value}"
            for key, value in task.env_args.items()
            if key in first.env_args and first.env_args[key] != value
        ]
        if differing:
            raise CheckpointError(
                f"{folder} was trained under other settings than {folders[0]}: "
                f"{'; '.join(differing)}. Cross-play needs policies of one task"
            )
    for name, given, found in (("--env", env, first.env), ("--map", map_name, first.map_name)):
        if given is not None and given != found:
            raise ConfigError(f"{name} {given}: the policies are of {first}. Leave it out")
    return Task(first.env, first.map_name, dict(tasks[0].env_args))


def _stored_task(folder: Path) -> Task:
    """The task of a policy; of a shipped one the settings are not known, and are the defaults."""
    if is_shipped(folder):
        stored, env_args = read_policy(folder)[0], {}
    else:
        stored = read_manifest(find_checkpoint(folder))
        env_args = dict((stored.get("config") or {}).get("env_args") or {})
    return Task(str(stored.get("env")), str(stored.get("map_name")), env_args)


@dataclass(frozen=True)
class Mixture:
    """What a team of mixed members earned.

    members: the team of each agent. mean, error: of the return over `episodes` episodes, with its
    standard error.
    """

    members: tuple[int, ...]
    mean: float
    error: float
    episodes: int


@dataclass(frozen=True)
class CrossPlay:
    """The outcome: names of the teams, the mixtures, and what they come to.

    mean, error `[K, K]`: of the return. On the diagonal a team itself; beside it, (a, b), the mean
    over the mixtures of the two in which agent 0 belongs to a. loss `[K, K]`: the share of their
    own mean return that teams a and b lose in both kinds of mixture; nan on the diagonal, and where
    they earn nothing themselves.
    """

    task: Task
    teams: list[str]
    mixtures: list[Mixture]
    mean: np.ndarray
    error: np.ndarray
    loss: np.ndarray


def mixtures_of(n_teams: int, n_agents: int, most: int, seed: int) -> list[tuple[int, ...]]:
    """The team of each agent, in every team itself and every mixture of two of them.

    Of each pair, and each team that agent 0 belongs to, at most `most`, drawn at random.
    """
    rng = np.random.default_rng(seed)
    found = [(team,) * n_agents for team in range(n_teams)]
    for a, b in product(range(n_teams), repeat=2):
        if a != b:
            mixed = [(a, *rest) for rest in product((a, b), repeat=n_agents - 1) if b in rest]
            drawn = rng.permutation(len(mixed))[:most]
            found += [mixed[k] for k in sorted(drawn)]
    return found


def cross_play(
    folders: Sequence[Path],
    n_scripts: int,
    task: Task,
    *,
    way: str = "run",
    n_episodes: int = 128,
    most: int = 8,
    seed: int = 0,
    phase: Callable[..., Phase] = Phase,
) -> CrossPlay:
    """Play every mixture of the policies in `folders` and of the first `n_scripts` scripted teams.

    way: how policies are played, as for `load_policy`. n_episodes: of each mixture. most: mixtures
    of a pair, see `mixtures_of`. Episodes are played by the ordinary runner of the environment.
    ConfigError or CheckpointError for teams that cannot be played together.
    """
    if n_scripts:
        require_known(task.env, SCRIPTS, "--scripts: there are no scripted teams of")
        known = SCRIPTS[task.env].n_teams(task.map_name)
        if n_scripts > known:
            raise ConfigError(f"--scripts {n_scripts}: there are {known} scripted teams of {task}")
    if len(folders) + n_scripts < 2:
        raise ConfigError("cross-play: expected two teams or more; name policies, or use --scripts")
    args = Settings(game_of(task.env, task.map_name, task.env_args, seed), {"device": "cpu"})
    runner = runner_REGISTRY[args.runner](args, None)
    try:
        policies = _load(folders, task, runner.get_env_info(), way)
        scripts = [Script(task.env, task.map_name, k) for k in range(n_scripts)]
        names = [policy.name for policy in policies] + [f"script {k}" for k in range(n_scripts)]
        actors: list[Acting] = [*(policy.mac for policy in policies), *scripts]
        played = list(_play(runner, actors, n_episodes, most, seed, phase))
    finally:
        runner.close_env()
    return summarise(task, names, played)


def _load(folders: Sequence[Path], task: Task, info: dict[str, Any], way: str) -> list[Policy]:
    facts = DatasetMetadata(
        task.env, task.map_name, quality="", simulator="", source=UNKNOWN, **info
    )
    names = short_names(folders) if folders else []
    return [load_policy(folder, facts, way, name=name) for folder, name in zip(folders, names)]


def _play(
    runner: Any,
    actors: Sequence[Acting],
    n_episodes: int,
    most: int,
    seed: int,
    phase: Callable[..., Phase],
) -> Iterator[Mixture]:
    info = runner.get_env_info()
    mixtures = mixtures_of(len(actors), info["n_agents"], most, seed)
    seeds = spawn_seeds(seed, "cross-play", len(mixtures))
    with phase("playing", len(mixtures), unit="mixture") as bar:
        for members, own_seed in zip(mixtures, seeds):
            seed_everything(own_seed)
            runner.env.seed(own_seed)
            mixed = Mixed([actors[team] for team in members])
            groups = {"agents": info["n_agents"]}
            runner.setup(build_scheme(info), groups, None, cast(BasicMAC, mixed))
            returns = np.array(runner.test(n_episodes).returns)
            error = float(returns.std() / math.sqrt(len(returns)))
            yield Mixture(members, float(returns.mean()), error, len(returns))
            bar.update(1)


def summarise(task: Task, names: list[str], mixtures: list[Mixture]) -> CrossPlay:
    """The matrix of some mixtures."""
    k = len(names)
    mean, error, loss = (np.full((k, k), math.nan) for _ in range(3))
    for a, b in product(range(k), repeat=2):
        own = [m for m in mixtures if m.members[0] == a and set(m.members) == {a, b}]
        mean[a, b] = np.mean([m.mean for m in own])
        error[a, b] = math.hypot(*(m.error for m in own)) / len(own)
    for a, b in product(range(k), repeat=2):
        alone, together = (mean[a, a] + mean[b, b]) / 2, (mean[a, b] + mean[b, a]) / 2
        if a != b and alone:
            loss[a, b] = (alone - together) / abs(alone)
    return CrossPlay(task, names, mixtures, mean, error, loss)


def without_clash(found: CrossPlay) -> list[tuple[str, str]]:
    """The pairs of teams that lose less than a quarter of their return together."""
    return [
        (found.teams[a], found.teams[b])
        for a in range(len(found.teams))
        for b in range(a)
        if not found.loss[a, b] >= LOSS_OF_A_CLASH
    ]
