"""Features of states and actions in which values are linear, learnt once from the data's returns.

The members of an ensemble are one set of batched products: parameters `[K, ...]`, features
`[K, N, P]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch as th
import torch.nn.functional as F
from torch import nn

from inspo.estimation.logged import Logged
from inspo.utils.phases import Phase
from inspo.utils.rl_utils import cosine_rate

MEMBERS = 3
DISCOUNTS = (0.0, 0.7, 0.9, 0.97, 1.0)  # of the returns that the features learn to predict
ENUMERATED = 64  # joint actions up to which an expectation over them is a sum over all
DRAWS = 4  # joint actions that are drawn in place of that
BLOCK = 4096  # rows at once


class Batched(nn.Module):
    """K linear layers side by side: `[N, I]` or `[K, N, ..., I]` -> `[K, N, ..., O]`."""

    def __init__(self, members: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(th.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: th.Tensor) -> th.Tensor:
        if x.dim() == 4:
            return th.unflatten(self.forward(x.flatten(1, 2)), 1, x.shape[1:3])
        product: th.Tensor = th.matmul(x, self.weight) + self.bias
        return product


class Scale:
    """Shifts and divides by the mean and deviation of each column of the data, `[N, I]`."""

    def __init__(self, x: th.Tensor):
        std, self.mean = th.std_mean(x, dim=0, correction=0)
        self.std = th.where(std > 1e-3, std, 1.0)  # 1 for columns that do not vary

    def __call__(self, x: th.Tensor) -> th.Tensor:
        return (x - self.mean) / self.std


class Features(nn.Module):
    """phi(s, a) `[K, N, P]` of the logged rows, linear in which values are sought.

    The first `n_shared` features do not depend on the actions.
    """

    n_shared: int

    def taken(self, which: th.Tensor) -> th.Tensor:
        """phi(s, a) of the transitions `which` `[N]`, with the actions in the data."""
        raise NotImplementedError

    def expected(self, rows: th.Tensor, probs: th.Tensor) -> th.Tensor:
        """E_{a ~ pi} phi(s, a) in the given rows `[N]`; probs `[N, n, A]`."""
        raise NotImplementedError


class LearntFeatures(Features):
    """Features of networks. `freeze` computes once and for all what depends on the state alone."""

    def __init__(self, data: Logged):
        super().__init__()
        self.data = data
        self.n_agents, self.n_actions = data.avail.shape[1:]
        self.scale = Scale(data.state)
        self.kept: tuple[th.Tensor, th.Tensor] | None = None

    def of_states(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """What features of any action are made of, each `[K, N, ...]`, of the rows `[N]`."""
        raise NotImplementedError

    def parts(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """`of_states`, from what `freeze` has kept if it was called."""
        if self.kept is None:
            return self.of_states(rows)
        return self.kept[0][:, rows], self.kept[1][:, rows]

    @th.no_grad()
    def freeze(self) -> None:
        rows = th.arange(len(self.data.state))
        first, second = zip(*(self.of_states(block) for block in rows.split(BLOCK)))
        self.kept = th.cat(first, dim=1), th.cat(second, dim=1)

    def state_input(self, rows: th.Tensor) -> th.Tensor:
        """State and time, `[N, S + 1]`."""
        return th.cat([self.scale(self.data.state[rows]), self.data.time[rows, None]], dim=-1)


class AdditiveFeatures(LearntFeatures):
    """For Q(s, a) = b(s) + sum_i Q_i(s, o_i, a_i).

    phi = (f(s), sum_i g_i, sum_i g_i x onehot(a_i)) with g_i = g(s, o_i, i). It is linear in the
    actions' one-hots, so its expectation over independent agents is phi at their probabilities:
    exact, without sampling.
    """

    def __init__(self, data: Logged, width: int = 96, base: int = 32, own: int = 24):
        super().__init__(data)
        k, state, obs = MEMBERS, data.state.shape[1] + 1, data.obs.shape[2]
        self.obs_scale = Scale(data.obs.flatten(0, 1))
        self.base1, self.base2 = Batched(k, state, width), Batched(k, width, base)
        self.of_state = Batched(k, state, width)
        self.of_obs = Batched(k, obs + self.n_agents, width)
        self.own = Batched(k, width, own)
        self.n_shared = base + own + 1

    def of_states(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """f `[K, N, F]`, and each agent's g with a constant `[K, N, n, G + 1]`."""
        state, obs = self.state_input(rows), self.obs_scale(self.data.obs[rows])
        identity = th.eye(self.n_agents).expand(len(rows), -1, -1)
        x = self.of_obs(th.cat([obs, identity], dim=-1).expand(MEMBERS, -1, -1, -1))
        own = self.own((x + self.of_state(state).unsqueeze(2)).relu()).relu()
        return self.base2(self.base1(state).relu()).relu(), F.pad(own, (0, 1), value=1.0)

    def expected(self, rows: th.Tensor, probs: th.Tensor) -> th.Tensor:
        base, own = self.parts(rows)
        by_action = (own.transpose(2, 3) @ probs).flatten(2)  # [K, N, (G + 1) A]
        return th.cat([base, own.sum(2), by_action], dim=-1)

    def taken(self, which: th.Tensor) -> th.Tensor:
        onehot = F.one_hot(self.data.actions[which], self.n_actions).float()
        return self.expected(self.data.now[which], onehot)


