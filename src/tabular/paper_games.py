"""The matrix games and their datasets (`tabular.matrix_games`) as exact arrays."""

from __future__ import annotations

from inspo.tabular.game import Game
from inspo.tabular.in_sample import Dataset
from inspo.tabular.matrix_games import frequencies, parse, payoff_tensor


def game(name: str) -> Game:
    """`xor`, `m_ne_4`, ... as a one-state game."""
    return Game.matrix(payoff_tensor(name))


def dataset(name: str, quality: str) -> Dataset:
    """An exact empirical distribution, such as that of `xor_3` `b`."""
    of = parse(name)
    actions, weights = frequencies(name, quality)
    return Dataset.one_step(actions, weights / weights.sum(), of.payoff(actions), of.shape)
