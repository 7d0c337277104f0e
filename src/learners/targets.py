"""How far target networks carry values within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TargetSchedule:
    """Targets that move `moves` times by the share `tau` (1: copied whole) towards networks that
    learn TD(`td_lambda`) returns."""

    moves: int
    tau: float
    td_lambda: float


def carried_share(schedule: TargetSchedule, length: int, gamma: float) -> float:
    """The largest share of the true values that a critic can hold at the end, between 0 and 1.

    Of an episode of `length` steps with a reward of 1 in each, the mean over its steps; targets
    begin at 0, and the networks fit their returns G = b + M V at once. What is missing shrinks by
    (1 - tau) I + tau M with every move, and by M in the last return. No real run can do better.
    """
    lag = np.arange(length)[:, None] - np.arange(length)[None, :]  # steps left, minus steps left
    weight = gamma * (1 - schedule.td_lambda) * (gamma * schedule.td_lambda) ** (lag - 1.0).clip(0)
    bootstrap = np.where(lag > 0, weight, 0.0)
    move = (1 - schedule.tau) * np.eye(length) + schedule.tau * bootstrap
    true = np.cumsum(gamma ** np.arange(length))
    missing = bootstrap @ np.linalg.matrix_power(move, schedule.moves) @ true
    return float(1 - missing.sum() / true.sum())
