"""One network per agent behind the interface of a shared one."""

from __future__ import annotations

from typing import cast

import torch as th
from torch import nn

from inspo.components.packed import PackedEpisodes
from inspo.modules.agents.agent import Agent
from inspo.utils.settings import Settings


class NonSharedAgents(Agent):
    """`n_agents` networks of one class; agent i's rows go through network i alone."""

    agent_class: type[Agent]

    def __init__(self, input_shape: int, args: Settings):
        super().__init__(input_shape, args)
        self.agents = nn.ModuleList(
            self.agent_class(input_shape, args) for _ in range(args.n_agents)
        )

    def agent(self, i: int) -> Agent:
        """The network of agent i."""
        return cast(Agent, self.agents[i])

    def init_hidden(self) -> th.Tensor:
        return self.agent(0).init_hidden()

    def forward(self, inputs: th.Tensor, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        n = len(self.agents)
        inputs, hidden = (
            inputs.reshape(-1, n, inputs.shape[-1]),
            hidden.reshape(-1, n, hidden.shape[-1]),
        )
        steps = [agent(inputs[:, i], hidden[:, i]) for i, agent in enumerate(self.agents)]
        outputs, hiddens = (th.stack(part, dim=1).flatten(0, 1) for part in zip(*steps))
        return outputs, hiddens

    def unroll(self, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        outputs = [self.unroll_agent(i, inputs[:, i], packed) for i in range(len(self.agents))]
        return th.stack(outputs, dim=1)

    def unroll_agent(self, i: int, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        """Rows of agent i `[R, I]` -> `[R, A]`."""
        return self.agent(i).unroll(inputs.unsqueeze(1), packed).squeeze(1)
