"""The two interfaces of a simulator: one environment, and a batch of them stepped together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from inspo.utils.errors import ConfigError

SIZES = ("state_shape", "obs_shape", "n_actions", "n_agents", "episode_limit")


class MultiAgentEnv(ABC):
    """One cooperative environment, as EPyMARL's users know it.

    `n_agents` agents act at once and share one reward. Attributes: `n_agents`, `episode_limit`.
    """

    n_agents: int
    episode_limit: int

    @abstractmethod
    def reset(self, seed: int | None = None) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Start an episode. Returns (the observation of each agent, info)."""

    @abstractmethod
    def step(
        self, actions: np.ndarray
    ) -> tuple[list[np.ndarray], float, bool, bool, dict[str, Any]]:
        """Play one joint action `[n_agents]`.

        Returns (observations, reward, terminated, truncated, info). `terminated` is a true end of
        the task; `truncated` is the episode limit, from where a learner bootstraps.
        """

    @abstractmethod
    def get_obs(self) -> list[np.ndarray]:
        """The observation of each agent, `n_agents` arrays `[obs_shape]`, float32."""

    @abstractmethod
    def get_state(self) -> np.ndarray:
        """The global state `[state_shape]`, float32."""

    @abstractmethod
    def get_avail_actions(self) -> np.ndarray:
        """1 where an action is available, `[n_agents, n_actions]`."""

    @abstractmethod
    def get_env_info(self) -> dict[str, int]:
        """`state_shape, obs_shape, n_actions, n_agents, episode_limit`, all int."""

    def get_stats(self) -> dict[str, float]:
        """Statistics of the simulator itself, of its restarts for example."""
        return {}

    def describe(self) -> str:
        """Name and version of the simulator, as datasets record it."""
        return type(self).__name__

    def save_replay(self) -> str:
        """Write what was played in the simulator's own replay format. Returns where to."""
        raise _no_replays(self)

    def close(self) -> None:  # noqa: B027 - most simulators hold nothing
        """Give back what the simulator holds."""


def _no_replays(env: object) -> ConfigError:
    return ConfigError(f"save_replay: {type(env).__name__} writes no replays. Leave it out.")


@dataclass(frozen=True)
class VectorStep:
    """What one step of N environments gave. Rows of finished environments are zero / False.

    reward: float32 `[N]`. terminated, truncated: bool `[N]`. info: name -> float32 `[N]`, read by
    the runner in the step in which an episode ends (`battle_won`, for example).
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, np.ndarray]


def available(actions: np.ndarray, avail: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Actions int `[N, n_agents]` with 0 in finished environments, those that are not `live` `[N]`.

    avail: `[N, n_agents, n_actions]`. ValueError for an action that is not available.
    """
    actions = np.where(live[:, None], actions, 0)
    chosen = actions[..., None] == np.arange(avail.shape[-1])
    wrong = np.argwhere(~(chosen & (avail > 0)).any(axis=-1) & live[:, None])
    for env, agent in wrong:
        raise ValueError(
            f"environment {env}, agent {agent}: action {actions[env, agent]} is not available; "
            f"available are {np.flatnonzero(avail[env, agent]).tolist()}"
        )
    return actions


class VectorEnv(ABC):
    """N copies of one environment in one simulator, stepped by one call.

    All N start together; one that ends stays frozen (its observation is the terminal one) until
    the next `reset`. The random stream is the simulator's own: it is set by `seed` and goes on
    from episode to episode, and `get_rng` / `set_rng` carry it over a restart.
    """

    n_envs: int
    n_agents: int
    n_actions: int
    state_shape: int
    obs_shape: int
    episode_limit: int
    _seed = 0

    def get_env_info(self) -> dict[str, int]:
        """`state_shape, obs_shape, n_actions, n_agents, episode_limit`, all int."""
        return {key: int(getattr(self, key)) for key in SIZES}

    def seed(self, seed: int) -> None:
        """Begin the random stream of all N environments; each gets one of its own.

        As it stands, with `get_rng` and `set_rng`, for games in which nothing is random.
        """
        self._seed = int(seed)

    @abstractmethod
    def reset(self) -> None:
        """Start a new episode in all N."""

    @abstractmethod
    def observe(self) -> dict[str, np.ndarray]:
        """Fresh, writable arrays of the present step.

        state: float32 `[N, state_shape]`. obs: float32 `[N, n_agents, obs_shape]`.
        avail_actions: int32 `[N, n_agents, n_actions]`.
        """

    @abstractmethod
    def step(self, actions: np.ndarray) -> VectorStep:
        """Play `actions`, int `[N, n_agents]`; those of finished environments are ignored."""

    def get_rng(self) -> Any:
        """The state of the random stream, made of ints, lists and strings alone."""
        return {"seed": self._seed}

    def set_rng(self, state: Any) -> None:
        """Put back what `get_rng` gave."""
        self._seed = int(state["seed"])

    def lost(self) -> np.ndarray:
        """Whose episode broke off since its reset, bool `[N]`: the simulator failed.

        Such an episode has no end and counts nowhere; the environment is finished until it is
        reset. Most simulators never fail.
        """
        return np.zeros(self.n_envs, dtype=bool)

    def reset_lost(self) -> None:
        """Start a new episode in the environments that are `lost`; the others stay as they are."""
        raise NotImplementedError(f"{type(self).__name__} loses no episodes")

    def save_replay(self) -> str:
        """Write what environment 0 played in the simulator's replay format. Returns where to."""
        raise _no_replays(self)

    def close(self) -> None:  # noqa: B027 - most simulators hold nothing
        """Give back what the simulator holds."""
