"""How outputs of agents become actions."""

from __future__ import annotations

import torch as th

from components.schedules import linear
from utils.rl_utils import UNAVAILABLE


def explore(actions: th.Tensor, avail: th.Tensor, epsilon: float) -> th.Tensor:
    """Replace each action, with probability epsilon, by a uniformly drawn available one.

    actions `[N, n]`, avail `[N, n, A]`.
    """
    if epsilon == 0:
        return actions
    random = th.multinomial(avail.float().flatten(0, -2), 1).view_as(actions)
    chance = th.rand(actions.shape, device=actions.device)
    return th.where(chance < epsilon, random, actions)


class EpsilonGreedySelector:
    """The action of largest value, or with probability epsilon a random one."""

    def __init__(self, args):
        self.args = args
        self.epsilon = 0.0  # of the latest training step

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """values and avail `[N, n, A]` -> actions, long `[N, n]`."""
        a = self.args
        greedy = values.masked_fill(avail == 0, UNAVAILABLE).argmax(-1)
        if test_mode:
            return explore(greedy, avail, a.test_epsilon)
        self.epsilon = linear(a.epsilon_start, a.epsilon_finish, a.epsilon_anneal_time, t_env)
        return explore(greedy, avail, self.epsilon)


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


REGISTRY = {"epsilon_greedy": EpsilonGreedySelector, "multinomial": MultinomialSelector}
