"""Data of scripted teams that keep different conventions: which team plays which episode.

A module of SCRIPTS has `EPISODES`, `n_teams(map_name)` and `act(map_name, team, state, rng)`: the
actions int `[E, n]` of agents that belong to the teams `team`, int `[E, n]`, in the states
`[E, S]`. All agents of an episode belong to one team here; cross-play mixes them.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from inspo.offline import overcooked_data, spread_data
from inspo.utils.errors import ConfigError, nearest

SCRIPTS: dict[str, Any] = {"mpe": spread_data, "overcooked": overcooked_data}
QUALITIES = ("one_team", "conventions", "conventions_60_40")


def shares(env: str, map_name: str, quality: str) -> list[float]:
    """The share of the episodes that each team plays; ConfigError for no such quality."""
    found = re.fullmatch(r"conventions_(\d+)", quality)
    number = int(found[1]) if found else 2
    most = SCRIPTS[env].n_teams(map_name)
    if quality == "one_team":
        return [1.0]
    if quality == "conventions_60_40":
        return [0.6, 0.4]
    if quality != "conventions" and not found:
        raise ConfigError(
            f"quality: there are no data '{quality}' of {env}/{map_name}."
            f"{nearest(quality, QUALITIES)} Known: {', '.join(QUALITIES)}, conventions_K"
        )
    if not 2 <= number <= most:
        raise ConfigError(
            f"quality: {map_name} has {most} teams, so conventions_K takes K from 2 to {most}; "
            f"found {number}"
        )
    return [1 / number] * number


def teams_of_episodes(
    env: str, map_name: str, quality: str, rng: np.random.Generator
) -> np.ndarray:
    """Which team plays each episode, int `[E]`: exact shares, in random order."""
    n_episodes = SCRIPTS[env].EPISODES
    ends = np.round(np.cumsum(shares(env, map_name, quality)) * n_episodes).astype(int)
    return rng.permutation(np.searchsorted(ends, np.arange(n_episodes), side="right"))
