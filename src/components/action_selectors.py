"""How outputs of agents become actions."""

from __future__ import annotations

import torch as th

from components.schedules import linear
from utils.rl_utils import UNAVAILABLE


class EpsilonGreedySelector:
    """The best available action, or with probability epsilon a uniformly drawn available one."""

    def __init__(self, args):
        self.args = args
        self.epsilon = args.epsilon_start

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """values and avail `[N, n, A]` -> actions, long `[N, n]`."""
        a = self.args
        self.epsilon = linear(a.epsilon_start, a.epsilon_finish, a.epsilon_anneal_time, t_env)
        epsilon = self.args.test_epsilon if test_mode else self.epsilon
        greedy = values.masked_fill(avail == 0, UNAVAILABLE).argmax(-1)
        if epsilon == 0:
            return greedy
        explored = th.multinomial(avail.float().flatten(0, -2), 1).view_as(greedy)
        return th.where(th.rand_like(values[..., 0]) < epsilon, explored, greedy)


class MultinomialSelector:
    """Draws from the policy; in tests the most probable action if `test_greedy`."""

    epsilon = 0.0

    def __init__(self, args):
        self.test_greedy = args.test_greedy

    def select(self, probs: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """probs (zero where unavailable) and avail `[N, n, A]` -> actions, long `[N, n]`."""
        if test_mode and self.test_greedy:
            return probs.masked_fill(avail == 0, -1.0).argmax(-1)
        return th.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])


REGISTRY = {"epsilon_greedy": EpsilonGreedySelector, "multinomial": MultinomialSelector}
