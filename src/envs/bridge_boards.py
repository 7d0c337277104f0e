"""The boards of Bridge, and the orders in which its agents may cross.

A wall is #, the starts are digits and the goals letters, a for agent 1 and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STAY, UP, DOWN, RIGHT, LEFT = range(5)
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, 1], [0, -1]])  # [action, (row, column)]


@dataclass(frozen=True)
class Board:
    """wall: bool `[rows, columns]`. goals: int `[n, 2]`, (row, column) of each agent's. starts: by
    name, as `goals`. paths: the actions of each agent that crosses without waiting (more than two
    agents)."""

    wall: np.ndarray
    goals: np.ndarray
    starts: dict[str, np.ndarray]
    paths: tuple[tuple[int, ...], ...] = ()

    @property
    def n_agents(self) -> int:
        return len(self.goals)


def read(text: str, *paths: str, **starts: list[list[int]]) -> Board:
    """A board of its drawing, the initials of its paths' actions, and further starts."""
    cells = np.array([list(line) for line in text.split()])
    n_agents = sum(cell.isdigit() for cell in cells.flat)

    def places(symbols: str) -> np.ndarray:
        return np.array([np.argwhere(cells == symbol)[0] for symbol in symbols[:n_agents]])

    return Board(
        cells == "#",
        places("abcd"),
        {"adjacent": places("1234")} | {name: np.array(at) for name, at in starts.items()},
        tuple(tuple("SUDRL".index(initial) for initial in path) for path in paths),
    )


BOARDS = {
    "bridge": read(
        """
        b.##..
        ..12..
        ..##.a
        """,
        apart=[[1, 1], [1, 4]],  # at the two ends of the bridge
    ),
    "bridge_3": read(
        """
        .1.##.c.
        2......a
        .3.##.b.
        """,
        *("RDRRRRR", "RRRRRDR", "RURRRUR"),
    ),
    "bridge_4": read(
        """
        .1##d.
        2.##.c
        ......
        3.##.b
        .4##a.
        """,
        *("DDRRRDD", "RDRRRDR", "RURRRUR", "UURRRUU"),
    ),
}
BOARD_OF = {board.n_agents: board for board in BOARDS.values()}
