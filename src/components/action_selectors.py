"""How outputs of agents become actions."""

from __future__ import annotations

import torch as th

from inspo.components.schedules import linear
from inspo.utils.rl_utils import UNAVAILABLE, one_hot
from inspo.utils.settings import Settings


def explore(actions: th.Tensor, avail: th.Tensor, epsilon: float) -> th.Tensor:
    """Replace each action, with probability epsilon, by a uniformly drawn available one.

    actions `[N, n]`, avail `[N, n, A]`.
    """
    if epsilon == 0:
        return actions
    random = th.multinomial(avail.float().flatten(0, -2), 1).view_as(actions)
    chance = th.rand(actions.shape, device=actions.device)
    return th.where(chance < epsilon, random, actions)


class Selector:
    """Turns outputs into actions. epsilon: the present share of random actions, for the log."""

    epsilon = 0.0

    def __init__(self, args: Settings):
        self.args = args

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        """Outputs and avail `[N, n, A]` -> actions, long `[N, n]`."""
        raise NotImplementedError

    def best(self, values: th.Tensor, avail: th.Tensor) -> th.Tensor:
        """The available action of largest value, `[..., n, A]` -> long `[..., n]`."""
        return values.masked_fill(avail == 0, UNAVAILABLE).argmax(-1)

    def probabilities(self, values: th.Tensor, avail: th.Tensor) -> th.Tensor:
        """What a test draws actions from (without `test_epsilon`), `[N, n, A]`."""
        return one_hot(self.best(values, avail), values.shape[-1]).to(values.dtype)


class GreedySelector(Selector):
    """The action of largest value (in collection and tests, `test_epsilon` of random ones)."""

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        return explore(self.best(values, avail), avail, self.args.test_epsilon)


class EpsilonGreedySelector(GreedySelector):
    """Greedy in tests; in training, with probability epsilon, a random action instead."""

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        if test_mode:
            return super().select(values, avail, t_env, test_mode)
        a = self.args
        self.epsilon = linear(a.epsilon_start, a.epsilon_finish, a.epsilon_anneal_time, t_env)
        return explore(self.best(values, avail), avail, self.epsilon)


class MultinomialSelector(Selector):
    """Draws from the policy, whose probabilities are zero where an action is unavailable; in tests
    the most probable action if `test_greedy`."""

    def select(self, values: th.Tensor, avail: th.Tensor, t_env: int, test_mode: bool) -> th.Tensor:
        if test_mode and self.args.test_greedy:
            actions = self.best(values, avail)
        else:
            actions = th.multinomial(values.flatten(0, -2), 1).view(values.shape[:-1])
        return explore(actions, avail, self.args.test_epsilon if test_mode else 0.0)

    def probabilities(self, values: th.Tensor, avail: th.Tensor) -> th.Tensor:
        return super().probabilities(values, avail) if self.args.test_greedy else values


REGISTRY: dict[str, type[Selector]] = {
    "epsilon_greedy": EpsilonGreedySelector,
    "greedy": GreedySelector,
    "multinomial": MultinomialSelector,
}
