"""Datasets that are stored padded, `[E, T, ...]`: how they are read into flat rows.

A format whose files hold padded arrays gives a `PaddedSource`; the rest (slabs, trimming, cutting)
is here, once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from inspo.offline.dataset import FIELDS, FILLED, row_offsets
from inspo.offline.scratch import Allocate
from inspo.utils.errors import DatasetError

SLAB_BYTES = 4 << 20
"""Padded bytes read at a time: small beside any dataset, large beside a disk block."""


class PaddedSource(Protocol):
    """Arrays `[E, T, ...]` by key, read in slabs of episodes."""

    name: str
    """What error messages call it: a path."""

    def keys(self) -> list[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dtype(self, key: str) -> np.dtype: ...

    def read(self, key: str, first: int, end: int, n_steps: int) -> np.ndarray:
        """Episodes `first:end`, steps `:n_steps`: `[end - first, n_steps, ...]`."""
        ...

    def chunk_episodes(self, key: str) -> int:
        """Episodes that are stored in one piece: slabs are multiples of it."""
        ...


class ArraySource:
    """A `PaddedSource` over arrays in memory or mapped from disk."""

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str = "arrays in memory"):
        self.arrays = dict(arrays)
        self.name = name

    def keys(self) -> list[str]:
        return list(self.arrays)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.arrays[key].shape

    def dtype(self, key: str) -> np.dtype:
        return self.arrays[key].dtype

    def read(self, key: str, first: int, end: int, n_steps: int) -> np.ndarray:
        return self.arrays[key][first:end, :n_steps]

    def chunk_episodes(self, key: str) -> int:
        return 1


def slabs(source: PaddedSource, key: str, n_episodes: int) -> Iterator[tuple[int, int]]:
    """`(first, end)` of runs of episodes of about `SLAB_BYTES` padded bytes of `key`."""
    episode_bytes = int(np.prod(source.shape(key)[1:])) * source.dtype(key).itemsize
    chunk = max(source.chunk_episodes(key), 1)
    step = max(SLAB_BYTES // max(episode_bytes, 1) // chunk, 1) * chunk
    for first in range(0, n_episodes, step):
        yield first, min(first + step, n_episodes)


def flatten(
    source: PaddedSource, lengths: np.ndarray, first: int = 0, allocate: Allocate = np.empty
) -> dict[str, np.ndarray]:
    """The filled rows of episodes `first : first + len(lengths)`: key -> `[rows, ...]`.

    lengths: transitions to keep of each of these episodes, int64 `[E]`. allocate: gives room for
    the rows of one key. Raises DatasetError if there is none.
    """
    offsets = row_offsets(lengths)
    flat = {}
    for key, spec in FIELDS.items():
        try:
            rows = allocate((int(offsets[-1]), *source.shape(key)[2:]), spec.dtype)
        except (MemoryError, ValueError) as error:
            raise DatasetError(
                f"{source.name}: there is no memory for key '{key}' ({offsets[-1]} rows of shape "
                f"{source.shape(key)[2:]}). Use dataset.in_memory=False, or fewer episodes."
            ) from error
        for begin, end in slabs(source, key, len(lengths)):
            n_steps = int(lengths[begin:end].max()) + 1
            slab = source.read(key, first + begin, first + end, n_steps)
            mask = np.arange(n_steps) <= lengths[begin:end, None]
            rows[offsets[begin] : offsets[end]] = slab[mask]
        flat[key] = rows
    return flat


def read_filled(source: PaddedSource, n_episodes: int) -> Iterator[tuple[int, np.ndarray]]:
    """`(first episode, filled [e, T])` slab by slab, with the values as stored."""
    n_steps = source.shape(FILLED)[1]
    for first, end in slabs(source, FILLED, n_episodes):
        yield first, source.read(FILLED, first, end, n_steps)[..., 0]
