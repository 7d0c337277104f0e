"""How outputs of agents become actions."""

from __future__ import annotations

import torch as th
import torch.nn.functional as F
from inspo.components.schedules import linear
from inspo.utils.rl_utils import UNAVAILABLE


def explore(actions: th.Tensor, avail: th.Tensor, epsilon: float) -> th.Tensor:
    """Replace each action, with probability epsilon, by a uniformly drawn available one.

    actions `[N, n]`, avail `[N, n, A]`.
    """
    if epsilon == 0:
        return actions
    random = th.multinomial(avail.float().flatten(0, -2), 1).view_as(actions)
    chance = th.rand(actions.shape, device=actions.device)
    return th.where(chance < epsilon, random, actions)


class GreedySelector:
    """The action of largest value (in collection and tests, `test_epsilon` of random ones)."""

    epsilon = 0.0

    def __init__(self, args):
        self.args = args

    def best(self, values: th.Tensor, avail: th.Tensor) -> th.Tensor:
        """The available action of largest value, `[..., n, A]` -> long `[..., n]`."""
        return values.masked_fill(avail == 0, UNAVAILABLE).argmax(-1)

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """values and avail `[N, n, A]` -> actions, long `[N, n]`."""
        return explore(self.best(values, avail), avail, self.args.test_epsilon)

    def probabilities(self, values: th.Tensor, avail: th.Tensor) -> th.Tensor:
        """What a test draws actions from (without `test_epsilon`), `[N, n, A]`."""
        return F.one_hot(self.best(values, avail), values.shape[-1]).to(values.dtype)


class EpsilonGreedySelector(GreedySelector):
    """Greedy in tests; in training, with probability epsilon, a random action instead."""

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """values and avail `[N, n, A]` -> actions, long `[N, n]`."""
        if test_mode:
            return super().select(values, avail, t_env, test_mode)
        a = self.args
        self.epsilon = linear(a.epsilon_start, a.epsilon_finish, a.epsilon_anneal_time, t_env)
        return explore(self.best(values, avail), avail, self.epsilon)


class MultinomialSelector:
    """Draws from the policy; in tests the most probable action if `test_greedy`."""

    epsilon = 0.0

    def __init__(self, args):
        self.args = args

    def select(self, probs: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """probs (zero where unavailable) and avail `[N, n, A]` -> actions, long `[N, n]`."""
        if test_mode and self.args.test_greedy:
            actions = probs.masked_fill(avail == 0, -1.0).argmax(-1)
        else:
            actions = th.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])
        return explore(actions, avail, self.args.test_epsilon if test_mode else 0.0)

    def probabilities(self, probs: th.Tensor, avail: th.Tensor) -> th.Tensor:
        """What a test draws actions from (without `test_epsilon`), `[N, n, A]`."""
        if not self.args.test_greedy:
            return probs
        best = probs.masked_fill(avail == 0, -1.0).argmax(-1)
        return F.one_hot(best, probs.shape[-1]).to(probs.dtype)


REGISTRY = {
    "epsilon_greedy": EpsilonGreedySelector,
    "greedy": GreedySelector,
    "multinomial": MultinomialSelector,
}
