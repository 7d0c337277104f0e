"""Teams that run a kitchen of Overcooked by conventions, for data in which conventions clash.

The floor of two layouts is a ring, too narrow for two to pass each other. There are four teams:
both cooks go round clockwise; both go round the other way; one stays at the pots and the other
hands it what it needs over a counter; the same with the roles exchanged. Each is a script that
looks at the state, and a twentieth of its actions are random steps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from inspo.envs.overcooked import (
    DIRECTIONS,
    INTERACT,
    NOTHING,
    ONION,
    PLATE,
    SOUP,
    STAY,
    Kitchen,
)
from inspo.utils.errors import ConfigError

EPISODES = 1000
NOISE = 0.05  # share of random actions, which never interact: what lies about stays in use
SOON = 8  # steps before a soup is done in which a plate is fetched

Cell = tuple[int, int]
Station = tuple[Cell, int]  # where to stand, and in which direction to look

# The agent at the pots, the other one, and the counters between them.
AREAS: dict[str, tuple[list[Cell], list[Cell], list[Cell]]] = {
    "coord_ring": ([(1, 2), (1, 3)], [(2, 1), (3, 1), (3, 2)], [(2, 2)]),
    "counter_circuit": (
        [(2, 1), *((1, column) for column in range(1, 7)), (2, 6)],
        [(3, column) for column in range(1, 7)],
        [(2, 3), (2, 4)],
    ),
}
TURNS = {"clockwise": 1, "counterclockwise": -1}  # the others have the index of who is at the pots
TEAMS: dict[str, tuple[str | int, ...]] = {
    "coord_ring": ("clockwise", "counterclockwise", 0, 1),
    "counter_circuit": (0, 1, "clockwise", "counterclockwise"),
}


def n_teams(map_name: str) -> int:
    """How many teams a layout has; ConfigError if it has none."""
    if map_name not in AREAS:
        raise ConfigError(
            f"quality: of overcooked/{map_name} no data can be made: teams with conventions of "
            f"their own are known of {', '.join(AREAS)}. Name a file with dataset.path=..., or "
            "collect one"
        )
    return len(TEAMS[map_name])


def act(map_name: str, team: np.ndarray, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The actions of every agent, int `[E, 2]`.

    team: int `[E, 2]`, whose member each agent is. state: `[E, S]`, as `envs.overcooked` has it.
    """
    n_teams(map_name)
    actions = np.array(
        [
            [_decide(map_name, int(t), i, row.tobytes()) for i, t in enumerate(members)]
            for members, row in zip(team, state)
        ]
    )
    random = rng.random(actions.shape) < NOISE
    return np.where(random, rng.integers(INTERACT, size=actions.shape), actions)


@lru_cache(maxsize=1 << 18)
def _decide(map_name: str, team: int, agent: int, state: bytes) -> int:
    kitchen = _kitchen(map_name)
    seen = {k: v.tolist() for k, v in kitchen.read(np.frombuffer(state, np.float32)).items()}
    return _Member(map_name, team, agent).act(seen)


@lru_cache
def _kitchen(map_name: str) -> Kitchen:
    return Kitchen(map_name)


