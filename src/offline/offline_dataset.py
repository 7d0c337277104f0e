"""The canonical dataset in memory: the filled rows alone, and what is known about them.

Notation: E episodes, episode e with L_e transitions and L_e + 1 rows (the last row is the terminal
observation), n agents, A actions, S and O the widths of state and observation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from inspo.offline.duplicates import EqualEpisodes


@dataclass(frozen=True)
class Field:
    """One key of the dataset: its dtype, and the names or sizes of the dimensions of one row."""

    dtype: np.dtype
    dims: tuple[str | int, ...]


FIELDS: dict[str, Field] = {
    "state": Field(np.dtype(np.float32), ("S",)),
    "obs": Field(np.dtype(np.float32), ("n", "O")),
    "actions": Field(np.dtype(np.int64), ("n", 1)),
    "avail_actions": Field(np.dtype(np.int32), ("n", "A")),
    "reward": Field(np.dtype(np.float32), (1,)),
    "terminated": Field(np.dtype(np.uint8), (1,)),
}
"""The keys of every dataset, in the order in which they are hashed and written."""

FILLED = "filled"
FILLED_FIELD = Field(np.dtype(np.int64), (1,))

UNKNOWN = "unknown"


@dataclass(frozen=True)
class DatasetMetadata:
    """What is known about a dataset. The second half is computed from the data, never given.

    state_shape, obs_shape: widths S and O, as in `get_env_info`. simulator: name and version.
    source: learner, checkpoint, exploration and command, or what it was converted from. notes: what
    a reader or converter changed or left out. env_args: the simulator's settings under which it was
    collected, as JSON; None where they are not known. n_steps: transitions. return_std: of the
    population. win_rate: share of episodes won, None where the data does not say. n_cut: episodes
    that end before the limit without a terminal (a crash of the simulator, a foreign file); a
    learner bootstraps from their last row. content_hash: see `ContentHash`.
    """

    env: str
    map_name: str
    quality: str
    simulator: str
    source: str
    n_agents: int
    n_actions: int
    state_shape: int
    obs_shape: int
    episode_limit: int
    created_by: str = ""
    notes: tuple[str, ...] = ()
    env_args: str | None = None

    n_episodes: int = 0
    n_steps: int = 0
    n_cut: int = 0
    return_mean: float = 0.0
    return_std: float = 0.0
    win_rate: float | None = None
    content_hash: str = ""

    def env_info(self) -> dict[str, int]:
        """The numbers that a network needs, as `MultiAgentEnv.get_env_info` gives them."""
        return {
            "state_shape": self.state_shape,
            "obs_shape": self.obs_shape,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
        }

    def row_shape(self, key: str) -> tuple[int, ...]:
        """Shape of one row of `key`, `(n_agents, obs_shape)` for "obs"."""
        sizes = {"S": self.state_shape, "O": self.obs_shape}
        sizes |= {"n": self.n_agents, "A": self.n_actions}
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in FIELDS[key].dims)

    def row_bytes(self) -> int:
        """Bytes of one row of all keys."""
        sizes = (np.prod(self.row_shape(key)) * spec.dtype.itemsize for key, spec in FIELDS.items())
        return int(sum(sizes))


class ContentHash:
    """SHA-256 over keys, dtypes, row shapes, lengths and filled rows.

    Each key has a running digest of its own, so the hash depends neither on the padding or the
    compression of a file nor on the batches in which the rows came.
    """

    def __init__(self) -> None:
        self._keys = {key: hashlib.sha256() for key in (*FIELDS, "lengths")}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def update(self, arrays: Mapping[str, np.ndarray], lengths: np.ndarray) -> None:
        """Add whole episodes: `arrays[key]` `[rows, ...]`, `lengths` `[E]` in transitions."""
        for key, spec in FIELDS.items():
            rows = np.ascontiguousarray(arrays[key], dtype=spec.dtype.newbyteorder("<"))
            self._shapes[key] = rows.shape[1:]
            self._keys[key].update(rows.data if rows.size else b"")
        self._keys["lengths"].update(np.asarray(lengths, dtype="<i8").tobytes())

    def hexdigest(self) -> str:
        total = hashlib.sha256()
        for key, spec in FIELDS.items():
            total.update(f"{key} {spec.dtype.name} {self._shapes.get(key)}\n".encode())
            total.update(self._keys[key].digest())
        total.update(self._keys["lengths"].digest())
        return total.hexdigest()


def content_hash(arrays: Mapping[str, np.ndarray], lengths: np.ndarray) -> str:
    """The `ContentHash` of a whole dataset, in hexadecimal. About 0.1 s per 100 MB."""
    digest = ContentHash()
    digest.update(arrays, lengths)
    return digest.hexdigest()


def row_offsets(lengths: np.ndarray) -> np.ndarray:
    """First row of each episode and, last, the number of rows: int64 `[E + 1]`."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.asarray(lengths, dtype=np.int64) + 1, out=offsets[1:])
    return offsets


