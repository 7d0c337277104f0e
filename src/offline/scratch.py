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

AUTO = "auto"
SHARE_OF_FREE_MEMORY = 0.6  # the rest is for the networks, the annotations and other programs
CGROUP = Path("/sys/fs/cgroup")

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


def free_memory() -> int | None:
    """Bytes that can be had without pushing anything out; None where the system does not say."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    except OSError:
        pass
    try:  # what the limit of this control group (version 2) leaves; its file cache can be given up
        limit = int((CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((CGROUP / "memory.current").read_text())
        fields = dict(x.split() for x in (CGROUP / "memory.stat").read_text().splitlines())
        known.append(max(limit - used + int(fields["inactive_file"]), 0))
    except (OSError, ValueError, KeyError):
        pass
    return min(known, default=None)
