"""One batch of episodes as the learners read it: rows without padding, under short names."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.utils.rl_utils import gather_actions


class Observer(Protocol):
    """A controller, as far as it says what its agents see."""

    def inputs(self, batch: EpisodeBatch) -> th.Tensor: ...
    def observed(self, obs: th.Tensor) -> th.Tensor: ...


class Transitions:
    """The R filled steps of a batch, M of which begin a transition.

    Attributes:
        packed: where the rows lie; `now` and `then` are `packed.transitions` and
            `packed.successors`, `[M]`: the rows that begin a transition and those it leads to.
        batch: the episodes themselves.
        inputs: `[R, n, I]`, what the controller's agents see.
        state: `[R, S]`.
        avail: `[R, n, A]`, bool.
        all_actions: `[R, n]`, long; an episode's last row may hold anything.
        actions: `[M, n]`, long.
        reward, terminated: `[M]`.
    """

    def __init__(self, batch: EpisodeBatch, mac: Observer):
        """batch: `[B, T, ...]` under EPyMARL's keys. mac: says what its agents see."""
        self.batch, self._observed = batch, mac.observed
        self.packed = packed = batch.packed
        self.now, self.then = packed.transitions, packed.successors
        self.inputs = mac.inputs(batch)
        self.state = batch.rows("state")
        self.avail = batch.rows("avail_actions") > 0
        self.all_actions = batch.rows("actions").squeeze(-1)
        self.actions = self.all_actions[self.now]
        self.reward = batch.rows("reward").squeeze(-1)[self.now]
        self.terminated = batch.rows("terminated").squeeze(-1)[self.now].float()

    def __len__(self) -> int:
        """M."""
        return len(self.now)

    def taken(self, values: th.Tensor) -> th.Tensor:
        """values of all filled steps `[R, n, A]` at the actions in the data, `[M, n]`."""
        return gather_actions(values[self.now], self.actions)

    @cached_property
    def goes_on(self) -> th.Tensor:
        """Whether the step that a transition leads to begins another one, bool `[M]`."""
        begins = th.zeros_like(self.packed.time, dtype=th.bool).index_fill(0, self.now, True)
        return begins[self.then]

    @cached_property
    def obs(self) -> th.Tensor:
        """`[R, n, O]`."""
        return self._observed(self.batch.rows("obs"))

    def td_lambda(
        self,
        next_values: th.Tensor,
        gamma: float,
        td_lambda: float,
        reward: th.Tensor | None = None,
    ) -> th.Tensor:
        """`PackedEpisodes.td_lambda` of the data, or of another `reward` `[M]` or `[K, M]`."""
        reward = self.reward if reward is None else reward
        return self.packed.td_lambda(reward, self.terminated, next_values, gamma, td_lambda)


class AnnotatedTransitions(Transitions):
    """Transitions with what the behaviour policies say of them, and agent i's part of the data.

    Further attributes:
        log_mu: `[R, n, A]`, the individual behaviour policies, Eq. 21.
        log_mu_others: `[M, n]`, log mu^{-i}(a^{-i} | s, a^i), Eq. 22; None where nothing needs it.
    """

    def __init__(self, batch: EpisodeBatch, mac: Observer, with_others: bool = True) -> None:
        super().__init__(batch, mac)
        self.log_mu = batch.rows("behaviour_log_probs")
        self.log_mu_others: th.Tensor | None = None
        if with_others:
            self.log_mu_others = batch.rows("behaviour_log_prob_others")[self.now]

    @property
    def critic_inputs(self) -> th.Tensor:
        """State and what each agent sees, `[n, R, S + I]`."""
        own = self.inputs.transpose(0, 1)
        return th.cat([self.state.expand(len(own), -1, -1), own], dim=-1)

    def taken_by(self, i: int, values: th.Tensor) -> th.Tensor:
        """values of all filled steps `[R, A]` at agent i's actions in the data, `[M]`."""
        return gather_actions(values[self.now], self.actions[:, i])