class _Member:
    """One agent of a team.

    turn: 1 clockwise, -1 the other way, 0 as is nearest. area: where it works. between: the
    counters over which things are handed.
    """

    def __init__(self, map_name: str, team: int, agent: int):
        self.kitchen, self.agent = _kitchen(map_name), agent
        self.ring = [tuple(cell) for cell in self.kitchen.ring().tolist()]
        kind = TEAMS[map_name][team]
        self.turn, self.area, self.between = 0, self.ring, list[Cell]()
        if isinstance(kind, str):
            self.turn = TURNS[kind]
        else:
            self.area, self.between = AREAS[map_name][kind != agent], AREAS[map_name][2]
        self.at_pots = bool(self._stations(self.kitchen.pots))
        self.delivers = bool(self._stations(self.kitchen.cells("X")))

    def _stations(self, cells: Any) -> list[Station]:
        """From where in its area these cells can be reached."""
        at = {tuple(cell) for cell in np.asarray(cells, dtype=int).reshape(-1, 2).tolist()}
        return [
            (place, direction)
            for place in self.area
            for direction, (down, right) in enumerate(DIRECTIONS.tolist())
            if (place[0] + down, place[1] + right) in at
        ]

    def act(self, seen: dict[str, Any]) -> int:
        """What it does in a situation, see `Kitchen.read`."""
        here, there = (tuple(self.kitchen.floor[cell].tolist()) for cell in seen["cell"])
        if self.agent:
            here, there = there, here
        stations = [one for one in self._wanted(seen) if one[0] != there]
        if not stations and self.turn:
            return self._step(here, self._next(here, self.turn))
        if not stations and here in self.area:
            return STAY
        stations = stations or [(cell, -1) for cell in self.area if cell != there]
        place, direction = min(stations, key=lambda one: self._way(here, one[0], there)[0])
        if place != here:
            return self._step(here, self._next(here, self._way(here, place, there)[1]))
        if seen["facing"][self.agent] != direction:
            return direction
        return INTERACT

    def _wanted(self, seen: dict[str, Any]) -> list[Station]:
        """Where it would now interact with something; nowhere if there is nothing to do."""
        held, other = (seen["held"][i] for i in (self.agent, 1 - self.agent))
        lying = [self._lying(seen, cell) for cell in self.between]
        pots = list(zip(self.kitchen.pots.tolist(), seen["pots"]))
        open_pots = [pot for pot, (onions, _, _) in pots if onions < 3]
        done = [pot for pot, (onions, left, _) in pots if onions == 3 and left <= SOON]
        if held == NOTHING:
            return self._to_take(other, lying, sum(3 - pot[1][0] for pot in pots), len(done))
        if held == SOUP and self.delivers:
            return self._stations(self.kitchen.cells("X"))
        if self.at_pots and held != SOUP:
            return self._stations(open_pots if held == ONION else done)
        free = [cell for cell, item in zip(self.between, lying) if item == NOTHING]
        return self._stations(free)

    def _to_take(self, other: int, lying: list[int], room: int, done: int) -> list[Station]:
        """With empty hands. room: for onions in pots; done: soups that are, or soon."""

        def offered(item: int) -> list[Station]:
            return self._stations([c for c, what in zip(self.between, lying) if what == item])

        if self.delivers and offered(SOUP):
            return offered(SOUP)
        if self.between and self.delivers and (other in (PLATE, SOUP) or PLATE in lying):
            return []  # a soup will come over the counter, which empty hands must take
        plates, onions = done - (other == PLATE), room - (other == ONION)
        if plates > 0 and self.at_pots and offered(PLATE):
            return offered(PLATE)
        fetched = plates > lying.count(PLATE) and self._stations(self.kitchen.cells("B"))
        if fetched:
            return fetched
        if onions > 0 and self.at_pots and offered(ONION):
            return offered(ONION)
        return self._stations(self.kitchen.cells("O")) if onions > lying.count(ONION) else []

    def _lying(self, seen: dict[str, Any], cell: Cell) -> int:
        counters = self.kitchen.counters.tolist()
        return int(seen["lying"][counters.index(list(cell))])

    def _way(self, here: Cell, place: Cell, there: Cell) -> tuple[int, int]:
        """How far it is along the ring, and in which direction; round the other one if need be."""
        n = len(self.ring)
        start, end, met = (self.ring.index(cell) for cell in (here, place, there))
        ways = [((end - start) * turn % n, turn) for turn in (1, -1) if self.turn in (0, turn)]
        free = [way for way in ways if (met - start) * way[1] % n > way[0]]
        return min(free or ways)

    def _next(self, here: Cell, turn: int) -> Cell:
        return self.ring[(self.ring.index(here) + turn) % len(self.ring)]

    def _step(self, here: Cell, to: Cell) -> int:
        ways: list[list[int]] = DIRECTIONS.tolist()
        return ways.index([to[0] - here[0], to[1] - here[1]])
