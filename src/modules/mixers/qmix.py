"""The monotonic mixing network of QMIX (Rashid et al. 2018)."""

from __future__ import annotations

import torch as th
import torch.nn.functional as F
from torch import nn


class QMixer(nn.Module):
    """Q_tot(s, q) = |W2(s)| ELU(|W1(s)| q + b1(s)) + b2(s), monotonic in every q_i."""

    def __init__(self, args):
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

    def forward(self, qs: th.Tensor, states: th.Tensor) -> th.Tensor:
        """qs `[..., n_agents]` and states `[..., S]` -> Q_tot `[...]`."""
        w1 = self.hyper_w1(states).abs().unflatten(-1, (self.n_agents, self.embed_dim))
        hidden = F.elu((qs.unsqueeze(-1) * w1).sum(-2) + self.hyper_b1(states))
        return (hidden * self.hyper_w2(states).abs()).sum(-1) + self.hyper_b2(states).squeeze(-1)
