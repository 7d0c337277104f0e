"""Oryx: sequential implicit constraint Q-learning on retention over time and agents."""

from __future__ import annotations

import copy
from typing import Any

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.central_controller import CentralMAC
from inspo.learners.icq_learner import step_weights
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.learners.targets import TargetSchedule
from inspo.utils.rl_utils import gather_actions, masked_log_softmax, soft_update
from inspo.utils.settings import Settings


class OryxLearner(Learner):
    r"""Oryx (Formanek et al., NeurIPS 2025, arXiv 2505.22151), for discrete actions.

    One network (`modules/agents/oryx_agent.py`) gives, for the agents in a fresh order for every
    call, logits and values :math:`Q_j(\tau, a_{1:j-1}, \cdot)` given the actions in the data of the
    agents before. With the bar for the target network (soft updates), and sequential SARSA-ICQ,

    .. math::
        y_j &= r + \gamma (1 - d) \, w'_j \bar Q_j(\tau', a'_{1:j}), \quad
            w'_j = B' \operatorname{softmax}_{B'} (\bar Q_j(\tau', a'_{1:j}) / T_{target}) \\
        L_Q &= \tfrac12 \operatorname{mean}_{m, j} (Q_j(\tau, a_{1:j}) - y_j)^2 \\
        L_\pi &= -\operatorname{mean}_{m, j} w_j \log \pi_j(a_j | \tau, a_{1:j-1}), \quad
            w_j = B \operatorname{softmax}_B (A_j / T_{policy}), \\
            A_j &= Q_j(\tau, a_{1:j}) - \textstyle\sum_b \pi_j(b) Q_j(\tau, a_{1:j-1}, b) \\
        L &= c_Q L_Q + L_\pi

    with actions from the data, no gradient through w and A, and each softmax over the B episodes
    of the batch that have a transition in the same step (for w': whose next step is not a terminal
    one), as in ICQ. One optimiser: the policy's loss moves the encoder of Q as well. `td_lambda`
    above 0 takes the TD(lambda) return in place of y (ours).

    **It executes centrally**: acting takes every agent's observation and the actions of the agents
    before, in n passes. Compare it as a centralised method, or with `decentralised`: the encoder
    keeps each agent's history apart and gives its logits, and only the values, which acting does
    not need, see the predecessors' actions.

    Mended, against OG-MARL's code (docs/baselines.md names the files): whole episodes in place of
    windows of 20 steps that run over an episode's end where it was a time limit; softmaxes over
    valid steps alone; the agents draw their actions independently (there by one key, so that equal
    logits gave equal actions); `retention.feed_forward`: there its weights begin at 0, where they
    stay; the initial weights of the retentions are of the usual size. An episode that was cut has
    no actions in its last row: its value there is the first agent's, E_pi Q_1, which takes none.
    """

    mac: CentralMAC

    def __init__(
        self, mac: CentralMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.network = mac.sequence
        self.target = copy.deepcopy(self.network)
        self.networks["target_agent"] = self.target
        self.optimisers["all"] = adam(self.network.parameters(), args.lr)

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        return TargetSchedule(updates, self.args.target_tau, self.args.td_lambda)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        order = th.randperm(self.n_agents, device=data.now.device)
        logits, q = self.network.unroll(data.inputs, data.all_actions, data.packed, order)
        log_pi = masked_log_softmax(logits, data.avail)  # [R, n, A]
        with th.no_grad():
            target_q = self.target.values(data.inputs, data.all_actions, data.packed, order)
            targets = self._targets(data, target_q, log_pi, order[:1])
        q_taken = data.taken(q)
        q_loss = 0.5 * (q_taken - targets).square().mean()
        weight, advantage = self._weights(data, q.detach(), log_pi.detach())
        policy_loss = -(weight * data.taken(log_pi)).mean()
        loss = a.critic_coef * q_loss + policy_loss
        norm = self.descend("all", loss, a.grad_norm_clip)
        soft_update([self.target], [self.network], a.target_tau)
        self.updates += 1

        if self.log_due(t_env):
            stats = {
                "loss": loss.detach(),
                "q_loss": q_loss.detach(),
                "policy_loss": policy_loss.detach(),
                "grad_norm": norm,
                "q_taken_mean": q_taken.detach().mean(),
                "target_mean": targets.mean(),
                "advantage_std": advantage.std(),
                "weight_max": weight.max(),
            }
            self.logger.log_stats(stats, t_env)

    def _targets(
        self, data: Transitions, target_q: th.Tensor, log_pi: th.Tensor, first: th.Tensor
    ) -> th.Tensor:
        """y, `[M, n]`. target_q and log_pi `[R, n, A]`; first `[1]`: who begins a step."""
        a, then = self.args, data.then
        taken = gather_actions(target_q[then], data.all_actions[then])
        pi, q = (x[then].index_select(1, first) for x in (log_pi.exp(), target_q))
        expected = (pi * q).sum(-1)  # [M, 1]
        values = th.where(data.goes_on.unsqueeze(-1), taken, expected)
        weight = step_weights(
            values / a.target_temperature,
            data.terminated == 0,
            data.packed.time[then],
            data.packed.max_seq_length,
        )
        return data.td_lambda((weight * values).T, a.gamma, a.td_lambda).T

    def _weights(
        self, data: Transitions, q: th.Tensor, log_pi: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """w and A of the actions in the data, `[M, n]` each. q and log_pi `[R, n, A]`."""
        advantage = data.taken(q) - (log_pi[data.now].exp() * q[data.now]).sum(-1)
        weight = step_weights(
            advantage / self.args.policy_temperature,
            th.ones_like(data.now, dtype=th.bool),
            data.packed.time[data.now],
            data.packed.max_seq_length,
        )
        return weight, advantage
