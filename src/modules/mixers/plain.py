"""Mixers without weights of their own: the sum of VDN, and none for independent learners."""

from __future__ import annotations

import torch as th
from torch import nn

from inspo.utils.settings import Settings


class SumMixer(nn.Module):
    """Q_tot(q) = sum_i q_i in every state (VDN, Sunehag et al. 2018)."""

    def __init__(self, args: Settings):
        super().__init__()

    def weights(self, states: th.Tensor) -> SumMixer:
        """The same in all states."""
        return self

    def mix(self, qs: th.Tensor) -> th.Tensor:
        """qs `[..., n_agents]` -> Q_tot `[...]`."""
        return qs.sum(-1)

    def mix_many(self, qs: th.Tensor) -> th.Tensor:
        """K joint actions in every state: qs `[M, K, n_agents]` -> Q_tot `[M, K]`."""
        return self.mix(qs)

    def forward(self, qs: th.Tensor, states: th.Tensor) -> th.Tensor:
        return self.mix(qs)


class SeparateMixer(SumMixer):
    """Independent learners: every agent's value is a total of its own, `[..., n]` -> `[..., n]`."""

    def mix(self, qs: th.Tensor) -> th.Tensor:
        return qs
