"""The convex mixing network of ICQ (Yang et al. 2021)."""

from __future__ import annotations

import torch as th
from torch import nn


class ConvexMixer(nn.Module):
    """Q_tot(s, q) = sum_i k_i(s) q_i with k(s) = |W(s)| |v(s)| / sum, not negative, of sum 1.

    k_i is how much agent i's value counts, the same for every q.
    """

    def __init__(self, state_dim: int, n_agents: int, embed_dim: int):
        super().__init__()
        self.n_agents, self.embed_dim = n_agents, embed_dim
        self.hyper_w = nn.Linear(state_dim, n_agents * embed_dim)
        self.hyper_v = nn.Linear(state_dim, embed_dim)

    def weights(self, states: th.Tensor) -> th.Tensor:
        """k in states `[..., S]`, `[..., n]`."""
        w = th.unflatten(self.hyper_w(states).abs(), -1, (self.n_agents, self.embed_dim))
        k: th.Tensor = (w @ self.hyper_v(states).abs().unsqueeze(-1)).squeeze(-1)
        return k / k.sum(-1, keepdim=True)

    def forward(self, qs: th.Tensor, states: th.Tensor) -> th.Tensor:
        """qs `[..., n]` and states `[..., S]` -> Q_tot `[...]`."""
        return (self.weights(states) * qs).sum(-1)
