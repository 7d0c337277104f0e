"""The canonical file: one HDF5 file in CFCQL's layout, metadata in the attributes of its root.

Foreign files of this layout (CFCQL's own) are read too; their metadata are inferred.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inspo.offline.formats.common import (
    EXISTS,
    MAX_COMPRESSION,
    Hints,
    describe_content,
    read_padded,
)
from inspo.offline.offline_dataset import (
    FILLED,
    DatasetMetadata,
    OfflineDataset,
)
from inspo.offline.padded import STORED, PaddedSource
from inspo.offline.validation import damaged
from inspo.utils.errors import DatasetError, reason_of

NAME = "canonical"
DESCRIPTION = "HDF5 in CFCQL's layout, with or without our metadata"

FORMAT = "offline-marl-dataset"
FORMAT_VERSION = 1
OURS = {"format", "format_version", "content_hash"}
"""A file with any of these attributes is held to all of them."""


# ------------------------------------------------------------------------------------ reading


def recognises(path: Path) -> bool:
    """Whether it is a file in HDF5, with or without a user block."""
    if not path.is_file():
        return False
    with open(path, "rb"):  # for the error of one that may not be read
        return bool(h5py.is_hdf5(path))


def load(path: Path, hints: Hints) -> OfflineDataset:
    """Read the whole file; at most about 1.2 times the flat data is in memory at a time."""
    with open_source(path) as source:
        metadata = read_metadata(source)
        battle_won = read_battle_won(source) if metadata else None
        return read_padded(
            source,
            hints,
            metadata=metadata,
            battle_won=battle_won,
            origin=f"converted from {path.name} (HDF5 in CFCQL's layout, no metadata)",
        )


@contextlib.contextmanager
def _translated(path: Path | str, doing: str) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into one DatasetError; only h5py runs inside."""
    try:
        yield
    except Exception as error:
        raise DatasetError(
            f"{path}: the HDF5 file is truncated or damaged ({doing}: {reason_of(error)}). An "
            "interrupted copy or download looks like this: fetch, collect or convert it again."
        ) from error


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Hdf5Source]:
    """The file as a `PaddedSource`; DatasetError names what keeps it from being one."""
    try:
        known = recognises(path)
        content = describe_content(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not known:
        raise DatasetError(f"{path}: expected an HDF5 file, found {content}.")
    with _translated(path, "opening it"):
        # Without locks: they fail on some network disks, and a file under its name is complete.
        file = h5py.File(path, "r", locking=False)
    try:
        yield Hdf5Source(file, path)
    finally:
        with contextlib.suppress(Exception):
            file.close()


class Hdf5Source(PaddedSource):
    """A `PaddedSource` over an open HDF5 file."""

    def __init__(self, file: h5py.File, path: Path):
        super().__init__({}, str(path))
        self.file = file
        self._size = os.path.getsize(path)
        with _translated(path, "listing its keys"):
            self._names = [name if isinstance(name, str) else repr(name) for name in file]
        self.arrays = {key: self._dataset(key) for key in self._names if key in STORED}

    def _dataset(self, key: str) -> Any:
        with _translated(self.name, f"key '{key}'"):
            hard = isinstance(self.file.get(key, getlink=True), h5py.HardLink)
            item: Any = self.file[key] if hard else None
            inside = isinstance(item, h5py.Dataset) and not (item.is_virtual or item.external)
            size = math.prod(item.shape) * item.dtype.itemsize if inside else 0
        if not inside:
            found = "a group, or a link to another file, which is not followed"
            raise damaged(f"{self.name}: key '{key}'", "an array stored in the file", found)
        if size > MAX_COMPRESSION * self._size:
            held = f"at most what a file of {self._size} bytes can hold"
            raise damaged(f"{self.name}: key '{key}'", held, f"a claim of {size} bytes")
        return item

    def keys(self) -> list[str]:
        return self._names

    def chunk_episodes(self, key: str) -> int:
        chunks = self.arrays[key].chunks
        # Beyond the limit an aligned slab would cost more memory than it saves time.
        return chunks[0] if chunks and chunks[0] * self.episode_bytes(key) <= 64 << 20 else 1

    def read(self, key: str, first: int, end: int, n_steps: int) -> np.ndarray:
        with _translated(self.name, f"reading '{key}', episodes {first} to {end - 1}"):
            return super().read(key, first, end, n_steps)

    def attributes(self) -> dict[str, Any]:
        with _translated(self.name, "reading its attributes"):
            return dict(self.file.attrs.items())


def read_metadata(source: Hdf5Source) -> DatasetMetadata | None:
    """The metadata in the attributes; None for a file that is not ours."""
    attributes = source.attributes()
    if not OURS & attributes.keys():
        return None
    if _parse(source.name, attributes, "format", "str") != FORMAT:
        raise damaged(
            f"{source.name}: attribute 'format'", f"'{FORMAT}'", repr(attributes["format"])
        )
    version = _parse(source.name, attributes, "format_version", "int")
    if version > FORMAT_VERSION:
        raise DatasetError(
            f"{source.name}: attribute 'format_version' is {version}, this program knows up to "
            f"{FORMAT_VERSION}. Update the program."
        )
    values = {
        item.name: _parse(source.name, attributes, item.name, str(item.type))
        for item in fields(DatasetMetadata)
    }
    return DatasetMetadata(**values)


KINDS: tuple[tuple[str, Any, Callable[[Any], Any]], ...] = (
    ("int", (int, np.integer), int),
    ("float", (float, np.floating), float),
    ("str", str, str),
    ("tuple", str, lambda text: tuple(line for line in text.split("\n") if line)),
)
"""Beginnings of annotations, what HDF5 gives for them, and what becomes of it."""


def _parse(name: str, attributes: Mapping[str, Any], key: str, kind: str) -> Any:
    """One attribute as the type `kind` that the annotation of `DatasetMetadata` states."""
    value = attributes.get(key)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if value is None and kind.endswith("| None"):
        return None
    for name_of, accepted, make in KINDS:
        if kind.startswith(name_of) and isinstance(value, accepted):
            return make(value)
    raise damaged(f"{name}: attribute '{key}'", kind, f"{value!r:.80}")


def read_battle_won(source: Hdf5Source) -> np.ndarray | None:
    """Who won each episode, uint8 `[E]`, from the attribute of that name (one bit an episode)."""
    packed = source.attributes().get("battle_won")
    if packed is None or FILLED not in source.arrays or not source.shape(FILLED):
        return None
    n_episodes = source.shape(FILLED)[0]
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.shape != (-(-n_episodes // 8),):
        expected = f"uint8 [{-(-n_episodes // 8)}] (one bit an episode)"
        found = f"{packed.dtype} {packed.shape}"
        raise damaged(f"{source.name}: attribute 'battle_won'", expected, found)
    return np.unpackbits(packed, count=n_episodes)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """DatasetError if a file may not be written at `path`."""
    if path.is_dir():
        raise DatasetError(f"{path}: a folder, expected the name of a file to write.")
    if not path.exists():
        return
    if not overwrite:
        raise DatasetError(f"{path}: {EXISTS}")
    try:
        with open_source(path) as source:
            ours = read_metadata(source) is not None
    except DatasetError:
        ours = False
    if not ours:
        raise DatasetError(
            f"{path}: is not a whole dataset that this program wrote, and is never replaced. "
            "Choose another name, or remove the file yourself."
        )
