"""One network per agent behind the interface of a shared one."""

from __future__ import annotations

import torch as th
from inspo.components.packed import PackedEpisodes
from torch import nn


class NonSharedAgents(nn.Module):
    """`n_agents` networks of one class; agent i's rows go through network i alone."""

    agent_class: type[nn.Module]

    def __init__(self, input_shape: int, args):
        super().__init__()
        self.agents = nn.ModuleList(
            self.agent_class(input_shape, args) for _ in range(args.n_agents)
        )

    def init_hidden(self) -> th.Tensor:
        return self.agents[0].init_hidden()

    def forward(self, inputs: th.Tensor, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """inputs `[B * n, I]`, hidden `[B * n, H]` -> outputs `[B * n, A]`, hidden `[B * n, H]`."""
        n = len(self.agents)
        inputs, hidden = inputs.unflatten(0, (-1, n)), hidden.reshape(-1, n, hidden.shape[-1])
        steps = [agent(inputs[:, i], hidden[:, i]) for i, agent in enumerate(self.agents)]
        outputs, hiddens = (th.stack(part, dim=1).flatten(0, 1) for part in zip(*steps))
        return outputs, hiddens

    def unroll(self, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        """Rows `[R, n, I]` -> `[R, n, A]`."""
        outputs = [self.unroll_agent(i, inputs[:, i], packed) for i in range(len(self.agents))]
        return th.stack(outputs, dim=1)

    def unroll_agent(self, i: int, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        """Rows of agent i `[R, I]` -> `[R, A]`."""
        return self.agents[i].unroll(inputs.unsqueeze(1), packed).squeeze(1)
