"""Teams that play simple spread (MPE) by conventions, for data in which conventions clash.

Each team keeps one assignment of agents to landmarks, by a script: an agent heads for its landmark,
along the axis on which it is farther off, and a tenth of its actions are random. All assignments
are equally good; agents of two teams go to one landmark and leave another.
"""

from __future__ import annotations

import math
import re
from itertools import permutations

import numpy as np

from inspo.envs.mpe import N_ACTIONS, n_agents_of
from inspo.utils.errors import ConfigError, nearest

EPISODES = 5000
NOISE = 0.1  # share of random actions
BRAKING = 0.3  # of the velocity, which goes on for a while, is taken off the way
NEAR = 0.1  # on an axis, where an agent stays
QUALITIES = ("one_team", "conventions", "conventions_60_40")


def shares(map_name: str, quality: str) -> list[float]:
    """The share of the episodes that each team plays; ConfigError for no such quality."""
    found = re.fullmatch(r"conventions_(\d+)", quality)
    number = int(found[1]) if found else 2
    most = math.factorial(n_agents_of(map_name))
    if quality == "one_team":
        return [1.0]
    if quality == "conventions_60_40":
        return [0.6, 0.4]
    if quality != "conventions" and not found:
        raise ConfigError(
            f"quality: there are no data '{quality}' of mpe/{map_name}."
            f"{nearest(quality, QUALITIES)} Known: {', '.join(QUALITIES)}, conventions_K"
        )
    if not 2 <= number <= most:
        raise ConfigError(
            f"quality: {map_name} has {most} assignments, so conventions_K takes K from 2 to "
            f"{most}; found {number}"
        )
    return [1 / number] * number


def assignments(n_agents: int, n_teams: int) -> np.ndarray:
    """The landmark of each agent in each team, int `[n_teams, n_agents]`.

    The cyclic ones first, in any two of which no agent has the same landmark.
    """
    cyclic = [tuple((i + k) % n_agents for i in range(n_agents)) for k in range(n_agents)]
    others = [one for one in permutations(range(n_agents)) if one not in cyclic]
    return np.array([*cyclic, *others][:n_teams])


def teams_of_episodes(map_name: str, quality: str, rng: np.random.Generator) -> np.ndarray:
    """Which team plays each episode, int `[EPISODES]`: exact shares, in random order."""
    ends = np.round(np.cumsum(shares(map_name, quality)) * EPISODES).astype(int)
    return rng.permutation(np.searchsorted(ends, np.arange(EPISODES), side="right"))


def script(state: np.ndarray, assignment: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The actions of every agent, int `[E, n]`.

    state: `[E, 6 n]`, as `envs.mpe` has it. assignment: int `[E, n]`, each agent's landmark.
    """
    n = assignment.shape[1]
    place, velocity, landmarks = (
        part.reshape(-1, n, 2) for part in np.split(state, [2 * n, 4 * n], axis=1)
    )
    goal = np.take_along_axis(landmarks, assignment[..., None], axis=1)
    way = goal - place - BRAKING * velocity
    axis = np.abs(way).argmax(-1)
    length = np.take_along_axis(way, axis[..., None], axis=-1)[..., 0]
    actions = np.where(np.abs(length) < NEAR, 0, 1 + 2 * axis + (length > 0))
    random = rng.random(actions.shape) < NOISE
    return np.where(random, rng.integers(N_ACTIONS, size=actions.shape), actions)
