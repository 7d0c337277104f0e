"""Datasets that are stored padded, `[E, T, ...]`: their layout, and the way into flat rows.

A format whose files hold padded arrays gives a `PaddedSource`; the rest (rules, slabs, trimming) is
here, once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from inspo.offline.offline_dataset import FIELDS, FILLED, FILLED_FIELD, row_offsets
from inspo.offline.scratch import Allocate
from inspo.offline.validation import Rule, Tally, Violation
from inspo.utils.errors import DatasetError

SLAB_BYTES = 4 << 20
"""Padded bytes read at a time: small beside any dataset, large beside a disk block."""

STORED = {**FIELDS, FILLED: FILLED_FIELD}


class PaddedSource:
    """Arrays `[E, T, ...]` by key, read in slabs of episodes. name: a path, for errors.

    These arrays are in memory; a format that reads as it goes overrides `read`.
    """

    def __init__(self, arrays: Mapping[str, Any], name: str = "arrays in memory"):
        self.arrays = dict(arrays)
        self.name = name

    def keys(self) -> list[str]:
        return list(self.arrays)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.arrays[key].shape)

    def dtype(self, key: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.arrays[key].dtype
        return dtype

    def read(self, key: str, first: int, end: int, n_steps: int) -> np.ndarray:
        """Episodes `first:end`, steps `:n_steps`: `[end - first, n_steps, ...]`."""
        return np.asarray(self.arrays[key][first:end, :n_steps])

    def chunk_episodes(self, key: str) -> int:
        """Episodes that are stored in one piece: slabs are multiples of it."""
        return 1

    def episode_bytes(self, key: str) -> int:
        return int(np.prod(self.shape(key)[1:])) * self.dtype(key).itemsize

    def slabs(self, key: str, n_episodes: int) -> Iterator[tuple[int, int]]:
        """`(first, end)` of runs of episodes of about `SLAB_BYTES` padded bytes of `key`."""
        chunk = max(self.chunk_episodes(key), 1)
        step = max(SLAB_BYTES // max(self.episode_bytes(key), 1) // chunk, 1) * chunk
        for first in range(0, n_episodes, step):
            yield first, min(first + step, n_episodes)


# --------------------------------------------------------------------------------------- the rules

SIZES = {"E": "episodes", "T": "time steps", "n": "agents", "A": "actions"}


def check_layout(
    source: PaddedSource, episode_limit: int | None = None, cast: bool = False
) -> list[Violation]:
    """Keys, dtypes and shapes. episode_limit: where it is known, T must be one more. cast: numbers
    of another dtype will do, since `flatten` casts them."""
    broken: list[Violation] = []
    sizes: dict[str, tuple[int, str]] = {}  # dimension -> size, the first key that has it
    present = source.keys()
    for key, spec in STORED.items():
        if key not in present:
            only = f"only {', '.join(sorted(present))}"
            broken.append(Violation("missing_key", key, f"a dataset '{key}'", only))
            continue
        shape, dtype = source.shape(key), source.dtype(key)
        if dtype.newbyteorder("=") != spec.dtype and not (cast and castable(dtype)):
            broken.append(Violation("wrong_dtype", key, str(spec.dtype), str(dtype)))
        dims = ("E", "T", *spec.dims)
        described = f"[{', '.join(map(str, dims))}]"
        if len(shape) != len(dims):
            expected = f"{len(dims)} dimensions {described}"
            broken.append(Violation("wrong_ndim", key, expected, str(shape)))
            continue
        for dim, size in zip(dims, shape):
            if isinstance(dim, int) or (size == 0 and dim != "E"):
                if size != dim:
                    positive = "" if isinstance(dim, int) else f" with {dim} > 0"
                    expected = f"shape {described}{positive}"
                    broken.append(Violation("wrong_shape", key, expected, str(shape)))
                continue
            agreed, first = sizes.setdefault(dim, (size, key))
            if agreed != size:
                expected = f"{agreed} {SIZES.get(dim, dim)} as '{first}' has"
                broken.append(Violation("sizes_disagree", key, expected, str(size)))
    n_episodes, key = sizes.get("E", (1, ""))
    if n_episodes == 0:
        broken.append(Violation("zero_episodes", key, "at least 1 episode", "0"))
    n_steps, key = sizes.get("T", (0, ""))
    if n_steps and episode_limit is not None and n_steps != episode_limit + 1:
        expected = f"T = episode_limit + 1 = {episode_limit + 1} time steps"
        broken.append(Violation("wrong_length", key, expected, str(n_steps)))
    return broken


def castable(dtype: np.dtype[Any]) -> bool:
    """Whether `flatten` can cast arrays of this dtype, if their values allow it."""
    return dtype.kind in "biuf"


def _resumed(filled: np.ndarray) -> np.ndarray:
    resumed = np.zeros(filled.shape, dtype=bool)
    resumed[:, 1:] = (filled[:, 1:] != 0) & (filled[:, :-1] == 0)
    return resumed


RESUMED = "a filled step after one that is not"
LONG_ENOUGH = "at least 1 transition and the terminal observation"
FILLED_RULES: tuple[Rule[np.ndarray], ...] = (
    Rule(
        "filled_values",
        FILLED,
        "0 or 1",
        lambda f: (f != 0) & (f != 1),
        lambda f, k, at: str(f[at]),
    ),
    Rule("filled_prefix", FILLED, "ones, then zeros", _resumed, lambda f, k, at: RESUMED),
    Rule(
        "empty_episode",
        FILLED,
        LONG_ENOUGH,
        lambda f: (f != 0).sum(axis=1) < 2,
        lambda f, k, at: f"{(f[at] != 0).sum()} filled steps",
    ),
)
"""Masks `[e, T]` or `[e]` of what is wrong with `filled` `[e, T]`."""


def check_filled(source: PaddedSource) -> tuple[np.ndarray, list[Violation]]:
    """The number of transitions of each episode, int64 `[E]`, and what is wrong with `filled`.

    The lengths mean something only where nothing is wrong.
    """
    n_episodes, n_steps = source.shape(FILLED)[:2]
    lengths = np.zeros(n_episodes, dtype=np.int64)
    tally = Tally()
    for first, end in source.slabs(FILLED, n_episodes):
        filled = source.read(FILLED, first, end, n_steps)[..., 0]
        lengths[first:end] = (filled != 0).sum(axis=1) - 1
        for rule in FILLED_RULES:
            tally.add(rule, filled, first)
    return lengths, tally.violations()


# ----------------------------------------------------------------------------------------- reading


def flatten(
    source: PaddedSource,
    lengths: np.ndarray,
    allocate: Allocate = np.empty,
    read: Callable[[int], None] = lambda n_bytes: None,
) -> dict[str, np.ndarray]:
    """The filled rows of all episodes: key -> `[rows, ...]`.

    lengths: transitions to keep of each episode, int64 `[E]`. allocate: gives room for the rows of
    one key. read: told after each slab how many bytes of rows it had. Numbers of another dtype are
    cast: floats may be rounded, all else must be exact. Raises DatasetError if there is no room, or
    a value that the key's dtype cannot hold.
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
        for first, end in source.slabs(key, len(lengths)):
            n_steps = int(lengths[first:end].max()) + 1
            mask = np.arange(n_steps) <= lengths[first:end, None]
            values = source.read(key, first, end, n_steps)[mask]
            rows[offsets[first] : offsets[end]] = cast_exactly(values, spec.dtype, source.name, key)
            read(values.size * rows.itemsize)
        flat[key] = rows
    return flat


def cast_exactly(values: np.ndarray, dtype: np.dtype[Any], name: str, key: str) -> np.ndarray:
    """`values` as `dtype`; DatasetError, naming the first that it cannot hold. Floats may be
    rounded to floats."""
    if values.dtype.newbyteorder("=") == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
        rounding = dtype.kind == "f" and values.dtype.kind == "f"
        lost = np.isfinite(values) & ~np.isfinite(cast) if rounding else cast != values
    if lost.any():
        raise DatasetError(
            f"{name}: key '{key}': expected values that {dtype} can hold, found "
            f"{values[lost][0]} ({values.dtype}). Correct the program that made them."
        )
    return cast