class AgentFeatures(Features):
    """For each agent's own Q_i(s, o_i, a_i), the others acting as in the data: agents in place of
    members, `[n, N, P]`. Made of the first member of frozen additive features."""

    def __init__(self, of: AdditiveFeatures):
        super().__init__()
        self.data, self.n_actions = of.data, of.n_actions
        assert of.kept is not None
        self.own = of.kept[1][0]  # [R, n, G + 1]
        self.n_shared = self.own.shape[-1]

    def expected(self, rows: th.Tensor, probs: th.Tensor) -> th.Tensor:
        own = self.own[rows]
        by_action = (own.unsqueeze(3) * probs.unsqueeze(2)).flatten(2)  # [N, n, (G + 1) A]
        return th.cat([own, by_action], dim=-1).transpose(0, 1)

    def taken(self, which: th.Tensor) -> th.Tensor:
        onehot = F.one_hot(self.data.actions[which], self.n_actions).float()
        return self.expected(self.data.now[which], onehot)


class JointFeatures(LearntFeatures):
    """For Q(s, a_1, ..., a_n): what a network on the state and all one-hot actions computes last.

    phi = (f(s), h(s, a)). An expectation over the policy is a sum over all joint actions if there
    are at most ENUMERATED, else a mean over DRAWS draws.
    """

    def __init__(self, data: Logged, width: int = 128, base: int = 32, last: int = 128):
        super().__init__(data)
        k, state = MEMBERS, data.state.shape[1] + 1
        self.base1, self.base2 = Batched(k, state, width), Batched(k, width, base)
        self.of_state = Batched(k, state, width)
        self.of_actions = Batched(k, self.n_agents * self.n_actions, width)
        self.last = Batched(k, width, last)
        self.n_shared = base + 1
        sizes = (self.n_actions,) * self.n_agents
        self.all: th.Tensor | None = None
        if math.prod(sizes) <= ENUMERATED:
            index = np.unravel_index(np.arange(math.prod(sizes)), sizes)
            self.all = th.from_numpy(np.stack(index, axis=1))

    def of_states(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """f with a constant `[K, N, F + 1]`, and the state's share of h's first layer."""
        state = self.state_input(rows)
        base = self.base2(self.base1(state).relu()).relu()
        return F.pad(base, (0, 1), value=1.0), self.of_state(state)

    def at(self, rows: th.Tensor, actions: th.Tensor, weights: th.Tensor) -> th.Tensor:
        """sum_j weights_j phi(s, a_j): actions `[N, J, n]`, weights `[N, J]` that sum to one."""
        base, state = self.parts(rows)
        onehot = F.one_hot(actions, self.n_actions).flatten(2).float()  # [N, J, n A]
        x = self.of_actions(onehot.expand(MEMBERS, -1, -1, -1))
        x = self.last((x + state.unsqueeze(2)).relu()).relu()
        return th.cat([base, (x * weights[..., None]).sum(2)], dim=-1)

    def expected(self, rows: th.Tensor, probs: th.Tensor) -> th.Tensor:
        if self.all is not None:
            agents = th.arange(self.n_agents)
            weights = probs[:, agents, self.all].prod(-1)  # [N, J]
            return self.at(rows, self.all.expand(len(rows), -1, -1), weights)
        drawn = th.multinomial(probs.flatten(0, 1), DRAWS, replacement=True)
        actions = drawn.unflatten(0, (-1, self.n_agents)).transpose(1, 2)  # [N, J, n]
        return self.at(rows, actions, th.full(actions.shape[:2], 1 / DRAWS))

    def taken(self, which: th.Tensor) -> th.Tensor:
        actions = self.data.actions[which].unsqueeze(1)
        return self.at(self.data.now[which], actions, th.ones(len(which), 1))


def learn(
    features: LearntFeatures,
    updates: int,
    batch_size: int = 512,
    rate: float = 1e-3,
    phase: Callable[..., Phase] = Phase,
) -> float:
    """Fit the features, under a linear head, to the logged returns at several discounts.

    Adam on the squared error; leaves them frozen. Members differ in where they start. Returns the
    share of the undiscounted returns' variance that was left over the last tenth of the updates.
    """
    targets = features.data.returns_to_go(DISCOUNTS)
    std, mean = th.std_mean(targets, dim=0, correction=0)
    targets = (targets - mean) / std.clamp(min=1e-6)
    with th.no_grad():
        width = features.taken(th.zeros(1, dtype=th.long)).shape[-1]
    head = Batched(MEMBERS, width, len(DISCOUNTS))
    optimiser = th.optim.Adam([*features.parameters(), *head.parameters()], lr=rate)
    size, late = (min(batch_size, len(targets)),), []
    with phase("learning features", updates, unit="update") as bar:
        for update in range(updates):
            cosine_rate(optimiser, rate, update / updates)
            which = th.randint(len(targets), size)
            error = head(features.taken(which)) - targets[which]
            optimiser.zero_grad(set_to_none=True)
            error.square().mean((1, 2)).sum().backward()
            optimiser.step()
            if update >= 0.9 * updates:
                late.append(float(error.detach()[..., -1].square().mean()))
            bar.update(1)
    features.freeze()
    return float(np.mean(late))
