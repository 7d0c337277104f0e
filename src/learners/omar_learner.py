"""OMAR: actors pulled towards the best action of a conservative critic."""

from __future__ import annotations

import copy
from typing import Any

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.learners.targets import TargetSchedule
from inspo.modules.critics import DuelingCritic
from inspo.modules.module_list import ListOf
from inspo.utils.rl_utils import (
    UNAVAILABLE,
    gather_actions,
    masked_log_softmax,
    masked_logsumexp,
    one_hot,
)
from inspo.utils.settings import Settings

LOG_OFFSET = 1e-5  # in log(pi + 1e-5): a negative advantage could pull log pi down for ever


class OMARLearner(Learner):
    r"""Offline multi-agent RL with actor rectification (Pan et al., ICML 2022, arXiv 2111.11188).

    For discrete actions, as in the repository of CFCQL (Shao et al., NeurIPS 2023), which lists all
    actions where the original searches them by the cross-entropy method. The agents learn
    independently of each other, each from the team's reward: there is no mixer. Two critics
    :math:`Q^1, Q^2`, shared by the agents, on state, observation and identity:

    .. math::
        y_i &= \min_k G^\lambda\big[\bar Q^k_i(s', a'_i)\big], \quad
            a'_i = \arg\max_a \bar\pi_i(a | \tau'_i) \\
        L(\phi) &= \sum_k \operatorname{mean}_{m, i} (Q^k_i(s, a_i) - y_i)^2 + \alpha \sum_k
            \operatorname{mean}_{m, i} \big[\log \textstyle\sum_a e^{Q^k_i(s, a)}
            - Q^k_i(s, a_i)\big]

    where :math:`G^\lambda` is the TD(lambda) return on the values in brackets and alpha is
    `cql_alpha`. Then the actors, with c = `omar_coef`, no gradient through Q,

    .. math::
        L(\theta) &= (1 - c) \, L_{pg} + c \, L_{omar} \\
        L_{pg} &= -\operatorname{mean}_{m, i} \big(Q^1_i(s, a_i) - \textstyle\sum_b \pi_i(b)
            Q^1_i(s, b)\big) \log(\pi_i(a_i) + 10^{-5}) \\
        L_{omar} &= \operatorname{mean}_{m, i, b} \big(\pi_i(b) -
            1[b = \arg\max_{b'} Q^1_i(s, b')]\big)^2

    One call: `critic_epochs` passes of the critics over the batch's transitions, in minibatches of
    `critic_minibatch` drawn anew each time; the copy of critics and actors into their targets,
    every `target_update_interval` calls; one step of the actors on the whole batch.

    Mended, against the reference: its second critic ends in the first one's heads; its log-sum-exp
    and its argmax run over actions that are not available; its L_omar counts the padding. Its
    critics take one step per time index, each on what the batch's episodes hold there; ours take
    `critic_minibatch` transitions in a step, drawn from all times. With the published 128 of both,
    transitions and episodes, the number of steps is the mean length of the episodes in place of
    the greatest; with smaller batches (the preset of SMAX) a call has fewer of them.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critics: ListOf[DuelingCritic] = ListOf(
            DuelingCritic(
                scheme["state"]["vshape"],
                scheme["obs"]["vshape"],
                args.n_agents,
                args.n_actions,
                args.critic_hidden_dim,
            )
            for _ in range(2)
        )
        self.target_critics = copy.deepcopy(self.critics)
        self.target_mac = copy.deepcopy(mac)
        self.networks |= {
            "critics": self.critics,
            "target_critics": self.target_critics,
            "target_agent": self.target_mac.agent,
        }
        self.optimisers["critics"] = adam(self.critics.parameters(), args.critic_lr)
        self.optimisers["policy"] = adam(mac.parameters(), args.lr)

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        a = self.args
        return TargetSchedule(updates // a.target_update_interval, 1.0, a.td_lambda)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        data = Transitions(batch, self.mac)
        targets = self._targets(data)
        now = (data.state[data.now], data.obs[data.now], data.avail[data.now])
        stats = self._improve_critics(data, *now, targets)
        if (self.updates + 1) % self.args.target_update_interval == 0:
            self.target_critics.load_state_dict(self.critics.state_dict())
            self.target_mac.load_state(self.mac)
        stats |= self._improve_policies(data, *now)
        self.updates += 1
        if self.log_due(t_env):
            self.logger.log_stats(stats | {"target_mean": targets.mean()}, t_env)

    @th.no_grad()
    def _targets(self, data: Transitions) -> th.Tensor:
        """y of every transition and agent, `[M, n]`."""
        a = self.args
        then = data.then
        logits = self.target_mac.agent.unroll(data.inputs, data.packed)[then]
        best = logits.masked_fill(data.avail[then] == 0, UNAVAILABLE).argmax(-1)
        state, obs = data.state[then], data.obs[then]
        values = [
            gather_actions(critic.evaluate(state, obs), best).T for critic in self.target_critics
        ]
        returns = data.td_lambda(th.stack(values), a.gamma, a.td_lambda)  # [2, n, M]
        return returns.amin(0).T

    def _improve_critics(
        self,
        data: Transitions,
        state: th.Tensor,
        obs: th.Tensor,
        avail: th.Tensor,
        targets: th.Tensor,
    ) -> dict[str, th.Tensor]:
        """The sweep of the critics. All of the M transitions: state `[M, S]`, obs `[M, n, O]`,
        avail `[M, n, A]`, targets `[M, n]`."""
        a = self.args
        td, cql, norms = [], [], []
        for _ in range(a.critic_epochs):
            order = th.randperm(len(data), device=state.device)
            drawn = (x[order] for x in (state, obs, avail, data.actions, targets))
            for s, o, available, actions, y in zip(*(x.split(a.critic_minibatch) for x in drawn)):
                error = penalty = y.new_zeros(())
                for critic in self.critics:
                    q = critic(s, o)
                    taken = gather_actions(q, actions)
                    error = error + (taken - y).square().mean()
                    penalty = penalty + (masked_logsumexp(q, available) - taken).mean()
                loss = error + a.cql_alpha * penalty
                norms.append(self.descend("critics", loss, a.grad_norm_clip))
                td.append(error.detach())
                cql.append(penalty.detach())
        return {
            "critic_td_loss": th.stack(td).mean(),
            "critic_cql_loss": th.stack(cql).mean(),
            "critic_grad_norm": th.stack(norms).mean(),
        }

    def _improve_policies(
        self,
        data: Transitions,
        state: th.Tensor,
        obs: th.Tensor,
        avail: th.Tensor,
    ) -> dict[str, th.Tensor]:
        """One step of the actors. Arguments as in `_improve_critics`."""
        a = self.args
        q = self.critics[0].evaluate(state, obs)
        best = q.masked_fill(avail == 0, UNAVAILABLE).argmax(-1)
        logits = self.mac.agent.unroll(data.inputs, data.packed)[data.now]
        pi = masked_log_softmax(logits, avail).exp()
        pi_taken = gather_actions(pi, data.actions)
        advantage = gather_actions(q, data.actions) - (pi.detach() * q).sum(-1)
        gradient_loss = -(advantage * (pi_taken + LOG_OFFSET).log()).mean()
        omar_loss = (pi - one_hot(best, self.n_actions)).square().mean()
        loss = (1 - a.omar_coef) * gradient_loss + a.omar_coef * omar_loss
        norm = self.descend("policy", loss, a.grad_norm_clip)
        return {
            "policy_gradient_loss": gradient_loss.detach(),
            "omar_loss": omar_loss.detach(),
            "policy_grad_norm": norm,
            "advantage_std": advantage.std(),
            "pi_taken_mean": pi_taken.detach().mean(),
        }
