"""QMIX, the learner that collects the medium data."""

from __future__ import annotations

import copy

import torch as th
from inspo.components.transitions import Transitions
from inspo.learners.learner import Learner, optimise
from inspo.modules.mixers import REGISTRY as mixer_REGISTRY
from inspo.utils.rl_utils import UNAVAILABLE, gather_actions


@th.no_grad()
def double_q_values(data: Transitions, q: th.Tensor, target_mac, target_mixer) -> th.Tensor:
    """V(s') = bar Q_tot(s', argmax_a' Q(s', a')): the online networks choose, the targets value.

    q `[R, n, A]`: the online agents' values of all filled steps. Returns `[M]`, without gradient.
    """
    then = data.then
    greedy = q[then].masked_fill(data.avail[then] == 0, UNAVAILABLE).argmax(-1)
    target_q = target_mac.agent.unroll(data.inputs, data.packed)[then]
    return target_mixer(gather_actions(target_q, greedy), data.state[then])


class QMIXLearner(Learner):
    r"""QMIX (Rashid et al. 2018), with double Q-learning and TD(lambda), as fine-tuned in pymarl2.

    .. math::
        L = \tfrac12 \operatorname{mean}_m (Q_{tot}(s, a) - G^\lambda)^2, \quad
        V(s') = \bar Q_{tot}(s', \arg\max_{a'} Q(s', a'))

    where :math:`G^\lambda` is the TD(lambda) return on V and the bar marks the target networks,
    copied every `target_update_interval` episodes. Both the maximum and the mixing are over
    available actions and valid transitions alone.
    """

    def __init__(self, mac, scheme, logger, args):
        super().__init__(mac, scheme, logger, args)
        self.mixer = mixer_REGISTRY[args.mixer](args)
        self.target_mac = copy.deepcopy(mac)
        self.target_mixer = copy.deepcopy(self.mixer)
        self.networks |= {
            "mixer": self.mixer,
            "target_agent": self.target_mac.agent,
            "target_mixer": self.target_mixer,
        }
        parameters = [*mac.parameters(), *self.mixer.parameters()]
        self.optimisers["all"] = th.optim.Adam(parameters, lr=args.lr)
        self.last_target_update = 0

    def train(self, batch, t_env: int, episode_num: int) -> None:
        a = self.args
        data = Transitions(batch, self.mac)
        q = self.mac.agent.unroll(data.inputs, data.packed)  # [R, n, A]
        q_tot = self.mixer(data.taken(q), data.state[data.now])
        next_values = double_q_values(data, q, self.target_mac, self.target_mixer)
        targets = data.td_lambda(next_values, a.gamma, a.td_lambda)
        error = q_tot - targets
        loss = 0.5 * error.square().mean()
        norm = optimise(loss, self.optimisers["all"], a.grad_norm_clip)
        self.updates += 1

        if episode_num - self.last_target_update >= a.target_update_interval:
            self.last_target_update = episode_num
            self.target_mac.load_state(self.mac)
            self.target_mixer.load_state_dict(self.mixer.state_dict())

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

    def state_dict(self):
        return super().state_dict() | {"last_target_update": self.last_target_update}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.last_target_update = state["last_target_update"]
