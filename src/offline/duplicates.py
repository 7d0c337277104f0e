"""Equal episodes of a dataset, and which of them are copies of one that was played once.

Copies are no evidence of their own: with some of them on each side of a split the held-out part
sees nothing that is new, and an interval over all of them is too narrow. Nothing in a file tells a
copy from chance, by which a game with few outcomes repeats its episodes. There the repetitions are
the data's probabilities and must stay; `EqualEpisodes` says where that is assumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

READ_AT_THE_END = ("state", "obs", "avail_actions")
"""What counts of an episode's last row, which starts no transition."""

COMMON = 0.01
"""A content that makes up more than this share of the data may be an outcome of a small game."""

SHOWN = 5


@dataclass(frozen=True)
class EqualEpisodes:
    """Which episodes of a dataset are equal, int64 `[E]` each.

    first: the first episode of equal content. originals: the episode of which each one is a copy,
    itself if it is none; what is held out or drawn at random goes by these. Equal episodes are
    taken for copies where most contents occur more than once, but not in a small game: one that
    begins always alike, and lasts one step or has an outcome that is common.
    """

    first: np.ndarray
    originals: np.ndarray

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], offsets: np.ndarray) -> EqualEpisodes:
        """See `first_equal`."""
        first = first_equal(arrays, offsets)
        counts = np.unique(first, return_counts=True)[1]
        starts = np.unique(arrays["state"][offsets[:-1]], axis=0)
        outcomes = counts.max() > COMMON * len(first) or np.diff(offsets).max() == 2
        small_game = outcomes and 2 * len(starts) <= len(counts)
        repeated = 2 * np.count_nonzero(counts == 1) < len(counts)
        return cls(first, first if repeated and not small_game else np.arange(len(first)))

    @property
    def n_copies(self) -> int:
        return int((self.originals != np.arange(len(self.originals))).sum())

    def as_dict(self) -> dict[str, Any]:
        """For JSON. distinct: contents. largest: episodes of the commonest content. commonest:
        the first episodes of the contents that occur as often, at most `SHOWN`."""
        values, counts = np.unique(self.first, return_counts=True)
        return {
            "distinct": len(values),
            "largest": int(counts.max()),
            "commonest": values[counts == counts.max()][:SHOWN].tolist(),
            "copies": self.n_copies,
        }

    def __str__(self) -> str:
        facts, total = self.as_dict(), len(self.first)
        if facts["distinct"] == total:
            return "no two episodes are equal"
        named = ", ".join(map(str, facts["commonest"]))
        text = (
            f"{facts['distinct']:,} of {total:,} episodes are distinct, the commonest of them "
            f"occurs {facts['largest']:,} times (first episodes of such a group: {named})"
        )
        if not self.n_copies:
            return f"{text}; as chance may repeat episodes, none counts as a copy"
        return f"{text}; {self.n_copies / total:.1%} of the episodes are copies of others"


def first_equal(arrays: Mapping[str, np.ndarray], offsets: np.ndarray) -> np.ndarray:
    """The first episode of equal content for each episode, itself if there is none: int64 `[E]`.

    Equal is what is the same bit for bit in all that anybody reads. arrays: key -> `[rows, ...]`.
    offsets: `[E + 1]`, first row of each episode. Seconds for 1 GB; nothing but actions is read of
    episodes whose actions occur once.
    """

    def first_of(episodes: Sequence[int] | np.ndarray, keys: Sequence[str]) -> list[int]:
        seen: dict[bytes, int] = {}
        return [seen.setdefault(digest(int(episode), keys), episode) for episode in episodes]

    def digest(episode: int, keys: Sequence[str]) -> bytes:
        content = hashlib.sha256()
        first, end = offsets[episode], offsets[episode + 1]
        for key in keys:
            rows = arrays[key][first : end if key in READ_AT_THE_END else end - 1]
            content.update(rows.tobytes())
        return content.digest()

    first = np.array(first_of(range(len(offsets) - 1), ["actions"]), dtype=np.int64)
    alike = np.flatnonzero(np.bincount(first)[first] > 1)
    first[alike] = first_of(alike, list(arrays))
    return first


def members(originals: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen episodes with their copies, in the order of `chosen`: int64 `[k]`."""
    rank = np.full(originals.max() + 1, len(chosen))
    rank[chosen] = np.arange(len(chosen))
    place = rank[originals]
    return np.argsort(place, kind="stable")[: np.count_nonzero(place < len(chosen))]
