"""Where the rows of a dataset lie: in memory, or in a scratch file beside the dataset.

Rows on disk are memory-mapped, flat and not compressed: an episode is one contiguous read, the
system keeps in memory what is read often, and gives it up where memory is short. The scratch file
has no name, so that the system removes it with the process, however that ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from inspo.utils.errors import DatasetError
from inspo.utils.memory import free_memory

AUTO = "auto"
SHARE_OF_FREE_MEMORY = 0.6  # the rest is for the networks, the annotations and other programs

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]
"""`allocate(shape, dtype)`: room for one key's rows."""


def allocator(in_memory: bool | str, n_bytes: int, beside: str | Path) -> Allocate:
    """How to hold `n_bytes` of rows of the dataset at `beside`.

    in_memory: True, False, or "auto", which takes memory if at most 60 % of what is free is needed.
    """
    if in_memory == AUTO:
        free = free_memory()
        in_memory = free is None or n_bytes <= SHARE_OF_FREE_MEMORY * free
    return np.empty if in_memory else lambda shape, dtype: on_disk(shape, dtype, beside)


def on_disk(shape: tuple[int, ...], dtype: np.dtype[Any], beside: str | Path) -> np.ndarray:
    """A memory map of a nameless file in the folder of `beside`, or in the temporary folder.

    Raises DatasetError if neither has room.
    """
    n_bytes = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    reasons = []
    for folder in (Path(beside).absolute().parent, Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # Reserved now: a full disk would otherwise kill the process when it writes.
                os.posix_fallocate(file.fileno(), 0, n_bytes)
                return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise DatasetError(
        f"{beside}: no room on disk for {n_bytes / 1e6:.0f} MB of unpacked rows "
        f"({'; '.join(reasons)}). Make room, set TMPDIR to a folder that has it, or use "
        "dataset.in_memory=True."
    )


def is_on_disk(array: np.ndarray) -> bool:
    return isinstance(array, np.memmap)
