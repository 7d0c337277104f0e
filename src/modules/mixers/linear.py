"""The linear mixing network of OMIGA (Wang et al. 2023)."""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from torch import nn

from inspo.utils.settings import Settings


class LinearWeights(NamedTuple):
    """One mixing network per state. w `[..., n_agents]`, not negative; b `[...]`."""

    w: th.Tensor
    b: th.Tensor

    def mix(self, values: th.Tensor) -> th.Tensor:
        """values `[..., n_agents]` -> total `[...]`."""
        return (self.w * values).sum(-1) + self.b


class LinearMixer(nn.Module):
    """X_tot(s, x) = sum_i w_i(s) x_i + b(s), w = |W h(s)|, for Q and for V alike."""

    def __init__(self, args: Settings):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(args.state_shape, args.hypernet_embed), nn.ReLU())
        self.w = nn.Linear(args.hypernet_embed, args.n_agents)
        self.b = nn.Linear(args.hypernet_embed, 1)

    def weights(self, states: th.Tensor) -> LinearWeights:
        """The hypernetworks' outputs in states `[..., S]`."""
        hidden = self.hidden(states)
        return LinearWeights(self.w(hidden).abs(), self.b(hidden).squeeze(-1))

    def forward(self, values: th.Tensor, states: th.Tensor) -> th.Tensor:
        """values `[..., n_agents]` and states `[..., S]` -> total `[...]`."""
        return self.weights(states).mix(values)
