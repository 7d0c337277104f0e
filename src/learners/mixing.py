"""What the learners on QMIX's mixed values share: networks, targets, double Q-learning."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch as th

from inspo.components.transitions import Transitions
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.learner import Learner, StatsLogger, adam
from inspo.learners.targets import TargetSchedule
from inspo.modules.mixers import REGISTRY as mixer_REGISTRY
from inspo.modules.mixers.qmix import QMixer
from inspo.utils.errors import named
from inspo.utils.rl_utils import UNAVAILABLE, gather_actions
from inspo.utils.settings import Settings


class MixingLearner(Learner):
    """Agents' values mixed into Q_tot, target networks of both, and one Adam for all weights."""

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.mixer: QMixer = named(mixer_REGISTRY, args.mixer, "mixer")(args)
        self.target_mac = copy.deepcopy(mac)
        self.target_mixer = copy.deepcopy(self.mixer)
        self.networks |= {
            "mixer": self.mixer,
            "target_agent": self.target_mac.agent,
            "target_mixer": self.target_mixer,
        }
        parameters = [*mac.parameters(), *self.mixer.parameters()]
        self.optimisers["all"] = adam(parameters, args.lr)

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule:
        a = self.args
        return TargetSchedule(updates // a.target_update_interval, 1.0, a.td_lambda)

    @th.no_grad()
    def double_q_values(self, data: Transitions, q: th.Tensor) -> th.Tensor:
        """V(s') = bar Q_tot(s', argmax_a' Q(s', a')): the online networks choose the actions.

        q `[R, n, A]`: the online agents' values of all filled steps. Returns `[M]`.
        """
        then = data.then
        greedy = q[then].masked_fill(data.avail[then] == 0, UNAVAILABLE).argmax(-1)
        target_q = self.target_mac.agent.unroll(data.inputs, data.packed)[then]
        values: th.Tensor = self.target_mixer(gather_actions(target_q, greedy), data.state[then])
        return values

    def take_over(self, networks: Mapping[str, Any]) -> list[str]:
        """The mixing network, where it is built alike and for states as they are."""
        own, found = self.mixer.state_dict(), networks.get("mixer") or {}
        same = own.keys() == found.keys() and all(own[k].shape == found[k].shape for k in own)
        same = same and not self.args.standardise  # offline, states are standardised as well
        if same:
            self.mixer.load_state_dict(found)
        self.update_targets()
        return ["mixer"] if same else []

    def update_targets(self) -> None:
        """Copy the online networks into the targets."""
        self.target_mac.load_state(self.mac)
        self.target_mixer.load_state_dict(self.mixer.state_dict())