def episode_returns(reward: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Undiscounted return of each episode, float64 `[E]`; `reward` is `[rows, 1]`.

    The row of the terminal observation starts no transition: its reward does not count.
    """
    offsets = row_offsets(lengths)
    counted = reward[:, 0].astype(np.float64)
    counted[offsets[1:] - 1] = 0.0
    return np.add.reduceat(counted, offsets[:-1]) if len(lengths) else np.zeros(0)


def ends_terminated(terminated: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether the last transition of each episode is a true end: bool `[E]`."""
    return np.asarray(terminated[row_offsets(lengths)[1:] - 2, 0] != 0)


def complete_metadata(
    metadata: DatasetMetadata,
    *,
    returns: np.ndarray,
    lengths: np.ndarray,
    terminated: np.ndarray,
    battle_won: np.ndarray | None,
    digest: str,
) -> DatasetMetadata:
    """`metadata` with its computed half; `returns`, `lengths`, `terminated`, `battle_won` `[E]`."""
    short = (lengths < metadata.episode_limit) & ~terminated
    return replace(
        metadata,
        n_episodes=len(lengths),
        n_steps=int(lengths.sum()),
        n_cut=int(short.sum()),
        return_mean=float(returns.mean()) if len(returns) else 0.0,
        return_std=float(returns.std()) if len(returns) else 0.0,
        win_rate=None if battle_won is None or not len(lengths) else float(battle_won.mean()),
        content_hash=digest,
    )


@dataclass(frozen=True)
class OfflineDataset:
    """A dataset in memory, flat and ragged.

    arrays: key -> `[rows, ...]` for the keys of `FIELDS`. lengths: transitions of each episode,
    int64 `[E]`. battle_won: uint8 `[E]`, None where the data does not say. offsets: int64
    `[E + 1]`, first row of each episode. Nobody writes into the arrays.
    """

    arrays: dict[str, np.ndarray]
    lengths: np.ndarray
    metadata: DatasetMetadata
    battle_won: np.ndarray | None = None
    offsets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", row_offsets(self.lengths))

    @classmethod
    def build(
        cls,
        arrays: dict[str, np.ndarray],
        lengths: np.ndarray,
        metadata: DatasetMetadata,
        battle_won: np.ndarray | None = None,
    ) -> OfflineDataset:
        """A dataset whose metadata has its computed half (statistics, hash) from these arrays."""
        metadata = complete_metadata(
            metadata,
            returns=episode_returns(arrays["reward"], lengths),
            lengths=lengths,
            terminated=ends_terminated(arrays["terminated"], lengths),
            battle_won=battle_won,
            digest=content_hash(arrays, lengths),
        )
        return cls(arrays, lengths, metadata, battle_won)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_rows(self) -> int:
        """Rows of all episodes, terminal observations included."""
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values()) + self.lengths.nbytes

    @cached_property
    def equal(self) -> EqualEpisodes:
        """Which episodes are equal, and which of them are copies."""
        return EqualEpisodes.of(self.arrays, self.offsets)

    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of each episode, float64 `[E]`."""
        return episode_returns(self.arrays["reward"], self.lengths)

    def is_transition(self) -> np.ndarray:
        """True for rows that start a transition, False for terminal observations: `[rows]`."""
        mask = np.ones(self.n_rows, dtype=bool)
        mask[self.offsets[1:] - 1] = False
        return mask

    def rows_of(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Row numbers of the given episodes, one after the other: int64 `[rows]`."""
        indices = np.asarray(indices, dtype=np.int64)
        new_offsets = row_offsets(self.lengths[indices])
        shift = self.offsets[indices] - new_offsets[:-1]
        return np.repeat(shift, self.lengths[indices] + 1) + np.arange(new_offsets[-1])

    def episodes(
        self, indices: Sequence[int] | np.ndarray, n_steps: int | None = None
    ) -> dict[str, np.ndarray]:
        """The given episodes padded with zeros, `[b, T, ...]`, with int64 `filled` `[b, T, 1]`.

        T is `n_steps`, or by default one more than the longest of these episodes.
        """
        indices = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[indices]
        longest = int(lengths.max()) + 1 if len(lengths) else 1
        n_steps = longest if n_steps is None else n_steps
        if n_steps < longest:
            raise ValueError(f"n_steps={n_steps} is less than the {longest} rows of an episode")
        mask = np.arange(n_steps) <= lengths[:, None]
        rows = self.rows_of(indices)
        batch = {}
        for key, array in self.arrays.items():
            batch[key] = np.zeros((*mask.shape, *array.shape[1:]), dtype=array.dtype)
            batch[key][mask] = array[rows]
        batch[FILLED] = mask[..., None].astype(FILLED_FIELD.dtype)
        return batch

    def blocks(self, rows: int = 1 << 14) -> Iterator[tuple[int, int]]:
        """`(first, end)` of runs of whole episodes of about `rows` rows each, in order."""
        first = 0
        while first < len(self):
            end = int(np.searchsorted(self.offsets, self.offsets[first] + rows, side="right")) - 1
            end = min(max(end, first + 1), len(self))
            yield first, end
            first = end

    def select(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        quality: str | None = None,
        source: str | None = None,
    ) -> OfflineDataset:
        """A new dataset of the given episodes, in that order (a copy; statistics and hash anew)."""
        indices = np.asarray(indices, dtype=np.int64)
        rows = self.rows_of(indices)
        metadata = replace(
            self.metadata,
            quality=quality or self.metadata.quality,
            source=source or f"{len(indices)} of {len(self)} episodes of: {self.metadata.source}",
        )
        return OfflineDataset.build(
            {key: array[rows] for key, array in self.arrays.items()},
            self.lengths[indices],
            metadata,
            None if self.battle_won is None else self.battle_won[indices],
        )
