"""Plays episodes in N environments that are stepped together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch as th

from inspo.components.episode_batch import EpisodeBatch, Scheme
from inspo.controllers.basic_controller import BasicMAC
from inspo.envs import VECTOR_REGISTRY, conventions
from inspo.envs.drawing import DRAWINGS, write_gif
from inspo.envs.multiagentenv import VectorEnv
from inspo.utils.errors import ConfigError
from inspo.utils.logging import Logger
from inspo.utils.seeding import spawn_seeds
from inspo.utils.settings import Settings

Entry = TypeVar("Entry", bound=Callable[..., Any])


def find(registry: dict[str, Entry], args: Settings) -> Entry:
    """The entry of `args.env`; ConfigError if this kind of runner cannot play it."""
    if args.env not in registry:
        fitting = "vector" if args.env in VECTOR_REGISTRY else "parallel, or episode"
        raise ConfigError(
            f"runner: '{args.runner}' cannot play the environment '{args.env}'; "
            f"use runner={fitting}."
        )
    return registry[args.env]


@dataclass
class EpisodeStats:
    """What became of some episodes, in the order in which they were played.

    returns: sums of rewards. lengths: transitions. infos: name -> values, from the last step's
    `info` (SMAC and SMAX: `battle_won`, `dead_allies`, `dead_enemies`), and the convention of each
    agent where there are such (`envs.conventions`). n_lost: episodes beside
    these that broke off because a simulator failed, and were played anew.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    infos: dict[str, list[float]] = field(default_factory=dict)
    n_lost: int = 0

    def __len__(self) -> int:
        return len(self.returns)

    def extend(self, other: EpisodeStats, limit: int | None = None) -> None:
        """Append the first `limit` episodes of `other` (all of them by default)."""
        self.returns += other.returns[:limit]
        self.lengths += other.lengths[:limit]
        self.n_lost += other.n_lost
        for name, values in other.infos.items():
            self.infos.setdefault(name, []).extend(values[:limit])

    def summary(self, prefix: str = "") -> dict[str, float]:
        """EPyMARL's keys: return_mean, return_std, ep_length_mean and {name}_mean of each info.

        And `episodes`, how many these are of, and `episodes_lost`, if there were any.
        """
        if not self.returns:
            return {}
        stats = {
            "episodes": float(len(self)),
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "ep_length_mean": float(np.mean(self.lengths)),
        }
        stats |= {
            f"{name}_mean": float(np.mean(values))
            for name, values in self.infos.items()
            if not name.startswith(conventions.PREFIX)  # which are names, not amounts
        }
        if self.n_lost:
            stats["episodes_lost"] = float(self.n_lost)
        return {prefix + key: value for key, value in stats.items()}


