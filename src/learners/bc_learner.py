"""Behaviour cloning."""

from __future__ import annotations

from typing import Any

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.utils.rl_utils import cosine_rate, masked_log_softmax
from inspo.utils.settings import Settings


class BCLearner(Learner):
    r"""Behaviour cloning: the maximum-likelihood policy of the data.

    .. math:: L = -\operatorname{mean}_{m, i} \log \pi_i(a_i | \tau_i)

    over available actions, the mean over valid transitions and agents. The learning rate falls on a
    cosine over the run if `lr_decay` is cosine (PyMARL's forks keep it constant).
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.optimisers["policy"] = adam(mac.parameters(), args.lr)

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        data = Transitions(batch, self.mac)
        logits = self.mac.agent.unroll(data.inputs, data.packed)
        loss = -data.taken(masked_log_softmax(logits, data.avail)).mean()
        if self.args.lr_decay == "cosine":
            cosine_rate(self.optimisers["policy"], self.args.lr, t_env / self.args.t_max)
        norm = self.descend("policy", loss, self.args.grad_norm_clip)
        self.updates += 1
        if self.log_due(t_env):
            self.logger.log_stats({"loss": loss.detach(), "grad_norm": norm}, t_env)
