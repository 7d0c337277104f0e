"""Autoregressive behaviour policies of the other agents: InSPO's Eq. 22, and AlberDICE's."""

from __future__ import annotations

import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.modules.mlp import feed_forward
from inspo.utils.rl_utils import draw, gather_actions, kl_divergence, masked_log_softmax

LOG_FLOOR = -23.0  # log 1e-10: no log-probability counts for less


class AutoregressivePolicy(nn.Module):
    """mu(a_j | s, a_i, a_<j) for every pair of agents i != j, in one network.

        logits_ij = log mu_j(. | tau_j) + MLP(s, i, j, a_i, a_k for k < j, k != i)

    The product of the individual behaviour policies is the point of departure and the MLP, zero at
    first, adds what the others' actions tell. So numerator and denominator of the ratio (Eq. 23)
    know the same histories, and rho is 1 at pi = mu wherever the agents act independently; a model
    of the state alone would make it differ from 1 without cause. The first layer, a linear map of
    one-hot inputs, is written as the sum of its embeddings.
    """

    def __init__(self, state_dim: int, n_agents: int, n_actions: int, hidden_dim: int):
        super().__init__()
        self.n_agents, self.n_actions = n_agents, n_actions
        self.state = nn.Linear(state_dim, hidden_dim)
        self.of_i = nn.Embedding(n_agents, hidden_dim)
        self.of_j = nn.Embedding(n_agents, hidden_dim)
        self.action_i = nn.Embedding(n_actions, hidden_dim)
        self.predecessors = nn.Embedding(n_agents * n_actions, hidden_dim)
        for embedding in (self.of_i, self.of_j, self.action_i, self.predecessors):
            nn.init.normal_(embedding.weight, std=0.1)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, n_actions)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def log_policies(
        self, i: int, state: th.Tensor, log_mu: th.Tensor, avail: th.Tensor, actions: th.Tensor
    ) -> th.Tensor:
        """log mu(. | s, a_i, a_<j) of every agent j given agent i's action.

        state `[M, S]`, log_mu and avail `[M, n, A]`, actions `[M, n]` -> `[M, n, A]`; the entry of
        j = i means nothing.
        """
        agents = th.arange(self.n_agents, device=actions.device)
        played = self.predecessors(actions + agents * self.n_actions)  # [M, n, H]
        played = played * (agents != i)[:, None]
        before = played.cumsum(1) - played  # the sum over k < j, k != i
        common = self.state(state) + self.of_i.weight[i] + self.action_i(actions[:, i])
        x = (common[:, None] + self.of_j.weight + before).relu()
        return masked_log_softmax(log_mu + feed_forward(x, self.hidden, self.out), avail)

    def forward(
        self, i: int, state: th.Tensor, log_mu: th.Tensor, avail: th.Tensor, actions: th.Tensor
    ) -> th.Tensor:
        """log mu^{-i}(a^{-i} | s, a^i) = sum over j != i of log mu(a_j | s, a_i, a_<j). `[M]`."""
        log_prob = gather_actions(self.log_policies(i, state, log_mu, avail, actions), actions)
        return log_prob.sum(-1) - log_prob[:, i]

    @th.no_grad()
    def others_kl(
        self,
        i: int,
        state: th.Tensor,
        log_mu: th.Tensor,
        avail: th.Tensor,
        actions: th.Tensor,
        log_pi: th.Tensor,
    ) -> th.Tensor:
        """K_i(s, a_i) = E_{pi^-i} log pi^{-i}(a^{-i}) / mu^{-i}(a^{-i} | s, a_i), `[M]`.

        One draw of the others' actions gives each agent's predecessors; over its own action the
        expectation is exact, so for two agents all of it is.

        state `[M, S]`, log_mu, avail and log_pi `[M, n, A]`; actions `[M, n]`, of which agent i's
        are read.
        """
        drawn = draw(log_pi.exp())
        drawn[:, i] = actions[:, i]
        conditional = self.log_policies(i, state, log_mu, avail, drawn)
        kl = kl_divergence(log_pi, conditional.clamp(min=LOG_FLOOR))
        return kl.sum(-1) - kl[:, i]


class ConditionalPolicy(nn.Module):
    """mu(a_j | s, a_i, a_<j) of one agent i for all others j, AlberDICE's data policy.

    Three linear layers on the state and, one-hot, on which agent j is, on a_i and on the actions
    of the others before j; the first layer is written as the sum of its parts. Of the state alone,
    not of histories.
    """

    def __init__(self, i: int, state_dim: int, n_agents: int, n_actions: int, hidden_dim: int):
        super().__init__()
        self.i, self.n_actions = i, n_actions
        self.others = [j for j in range(n_agents) if j != i]
        n_others = len(self.others)
        self.first = nn.Linear(state_dim + n_others + (1 + n_others) * n_actions, hidden_dim)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, n_actions)

    def forward(self, state: th.Tensor, avail: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """log mu(. | s, a_i, a_<j) of the other agents in their order.

        state `[M, S]`, avail `[M, n, A]`, actions `[M, n]` -> `[M, n - 1, A]`.
        """
        n_others, a = len(self.others), self.n_actions
        sizes = [state.shape[1], n_others, a, n_others * a]
        of_state, of_j, of_i, of_before = th.split(self.first.weight, sizes, dim=1)
        places = actions[:, self.others] + a * th.arange(n_others, device=actions.device)
        played = of_before.T[places]  # [M, n - 1, H]
        common = F.linear(state, of_state, self.first.bias) + of_i.T[actions[:, self.i]]
        x = common.unsqueeze(1) + of_j.T + (played.cumsum(1) - played)
        logits = feed_forward(x.relu_(), self.hidden, self.out)
        return masked_log_softmax(logits, avail[:, self.others])
