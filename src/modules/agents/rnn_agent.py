"""The recurrent agent of PyMARL: linear, ReLU, GRU, linear."""

from __future__ import annotations

import torch as th
from torch import nn

from inspo.components.packed import PackedEpisodes
from inspo.modules.agents.agent import Agent
from inspo.modules.agents.non_shared import NonSharedAgents
from inspo.modules.gru import unroll_gru
from inspo.utils.settings import Settings


class RNNAgent(Agent):
    """Linear(I, H), ReLU, GRU(H), Linear(H, A); one set of weights for all the rows it is given."""

    def __init__(self, input_shape: int, args: Settings):
        super().__init__(input_shape, args)
        self.hidden_dim = args.hidden_dim
        self.fc1 = nn.Linear(input_shape, args.hidden_dim)
        self.rnn = nn.GRU(args.hidden_dim, args.hidden_dim)
        self.fc2 = nn.Linear(args.hidden_dim, args.n_actions)

    def init_hidden(self) -> th.Tensor:
        return self.fc1.weight.new_zeros(1, self.hidden_dim)

    def forward(self, inputs: th.Tensor, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        x = self.fc1(inputs).relu()
        hidden = hidden.reshape(1, -1, self.hidden_dim).contiguous()
        _, hidden = self.rnn(x.unsqueeze(0), hidden)
        return self.fc2(hidden[0]), hidden[0]

    def unroll(self, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        x = self.fc1(inputs).relu()  # [R, n, H]
        features = unroll_gru(self.rnn, x.flatten(0, 1), [k * x.shape[1] for k in packed.sizes])
        return self.fc2.forward(features.view_as(x))


class RNNNSAgent(NonSharedAgents):
    """One `RNNAgent` per agent."""

    agent_class = RNNAgent
