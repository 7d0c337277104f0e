"""By which convention an episode was played, agent by agent, read from its states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inspo.envs.overcooked import Kitchen

PREFIX = "convention_"  # of the names under which a runner tells them


def landmarks(map_name: str, state: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Of spread: the landmark that each agent is nearest to in the end."""
    end = state[np.arange(len(state)), last]
    n = end.shape[1] // 6
    places, marks = end[:, : 2 * n].reshape(-1, n, 2), end[:, 4 * n :].reshape(-1, n, 2)
    distance = np.linalg.norm(places[:, :, None] - marks[:, None], axis=-1)
    nearest: np.ndarray = distance.argmin(-1)
    return nearest


def rounds(map_name: str, state: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Of a kitchen that is a ring: 0 for an agent that has gone round it clockwise, 1 the other way
    round; 2 for one that was mostly in its upper row, 3 for one that was mostly below."""
    kitchen = Kitchen(map_name)
    ring = kitchen.ring()
    place_of = (ring[:, None] == kitchen.floor).all(-1).argmax(0)
    cell = kitchen.read(state)["cell"]  # [E, T, 2]
    counts = np.arange(cell.shape[1])[:, None] <= last[:, None, None]
    place, row = place_of[cell], kitchen.floor[cell][..., 0]
    step = (np.diff(place, axis=1) + 1) % len(ring) - 1  # 1, 0 or -1
    turns = (step * counts[:, 1:]).sum(1)
    above = (row == kitchen.floor[:, 0].min()) & counts
    halves = np.where(above.sum(1) > counts.sum(1) / 2, 2, 3)
    return np.where(np.abs(turns) >= len(ring), np.where(turns > 0, 0, 1), halves)


LABELS: dict[str, Callable[[str, np.ndarray, np.ndarray], np.ndarray]] = {
    "mpe": landmarks,
    "overcooked": rounds,
}
RINGS = ("coord_ring", "counter_circuit")
NAMES = {"overcooked": "catb"}  # clockwise, anticlockwise, top, below; elsewhere numbers


def labels(env: str, map_name: str, state: np.ndarray, last: np.ndarray) -> np.ndarray | None:
    """The convention of each agent in each episode, int `[E, n]`; None where none are known.

    state: `[E, T, S]`. last: the row of the terminal observation, int `[E]`.
    """
    if env not in LABELS or (env == "overcooked" and map_name not in RINGS):
        return None
    if state.shape[-1] % (6 if env == "mpe" else Kitchen(map_name).width):
        return None  # a foreign file's states
    return LABELS[env](map_name, state, last)


def name_of(env: str, label: int) -> str:
    """A word for a label: a letter in a kitchen, the landmark's number in spread."""
    return NAMES[env][label] if env in NAMES else str(label)
