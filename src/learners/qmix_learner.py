"""QMIX, the learner that collects the medium data."""

from __future__ import annotations

import copy

import torch as th

from components.packed import PackedEpisodes
from learners.learner import Learner, optimise
from modules.mixers import REGISTRY as mixer_REGISTRY
from utils.rl_utils import UNAVAILABLE, gather_actions, packed_td_lambda


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
        packed = PackedEpisodes(batch["filled"])
        now, then = packed.transitions, packed.successors
        state, avail = packed.pack(batch["state"]), packed.pack(batch["avail_actions"])
        actions = packed.pack(batch["actions"]).squeeze(-1)[now]

        q = self.mac.unroll(batch, packed)  # [R, n, A]
        q_tot = self.mixer(gather_actions(q[now], actions), state[now])
        with th.no_grad():
            greedy = q[then].masked_fill(avail[then] == 0, UNAVAILABLE).argmax(-1)
            target_q = gather_actions(self.target_mac.unroll(batch, packed)[then], greedy)
            targets = packed_td_lambda(
                packed,
                packed.pack(batch["reward"]).squeeze(-1)[now],
                packed.pack(batch["terminated"]).squeeze(-1)[now].float(),
                self.target_mixer(target_q, state[then]),
                a.gamma,
                a.td_lambda,
            )
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
