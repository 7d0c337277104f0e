"""MACQL: conservative Q-learning on the joint action."""

from __future__ import annotations

from typing import Any

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import StatsLogger
from inspo.learners.mixing import MixingLearner
from inspo.utils.errors import ConfigError
from inspo.utils.rl_utils import masked_logsumexp
from inspo.utils.settings import Settings


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

    `mixer` vdn adds the agents' values; `independent` leaves each a learner of the team's return,
    and the means run over agents too. OG-MARL's two baselines are this learner: `qmix_cql` puts
    the data's joint action among those drawn (`cql_include_data`), `idqn_cql` is independent and
    sums over all available actions of an agent (`raw_sample_actions` 0).

    The batch carries EPyMARL's keys alone.

    Otherwise than in CFCQL's authors' code, where actions are drawn from all and the Q_tot of a
    joint action with an unavailable part is multiplied by 0: with SMAC's masks nearly every draw is
    of that kind and puts exp(0) into the sum, and the penalty loses most of its gradient. Here
    every joint action drawn can be played. The mixing network's weights are computed once per
    state. What is otherwise than in OG-MARL's code stands in docs/baselines.md.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        if args.mixer == "central":
            raise ConfigError(
                "mixer: expected qmix, vdn or independent, found central: it values joint actions, "
                "and from those no agent can tell which of its own actions is best. To learn "
                "policies from them, take --config=iql, awac or td3bc with decomposition=central"
            )
        if args.raw_sample_actions == 0 and args.mixer != "independent":
            raise ConfigError(
                f"raw_sample_actions: expected at least 1 with mixer={args.mixer}, found 0: all "
                "joint actions are too many to sum over. All of an agent's own are summed with "
                "mixer=independent"
            )
        super().__init__(mac, scheme, logger, args)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        q = self.mac.agent.unroll(data.inputs, data.packed)  # [R, n, A]
        mixing = self.mixer.weights(data.state[data.now])
        q_tot = mixing.mix(data.taken(q))  # [M], or [M, n] if independent
        next_values = self.double_q_values(data, q)
        # Agents first: transitions are the last axis of what TD(lambda) reads.
        targets = data.td_lambda(next_values.movedim(0, -1), a.gamma, a.td_lambda).movedim(-1, 0)
        error = q_tot - targets
        td_loss = 0.5 * error.square().mean()

        cql_loss = (self._soft_maximum(data, q, mixing, q_tot) - q_tot).mean()
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

    def _soft_maximum(
        self, data: Transitions, q: th.Tensor, mixing: Any, q_tot: th.Tensor
    ) -> th.Tensor:
        """The penalty's first term, shaped as q_tot. q `[R, n, A]`."""
        q, avail = q[data.now], data.avail[data.now]
        if self.args.raw_sample_actions == 0:
            return masked_logsumexp(q, avail)
        drawn = draw_available(avail, self.args.raw_sample_actions)  # [M, n, K]
        values = mixing.mix_many(q.gather(-1, drawn).transpose(1, 2))  # [M, K], or [M, K, n]
        if self.args.cql_include_data:
            values = th.cat([values, q_tot.unsqueeze(1)], dim=1)
        soft: th.Tensor = values.logsumexp(1)
        return soft
