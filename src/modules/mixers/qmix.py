"""The monotonic mixing network of QMIX (Rashid et al. 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.utils.settings import Settings


class MixingWeights(NamedTuple):
    """One mixing network per state, to be used as often as needed.

    w1 `[..., n_agents, E]` and w2 `[..., E]`, not negative; b1 `[..., E]`, b2 `[...]`.
    """

    w1: th.Tensor
    b1: th.Tensor
    w2: th.Tensor
    b2: th.Tensor

    def mix(self, qs: th.Tensor) -> th.Tensor:
        """qs `[..., n_agents]` -> Q_tot `[...]`."""
        return self.out((qs.unsqueeze(-1) * self.w1).sum(-2) + self.b1)

    def mix_many(self, qs: th.Tensor) -> th.Tensor:
        """K joint actions in every state: qs `[M, K, n_agents]` -> Q_tot `[M, K]`.

        No tensor is larger than `[M, K, E]`, and of those one is kept for the way back.
        """
        x = F.elu(th.baddbmm(self.b1.unsqueeze(1), qs, self.w1), inplace=True)
        return (x @ self.w2.unsqueeze(-1)).squeeze(-1) + self.b2.unsqueeze(1)

    def out(self, x: th.Tensor) -> th.Tensor:
        """From the inputs of the hidden layer, `[..., E]`, to Q_tot `[...]`."""
        return (F.elu(x) * self.w2).sum(-1) + self.b2


class QMixer(nn.Module):
    """Q_tot(s, q) = |W2(s)| ELU(|W1(s)| q + b1(s)) + b2(s), monotonic in every q_i."""

    def __init__(self, args: Settings):
        super().__init__()
        self.n_agents, self.embed_dim = args.n_agents, args.mixing_embed_dim
        state_dim, hyper = args.state_shape, args.hypernet_embed
        self.hyper_w1 = nn.Sequential(
            nn.Linear(state_dim, hyper), nn.ReLU(), nn.Linear(hyper, self.n_agents * self.embed_dim)
        )
        self.hyper_w2 = nn.Sequential(
            nn.Linear(state_dim, hyper), nn.ReLU(), nn.Linear(hyper, self.embed_dim)
        )
        self.hyper_b1 = nn.Linear(state_dim, self.embed_dim)
        self.hyper_b2 = nn.Sequential(
            nn.Linear(state_dim, self.embed_dim), nn.ReLU(), nn.Linear(self.embed_dim, 1)
        )

    def weights(self, states: th.Tensor) -> MixingWeights:
        """The hypernetworks' outputs in states `[..., S]`: all that does not depend on the q."""
        return MixingWeights(
            self.hyper_w1(states).abs().unflatten(-1, (self.n_agents, self.embed_dim)),
            self.hyper_b1(states),
            self.hyper_w2(states).abs(),
            self.hyper_b2(states).squeeze(-1),
        )

    def shares(self, states: th.Tensor) -> th.Tensor:
        """How much each agent's value counts where the ELU is the identity: the derivatives of
        Q_tot in states `[..., S]`, `[..., n_agents]`, over their sum."""
        weights = self.weights(states)
        k = (weights.w1 @ weights.w2.unsqueeze(-1)).squeeze(-1)
        return k / k.sum(-1, keepdim=True)

    def forward(self, qs: th.Tensor, states: th.Tensor) -> th.Tensor:
        """qs `[..., n_agents]` and states `[..., S]` -> Q_tot `[...]`."""
        return self.weights(states).mix(qs)
