"""The convex mixing network of ICQ (Yang et al. 2021)."""

from __future__ import annotations

import torch as th
from torch import nn

from inspo.utils.settings import Settings


class ConvexMixer(nn.Module):
    """Q_tot(s, q) = sum_i k_i(s) q_i with k(s) = |W(s)| |v(s)| / sum, not negative, of sum 1.

    k_i is how much agent i's value counts, the same for every q.
    """

    def __init__(self, args: Settings):
        super().__init__()
        self.n_agents, self.embed_dim = args.n_agents, args.mixing_embed_dim
        self.hyper_w = nn.Linear(args.state_shape, self.n_agents * self.embed_dim)
        self.hyper_v = nn.Linear(args.state_shape, self.embed_dim)

    def shares(self, states: th.Tensor) -> th.Tensor:
        """k in states `[..., S]`, `[..., n]`."""
        w = th.unflatten(self.hyper_w(states).abs(), -1, (self.n_agents, self.embed_dim))
        k: th.Tensor = (w @ self.hyper_v(states).abs().unsqueeze(-1)).squeeze(-1)
        return k / k.sum(-1, keepdim=True)

    def forward(self, qs: th.Tensor, states: th.Tensor) -> th.Tensor:
        """qs `[..., n]` and states `[..., S]` -> Q_tot `[...]`."""
        return (self.shares(states) * qs).sum(-1)
