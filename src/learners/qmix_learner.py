"""QMIX, the learner that collects the medium data."""

from __future__ import annotations

from typing import Any

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import StatsLogger
from inspo.learners.mixing import MixingLearner
from inspo.utils.settings import Settings


class QMIXLearner(MixingLearner):
    r"""QMIX (Rashid et al. 2018), with double Q-learning and TD(lambda), as fine-tuned in pymarl2.

    .. math::
        L = \tfrac12 \operatorname{mean}_m (Q_{tot}(s, a) - G^\lambda)^2, \quad
        V(s') = \bar Q_{tot}(s', \arg\max_{a'} Q(s', a'))

    where :math:`G^\lambda` is the TD(lambda) return on V and the bar marks the target networks,
    copied every `target_update_interval` episodes. Both the maximum and the mixing are over
    available actions and valid transitions alone.
    """

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.last_target_update = 0

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        q = self.mac.agent.unroll(data.inputs, data.packed)  # [R, n, A]
        q_tot = self.mixer(data.taken(q), data.state[data.now])
        next_values = self.double_q_values(data, q)
        targets = data.td_lambda(next_values, a.gamma, a.td_lambda)
        error = q_tot - targets
        loss = 0.5 * error.square().mean()
        norm = self.descend("all", loss, a.grad_norm_clip)
        self.updates += 1

        if episode_num - self.last_target_update >= a.target_update_interval:
            self.last_target_update = episode_num
            self.update_targets()

        if self.log_due(t_env):
            self.logger.log_stats(
                {
                    "loss": loss.detach(),
                    "grad_norm": norm,
                    "td_error_abs": error.abs().mean().detach(),
                    "q_taken_mean": q_tot.mean().detach(),
                    "target_mean": targets.mean(),
                },
                t_env,
            )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"last_target_update": self.last_target_update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.last_target_update = state["last_target_update"]
