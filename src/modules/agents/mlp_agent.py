"""A feed-forward agent, for the matrix games and Bridge."""

from __future__ import annotations

import torch as th

from inspo.components.packed import PackedEpisodes
from inspo.modules.agents.agent import Agent
from inspo.modules.agents.non_shared import NonSharedAgents
from inspo.modules.mlp import MLP
from inspo.utils.settings import Settings


class MLPAgent(Agent):
    """Three linear layers with ReLU between them (InSPO, Appendix C.4); no memory."""

    def __init__(self, input_shape: int, args: Settings):
        super().__init__(input_shape, args)
        self.net = MLP(input_shape, args.hidden_dim, args.n_actions)

    def init_hidden(self) -> th.Tensor:
        """A placeholder `[1, 1]`: there is nothing to remember."""
        return next(self.parameters()).new_zeros(1, 1)

    def forward(self, inputs: th.Tensor, hidden: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """inputs `[N, I]` -> outputs `[N, A]`; `hidden` passes through."""
        return self.net(inputs), hidden

    def unroll(self, inputs: th.Tensor, packed: PackedEpisodes) -> th.Tensor:
        return self.net.forward(inputs)


class MLPNSAgent(NonSharedAgents):
    """One `MLPAgent` per agent."""

    agent_class = MLPAgent
