"""The paper's two matrix games and its five datasets, as exact arrays (Figs. 1, 2; Tables 1, 2)."""

from __future__ import annotations

import numpy as np

from inspo.tabular.game import Game
from inspo.tabular.in_sample import Dataset
from inspo.utils.errors import ConfigError, nearest

XOR = np.array([[0.0, 1.0], [1.0, -2.0]])  # Fig. 1a, actions A, B
M_NE = np.where(np.eye(3, dtype=bool), np.diag([5.0, 10.0, 20.0]), -20.0)  # Fig. 2a, A, B, C
M_NE_MU = {"balanced": np.full(3, 1 / 3), "imbalanced": np.array([0.8, 0.1, 0.1])}

PAYOFF = {"xor": XOR, "m_ne": M_NE}
FREQUENCY = {
    ("xor", "a"): np.array([[0, 1], [1, 0]]) / 2,
    ("xor", "b"): np.array([[1, 1], [1, 0]]) / 3,
    ("xor", "c"): np.ones((2, 2)) / 4,
    ("m_ne", "balanced"): np.outer(M_NE_MU["balanced"], M_NE_MU["balanced"]),
    ("m_ne", "imbalanced"): np.outer(M_NE_MU["imbalanced"], M_NE_MU["imbalanced"]),
}


def game(name: str) -> Game:
    """`xor` or `m_ne` as a one-state game."""
    if name not in PAYOFF:
        known = ", ".join(PAYOFF)
        raise ConfigError(f"no game {name!r}; there are {known}.{nearest(name, PAYOFF)}")
    return Game.matrix(PAYOFF[name])


def dataset(name: str, quality: str) -> Dataset:
    """An exact empirical distribution: `xor` a, b, c; `m_ne` balanced, imbalanced."""
    if (name, quality) not in FREQUENCY:
        known = ", ".join(" ".join(key) for key in FREQUENCY)
        raise ConfigError(f"no dataset {name} {quality}; there are {known}")
    return Dataset.one_shot(FREQUENCY[name, quality], PAYOFF[name])
