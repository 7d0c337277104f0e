"""Critics with the action as output (DuelingCritic, for all agents) or as input (the others)."""

from __future__ import annotations

import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.modules.mlp import feed_forward

BLOCK = 256  # transitions


class DuelingCritic(nn.Module):
    """Q_i(s, o_i, a) = A(s, o_i, i)(a) + V(s, o_i, i) for all agents and actions, one network.

    The critic of OMAR and of ICQ as CFCQL's repository has it: two hidden layers with ReLU on
    state, observation and one-hot identity, then two linear heads, added.
    """

    def __init__(self, state_dim: int, obs_dim: int, n_agents: int, n_actions: int, hidden: int):
        super().__init__()
        self.n_agents = n_agents
        self.state = nn.Linear(state_dim, hidden)
        self.own = nn.Linear(obs_dim + n_agents, hidden, bias=False)
        self.hidden = nn.Linear(hidden, hidden)
        self.advantage = nn.Linear(hidden, n_actions)
        self.value = nn.Linear(hidden, 1)

    def forward(self, state: th.Tensor, obs: th.Tensor) -> th.Tensor:
        """state `[M, S]`, obs `[M, n, O]` -> `[M, n, A]`."""
        identity = th.eye(self.n_agents, dtype=obs.dtype, device=obs.device)
        own = self.own(th.cat([obs, identity.expand(len(obs), -1, -1)], dim=-1))
        # The first layer's share of the state is the same for all agents: computed once.
        x = own.add_(self.state(state).unsqueeze(1)).relu_()
        # A + V is linear in its input: the sum of the heads' weights gives it in one product.
        weight, bias = self.advantage.weight + self.value.weight, self.advantage.bias
        return feed_forward(x, self.hidden, (weight, bias + self.value.bias))

    @th.no_grad()
    def evaluate(self, state: th.Tensor, obs: th.Tensor) -> th.Tensor:
        """`forward` without a way back; on a CPU block by block, so that the hidden layers of one
        stay in the cache."""
        if state.device.type != "cpu":
            return self.forward(state, obs)
        blocks = zip(th.split(state, BLOCK), th.split(obs, BLOCK))
        return th.cat([self.forward(*block) for block in blocks])


class StateActionCritic(nn.Module):
    """Q(s, a) of one agent: three linear layers on the state and the one-hot action, one output.

    The action is an input, not one of A outputs; all actions of a state are valued together, and
    the first layer's share of the state is computed once for them.
    """

    def __init__(self, state_dim: int, n_actions: int, hidden: int):
        super().__init__()
        self.n_actions = n_actions
        self.first = nn.Linear(state_dim + n_actions, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, state: th.Tensor) -> th.Tensor:
        """state `[M, S]` -> `[M, A]`."""
        sizes = [self.first.in_features - self.n_actions, self.n_actions]
        of_state, of_action = th.split(self.first.weight, sizes, dim=1)
        x = F.linear(state, of_state, self.first.bias).unsqueeze(1) + of_action.T  # [M, A, H]
        return feed_forward(x.relu_(), self.hidden, self.out).squeeze(-1)


class JointCritic(nn.Module):
    """Q(s, a_1, ..., a_n) of a joint action: three linear layers on the state and all agents'
    one-hot actions, one output. The first layer is written as the sum of its parts."""

    def __init__(self, state_dim: int, n_agents: int, n_actions: int, hidden: int):
        super().__init__()
        self.n_actions = n_actions
        self.state = nn.Linear(state_dim, hidden)
        self.actions = nn.Embedding(n_agents * n_actions, hidden)
        nn.init.uniform_(self.actions.weight, -(state_dim**-0.5), state_dim**-0.5)
        self.hidden = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)

    def _parts(self, state: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The first layer's shares of the state `[M, H]` and of each action `[M, n, H]`."""
        agents = th.arange(actions.shape[1], device=actions.device)
        return self.state(state), self.actions(actions + agents * self.n_actions)

    def forward(self, state: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """state `[M, S]`, actions `[M, n]` -> `[M]`."""
        of_state, of_actions = self._parts(state, actions)
        x = of_state + of_actions.sum(1)
        return feed_forward(x.relu(), self.hidden, self.out).squeeze(-1)

    @th.no_grad()
    def own_values(self, state: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q(s, b, a_{-i}) for every agent i and action b of it, the others doing what they did.

        state `[M, S]`, actions `[M, n]` -> `[M, n, A]`, without a way back.
        """
        each = self.actions.weight.unflatten(0, (-1, self.n_actions))  # [n, A, H]
        size = BLOCK if state.device.type == "cpu" else len(state)
        values = []
        for s, a in zip(state.split(size), actions.split(size)):
            of_state, of_actions = self._parts(s, a)
            others = (of_state + of_actions.sum(1)).unsqueeze(1) - of_actions
            x = (others.unsqueeze(2) + each).relu_()
            values.append(feed_forward(x, self.hidden, self.out).squeeze(-1))
        return th.cat(values)
