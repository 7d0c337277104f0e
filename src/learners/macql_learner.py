"""MACQL: conservative Q-learning on the joint action."""

from __future__ import annotations

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.learners.mixing import MixingLearner


def draw_available(avail: th.Tensor, n_samples: int) -> th.Tensor:
    """Uniform independent draws among the available actions. `[..., A]` -> long `[..., K]`."""
    count = avail.sum(-1, keepdim=True)
    listed = avail.argsort(dim=-1, descending=True)  # the available actions come first
    drawn = th.rand(*avail.shape[:-1], n_samples, device=avail.device) * count
    return listed.gather(-1, drawn.long())


class MACQLLearner(MixingLearner):
    r"""CQL (Kumar et al. 2020) on QMIX, the baseline of CFCQL (Shao et al. 2023, arXiv 2309.12696).

    .. math::
        L = \tfrac12 \operatorname{mean}_m (Q_{tot}(s, a) - G^\lambda)^2 + \alpha
            \operatorname{mean}_m \Big[\log \sum_{k=1}^K e^{Q_{tot}(s, a^k)} - Q_{tot}(s, a)\Big],
        \quad V(s') = \bar Q_{tot}(s', \arg\max_{a'} Q(s', a'))

    with K = `raw_sample_actions` joint actions :math:`a^k` drawn anew for every transition, each
    agent's uniformly from its available actions, alpha = `global_cql_alpha`, :math:`G^\lambda` the
    TD(lambda) return on V, and the bar for the target networks, copied every
    `target_update_interval` updates. Less the constant log K, which has no gradient, the first term
    of the penalty is the soft maximum log E exp Q_tot over the available joint actions.

    The batch carries EPyMARL's keys alone.

    Otherwise than in CFCQL's authors' code, where actions are drawn from all and the Q_tot of a
    joint action with an unavailable part is multiplied by 0: with SMAC's masks nearly every draw is
    of that kind and puts exp(0) into the sum, and the penalty loses most of its gradient. Here
    every joint action drawn can be played. The mixing network's weights are computed once per
    state.
    """

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        q = self.mac.agent.unroll(data.inputs, data.packed)  # [R, n, A]
        weights = self.mixer.weights(data.state[data.now])
        q_tot = weights.mix(data.taken(q))  # [M]
        next_values = self.double_q_values(data, q)
        targets = data.td_lambda(next_values, a.gamma, a.td_lambda)
        error = q_tot - targets
        td_loss = 0.5 * error.square().mean()

        drawn = draw_available(data.avail[data.now], a.raw_sample_actions)  # [M, n, K]
        q_drawn = q[data.now].gather(-1, drawn).transpose(1, 2)  # [M, K, n]
        cql_loss = (weights.mix_many(q_drawn).logsumexp(-1) - q_tot).mean()
        loss = td_loss + a.global_cql_alpha * cql_loss
        norm = self.descend("all", loss, a.grad_norm_clip)
        self.updates += 1

        if self.updates % a.target_update_interval == 0:
            self.update_targets()

        if self.log_due(t_env):
            self.logger.log_stats(
                {
                    "loss": loss.detach(),
                    "td_loss": td_loss.detach(),
                    "cql_loss": cql_loss.detach(),
                    "grad_norm": norm,
                    "td_error_abs": error.abs().mean().detach(),
                    "q_taken_mean": q_tot.mean().detach(),
                    "target_mean": targets.mean(),
                    "updates": self.updates,
                },
                t_env,
            )
