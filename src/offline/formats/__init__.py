"""The formats that can be read. A new one is one file here and one line in `REGISTRY`.

A format is a module with `NAME`, `DESCRIPTION`, `recognises(path) -> bool` (by content, not by
name) and `load(path, hints) -> OfflineDataset` (validated; DatasetError otherwise). One that can be
written too has `write(path, dataset, overwrite=False)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from inspo.offline.formats import alberdice, canonical, folders, vault
from inspo.offline.formats.common import PICKLE, Hints, describe_content
from inspo.offline.offline_dataset import OfflineDataset
from inspo.offline.validation import check_matches
from inspo.utils.errors import DatasetError
from inspo.utils.phases import Phase

REGISTRY: dict[str, ModuleType] = {module.NAME: module for module in (canonical, alberdice, vault)}

WAY_ROUND = (
    "OMIGA's SMAC data are such files. The same data are published as OG-MARL's vaults, which are "
    "read: `python src/dataset.py download omiga/MAP`. Others must be written anew by the program "
    "that made them, as HDF5 or .npy."
)


def recognise(path: str | os.PathLike[str]) -> str:
    """The name in `REGISTRY` of the format of a file or folder.

    Raises DatasetError: nothing there, no permission, or a format that nobody here knows.
    """
    path = Path(path)
    try:
        folders.restore(path)
        if path.is_symlink() and not path.exists():
            raise DatasetError(f"{path}: is a link that leads nowhere. Correct the link.")
        if not path.exists():
            raise DatasetError(
                f"{path}: there is no such file or folder. Collect or download the dataset, or "
                "correct dataset.path."
            )
        for name, module in REGISTRY.items():
            if module.recognises(path):
                return name
        content = describe_content(path)
    except PermissionError:
        raise DatasetError(f"{path}: no permission to read it. Change its mode or owner.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if PICKLE in content:
        raise DatasetError(f"{path}: found {content}. {WAY_ROUND}")
    known = "; ".join(f"{name}: {module.DESCRIPTION}" for name, module in REGISTRY.items())
    raise DatasetError(f"{path}: no known dataset: found {content}. Known formats: {known}.")


def load_dataset(
    path: str | os.PathLike[str],
    *,
    env: str | None = None,
    map_name: str | None = None,
    quality: str | None = None,
    env_info: Mapping[str, Any] | None = None,
    episode_limit: int | None = None,
    in_memory: bool | str = True,
    cast: bool = False,
    advise: Callable[[dict[str, int]], str] | None = None,
    phase: Callable[..., Phase] = Phase,
) -> OfflineDataset:
    """Read and validate a dataset of any known format.

    env, map_name, quality: recorded where the file is silent; a file that states another map_name
    is refused. env_info: the numbers of `get_env_info`, which the data must match. episode_limit:
    longer episodes are cut there (and bootstrap from there). in_memory: False holds the rows in a
    scratch file on disk, "auto" chooses by size against free memory. cast: take numbers of other
    dtypes where the canonical ones can hold them, floats rounded, and note it. advise: what to do
    with data of these numbers that do not match, for the error. phase: begins the phase of reading.
    Raises DatasetError: one message with file, key, expected, found, and what to do.
    """
    path = Path(path)
    hints = Hints(env, map_name, quality, episode_limit, in_memory, cast, phase)
    dataset: OfflineDataset = REGISTRY[recognise(path)].load(path, hints)
    check_matches(dataset.metadata, env_info, map_name, str(path), advise)
    return dataset