class VectorRunner:
    """Runs batches of `batch_size` episodes, one in each environment.

    `run` adds to `train_stats` in training and leaves it alone in tests, so that neither leaks into
    the other; `test(n)` counts exactly the first n episodes of the batches that it plays.
    """

    mac: BasicMAC
    scheme: Scheme

    def __init__(self, args: Settings, logger: Logger | None):
        self.args = args
        self.batch_size = args.batch_size_run
        self.env = self.make_env()
        self.env.seed(spawn_seeds(args.seed, "environment", 1)[0])
        self.episode_limit = self.env.episode_limit
        self.t_env = 0
        self.train_stats = EpisodeStats()
        self.last_stats = EpisodeStats()  # of the latest batch, tests included

    def make_env(self) -> VectorEnv:
        make = find(VECTOR_REGISTRY, self.args)
        env: VectorEnv = make(n_envs=self.batch_size, **self.args.env_args)
        return env

    def get_env_info(self) -> dict[str, int]:
        return self.env.get_env_info()

    def setup(self, scheme: Scheme, groups: object, preprocess: object, mac: BasicMAC) -> None:
        self.scheme, self.mac = scheme, mac

    def run(self, test_mode: bool = False) -> EpisodeBatch:
        """Play one whole episode in every environment. Returns T = episode_limit + 1 steps.

        An episode that breaks off because its simulator failed is forgotten, and another one is
        played in its place, so that the batch always has `batch_size` whole episodes.
        """
        env, n = self.env, self.batch_size
        batch = EpisodeBatch.empty(self.scheme, env.n_agents, n, self.episode_limit + 1)
        infos: dict[str, np.ndarray] = {}
        env.reset()
        self._play(batch, np.arange(n), infos, test_mode)
        n_lost = 0
        while (again := np.flatnonzero(env.lost())).size:
            n_lost += again.size
            for array in batch.data.values():
                array[again] = 0
            env.reset_lost()
            self._play(batch, again, infos, test_mode)
        lengths = batch["filled"].sum(1).flatten() - 1
        name, state = str(self.args.env), batch["state"].numpy()
        played = conventions.labels(name, getattr(env, "map_name", ""), state, lengths.numpy())
        if played is not None:
            infos |= {f"{conventions.PREFIX}{i}": column for i, column in enumerate(played.T)}
        self.last_stats = EpisodeStats(
            # Step by step, in double precision; what follows an episode is zero.
            batch["reward"].double().numpy().cumsum(1)[:, -1, 0].tolist(),
            lengths.tolist(),
            {name: values.tolist() for name, values in infos.items()},
            n_lost,
        )
        if not test_mode:
            self.train_stats.extend(self.last_stats)
            self.t_env += int(lengths.sum())
        return batch

    def _play(
        self, batch: EpisodeBatch, active: np.ndarray, infos: dict[str, np.ndarray], test_mode: bool
    ) -> None:
        """Play the episodes of the environments `active`, int `[k]`, from their reset to the end.

        Fills their rows of `batch`, and of each of `infos`, `[N]`.
        """
        env, n = self.env, self.batch_size
        store = {key: value.numpy() for key, value in batch.data.items()}  # same memory
        done = np.zeros(n, dtype=bool)
        self.mac.init_hidden(n)
        for t in itertools.count():
            for key, value in env.observe().items():
                store[key][active, t] = value[active]
            store["filled"][active, t] = 1
            active = active[~done[active]]  # those that just ended have stored their last step
            if len(active) == 0:
                break
            actions = np.zeros((n, env.n_agents), dtype=np.int64)
            bs = th.from_numpy(active)
            chosen = self.mac.select_actions(batch, t, self.t_env, bs=bs, test_mode=test_mode)
            actions[active] = chosen.cpu().numpy()
            out = env.step(actions)
            active = active[~env.lost()[active]]
            done = out.terminated | out.truncated
            store["actions"][active, t] = actions[active, :, None]
            store["reward"][active, t, 0] = out.reward[active]
            store["terminated"][active, t, 0] = out.terminated[active]
            ended = active[done[active]]
            for name, values in out.info.items():
                infos.setdefault(name, np.zeros(n))[ended] = values[ended]

    def test(self, n_episodes: int, played: Callable[[int], None] = lambda n: None) -> EpisodeStats:
        """Play test episodes and count exactly `n_episodes`, the first of the batches played.

        played: told after each batch how many more of them there are.
        """
        stats = EpisodeStats()
        while (left := n_episodes - len(stats)) > 0:
            self.run(test_mode=True)
            stats.extend(self.last_stats, left)
            played(min(left, self.batch_size))
        return stats

    def save_replay(self) -> str:
        """Write what environment 0 played, in its simulator's own format. Returns where to."""
        return self.env.save_replay()

    def record(self, path: str) -> str:
        """Play a test episode in every environment and draw that of environment 0 into a GIF.

        Returns a line that says what is to be seen.
        """
        batch = self.run(test_mode=True)
        steps = self.last_stats.lengths[0]
        episode = {key: value[0, : steps + 1].numpy() for key, value in batch.data.items()}
        write_gif(path, DRAWINGS[str(self.args.env)], self.env, episode)
        infos = "".join(f", {key} {value[0]:g}" for key, value in self.last_stats.infos.items())
        return f"{path}: {steps} steps, return {self.last_stats.returns[0]:.2f}{infos}"

    def close_env(self) -> None:
        self.env.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "t_env": self.t_env,
            "rng": self.env.get_rng(),
            "train_stats": vars(self.train_stats),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t_env = state["t_env"]
        self.env.set_rng(state["rng"])
        vars(self.train_stats).update(state["train_stats"])
