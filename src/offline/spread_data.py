"""Teams that play simple spread (MPE) by conventions, for data in which conventions clash.

Each team keeps one assignment of agents to landmarks, by a script: an agent heads for its landmark,
along the axis on which it is farther off, and a tenth of its actions are random. All assignments
are equally good; agents of two teams go to one landmark and leave another.
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from inspo.envs.mpe import N_ACTIONS, n_agents_of

EPISODES = 5000
NOISE = 0.1  # share of random actions
BRAKING = 0.3  # of the velocity, which goes on for a while, is taken off the way
NEAR = 0.1  # on an axis, where an agent stays


def n_teams(map_name: str) -> int:
    """N!, as many as there are assignments; ConfigError for no such map."""
    return math.factorial(n_agents_of(map_name))


def assignments(n_agents: int, number: int) -> np.ndarray:
    """The landmark of each agent in each team, int `[number, n_agents]`.

    The cyclic ones first, in any two of which no agent has the same landmark.
    """
    cyclic = [tuple((i + k) % n_agents for i in range(n_agents)) for k in range(n_agents)]
    others = [one for one in permutations(range(n_agents)) if one not in cyclic]
    return np.array([*cyclic, *others][:number])


def act(map_name: str, team: np.ndarray, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The actions of every agent, int `[E, n]`.

    team: int `[E, n]`, whose member each agent is. state: `[E, 6 n]`, as `envs.mpe` has it.
    """
    n = n_agents_of(map_name)
    landmark = assignments(n, int(team.max()) + 1)[team, np.arange(n)]
    place, velocity, landmarks = (
        part.reshape(-1, n, 2) for part in np.split(state, [2 * n, 4 * n], axis=1)
    )
    goal = np.take_along_axis(landmarks, landmark[..., None], axis=1)
    way = goal - place - BRAKING * velocity
    axis = np.abs(way).argmax(-1)
    length = np.take_along_axis(way, axis[..., None], axis=-1)[..., 0]
    actions = np.where(np.abs(length) < NEAR, 0, 1 + 2 * axis + (length > 0))
    random = rng.random(actions.shape) < NOISE
    return np.where(random, rng.integers(N_ACTIONS, size=actions.shape), actions)
