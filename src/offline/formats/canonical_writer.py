"""Writes the canonical file: batch by batch, validated, named only when it is whole."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from inspo.offline.formats.canonical import FORMAT, FORMAT_VERSION, refuse_existing
from inspo.offline.offline_dataset import (
    FILLED,
    FILLED_FIELD,
    ContentHash,
    DatasetMetadata,
    OfflineDataset,
    complete_metadata,
    ends_terminated,
    episode_returns,
)
from inspo.offline.padded import STORED, PaddedSource, check_filled, check_layout, flatten
from inspo.offline.validation import require_valid, validate
from inspo.utils import files
from inspo.utils.errors import DatasetError, reason_of

CHUNK_BYTES = 1 << 20
BLOCK = 64  # episodes padded at a time
# Readable since HDF5 1.10 (2016). Older structures carry no checksums, and HDF5 crashes the process
# on some damaged ones; so do strings of variable length, which is why ours have fixed lengths.
LIBVER = ("v110", "v110")
ADVICE = "Nothing of these episodes was written; correct the program that made them."


class CanonicalWriter:
    """Writes a dataset file, batch by batch.

        with CanonicalWriter(path, metadata) as writer:
            writer.append(batch, battle_won)      # padded [b, T, ...], as an EpisodeBatch holds it
        writer.metadata                           # now with statistics and content hash

    Everything goes into a temporary file in the same folder, which gets the final name when the
    block ends without an exception, and is removed otherwise. Batches are validated as they come.

    metadata: its computed half is ignored. overwrite: replace a dataset of ours (only at the end).
    allow_cut: accept episodes that end early without a terminal (the simulator crashed).
    Raises DatasetError: the target exists, the folder cannot be written, the disk is full, a batch
    breaks a rule, or nothing was appended.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: DatasetMetadata,
        *,
        overwrite: bool = False,
        allow_cut: bool = False,
    ):
        self.path = Path(path)
        self.metadata = metadata
        self._overwrite = overwrite
        self._allow_cut = allow_cut
        self._stack = contextlib.ExitStack()
        # Held until the end: a handle that goes away writes what it has cached, and an error there
        # would be lost.
        self._datasets: dict[str, h5py.Dataset] = {}
        self._hash = ContentHash()
        self._episodes: dict[str, list[np.ndarray]] = defaultdict(list)  # `[b]` of each batch

    @property
    def n_episodes(self) -> int:
        """Episodes appended so far."""
        return sum(map(len, self._episodes["lengths"]))

    def __enter__(self) -> CanonicalWriter:
        refuse_existing(self.path, self._overwrite)
        try:
            self._temporary = self._stack.enter_context(files.temporary(self.path))
            self._file = h5py.File(
                self._temporary, "w", libver=LIBVER, rdcc_nbytes=4 * CHUNK_BYTES, locking=False
            )
        except OSError as error:
            self._stack.close()
            raise self._cannot_write(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:  # removes the temporary file, if it still has that name
            try:
                if kind is None:
                    self._finish()
            finally:
                if self._file:
                    self._abandon()

    def append(self, batch: Mapping[str, Any], battle_won: np.ndarray | None = None) -> None:
        """Add padded episodes.

        batch: the keys of the canonical dataset, `[b, T, ...]` with T at most episode_limit + 1;
        what stands beyond `filled` is dropped. battle_won: `[b]`, bool or 0/1; either always given
        or never. Other keys of the batch are not stored.
        """
        name = f"{self.path}: episodes from {self.n_episodes} on"
        source = PaddedSource({key: _as_field(key, batch[key]) for key in STORED if key in batch})
        require_valid(check_layout(source), name, ADVICE)
        lengths, broken = check_filled(source)
        require_valid(broken, name, ADVICE)
        arrays = flatten(source, lengths)
        terminated = ends_terminated(arrays["terminated"], lengths)
        n_cut = int(((lengths < self.metadata.episode_limit) & ~terminated).sum())
        metadata = replace(self.metadata, n_cut=n_cut if self._allow_cut else 0)
        require_valid(validate(OfflineDataset(arrays, lengths, metadata)), name, ADVICE)
        self._remember_victories(battle_won, len(lengths))
        self._episodes["lengths"].append(lengths)
        self._episodes["terminated"].append(terminated)
        self._episodes["returns"].append(episode_returns(arrays["reward"], lengths))
        self._hash.update(arrays, lengths)
        mask = np.arange(self.metadata.episode_limit + 1) <= lengths[:, None]
        try:
            for key, rows in arrays.items():
                padded = np.zeros((*mask.shape, *rows.shape[1:]), dtype=rows.dtype)
                padded[mask] = rows
                self._extend(key, padded)
            self._extend(FILLED, mask[..., None].astype(FILLED_FIELD.dtype))
        except (OSError, RuntimeError) as error:
            raise self._cannot_write(error) from error

    def _remember_victories(self, battle_won: np.ndarray | None, n_episodes: int) -> None:
        if self.n_episodes and (battle_won is None) != ("battle_won" not in self._episodes):
            raise DatasetError(f"{self.path}: 'battle_won' is given for some batches only.")
        if battle_won is None:
            return
        battle_won = np.asarray(battle_won)
        if battle_won.shape != (n_episodes,) or not np.isin(battle_won, (0, 1)).all():
            raise DatasetError(
                f"{self.path}: 'battle_won': expected 0 or 1 for each of {n_episodes} "
                f"episodes, found {battle_won!r:.80}."
            )
        self._episodes["battle_won"].append(battle_won.astype(np.uint8))

    def _extend(self, key: str, padded: np.ndarray) -> None:
        """Append `[b, T, ...]` to the dataset `key`, made with the first batch."""
        if key not in self._datasets:
            chunk = min(max(CHUNK_BYTES // max(padded[:1].nbytes, 1), 1), 1024)
            self._datasets[key] = self._file.create_dataset(
                key,
                shape=(0, *padded.shape[1:]),
                maxshape=(None, *padded.shape[1:]),
                chunks=(chunk, *padded.shape[1:]),
                dtype=padded.dtype,
                compression="gzip",
                compression_opts=1,
                shuffle=True,
                fletcher32=True,
            )
        dataset = self._datasets[key]
        first = len(dataset)
        dataset.resize(first + len(padded), axis=0)
        dataset[first:] = padded

    def _finish(self) -> None:
        """Write the metadata, make sure all is on disk, give the file its name."""
        if not self.n_episodes:
            raise DatasetError(f"{self.path}: no episode was written. Append at least one.")
        program = f"{FORMAT} {FORMAT_VERSION}, h5py {h5py.__version__}"
        known = {name: np.concatenate(parts) for name, parts in self._episodes.items()}
        won = known.pop("battle_won", None)
        self.metadata = complete_metadata(
            replace(self.metadata, created_by=self.metadata.created_by or program),
            battle_won=won,
            digest=self._hash.hexdigest(),
            **known,
        )
        try:
            self._write_attributes(won)
            self._file.flush()
            self._file.close()
            files.sync(self._temporary)
            refuse_existing(self.path, self._overwrite)
            os.replace(self._temporary, self.path)
        except (OSError, RuntimeError) as error:
            raise self._cannot_write(error) from error
        with contextlib.suppress(OSError):  # not every file system syncs folders
            files.sync(self.path.parent)

    def _write_attributes(self, battle_won: np.ndarray | None) -> None:
        attributes = self._file.attrs
        attributes["format"] = _fixed(FORMAT)
        attributes["format_version"] = FORMAT_VERSION
        for item in fields(DatasetMetadata):
            value = getattr(self.metadata, item.name)
            if isinstance(value, tuple):
                value = "\n".join(value)
            if value is not None:
                attributes[item.name] = _fixed(value) if isinstance(value, str) else value
        if battle_won is not None:
            # One bit an episode: even attributes of at most 64 KB hold half a million.
            attributes["battle_won"] = np.packbits(battle_won)

    def _abandon(self) -> None:
        """Close the file, and let what HDF5 has yet to write go nowhere instead of to the disk.

        On a full disk closing fails halfway and HDF5 then crashes the process (2.0, h5py 3.16).
        """
        nowhere = os.open(os.devnull, os.O_RDWR)
        with contextlib.suppress(Exception):
            os.dup2(nowhere, self._file.id.get_vfd_handle())
        os.close(nowhere)
        self._datasets.clear()
        with contextlib.suppress(Exception):
            self._file.close()

    def _cannot_write(self, error: Exception) -> DatasetError:
        of_system = re.search(r"error message = '([^']+)'", str(error))  # inside of HDF5's
        reason = of_system[1] if of_system else getattr(error, "strerror", "") or reason_of(error)
        rows = sum(int(lengths.sum()) + len(lengths) for lengths in self._episodes["lengths"])
        return DatasetError(
            f"{self.path}: cannot be written: {reason}. The {self.n_episodes} episodes so far need "
            f"up to {rows * self.metadata.row_bytes() / 1e6:.0f} MB. Nothing was left under this "
            "name: make room, correct the folder's rights or choose another one, and run it again."
        )


def _as_field(key: str, value: Any) -> np.ndarray:
    """`value` in the dtype of the key, where that loses no more than rounding."""
    array = np.asarray(value)
    castable = np.can_cast(array.dtype, STORED[key].dtype, "same_kind")
    return array.astype(STORED[key].dtype, copy=False) if castable else array


def _fixed(text: str) -> np.ndarray:
    """A string of fixed length, in UTF-8, as HDF5 stores it inside an attribute."""
    encoded = text.encode()
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(len(encoded), 1)))


def write_dataset(
    path: str | os.PathLike[str], dataset: OfflineDataset, *, overwrite: bool = False
) -> DatasetMetadata:
    """Write a dataset as a canonical file; returns the metadata as stored.

    Raises DatasetError as `CanonicalWriter` does.
    """
    allow_cut = dataset.metadata.n_cut > 0
    with CanonicalWriter(
        path, dataset.metadata, overwrite=overwrite, allow_cut=allow_cut
    ) as writer:
        append_episodes(writer, dataset, np.arange(len(dataset)))
    return writer.metadata


def append_episodes(
    writer: CanonicalWriter, dataset: OfflineDataset, indices: np.ndarray, with_won: bool = True
) -> None:
    """Append these episodes of a dataset, of which no more than some are padded at a time."""
    for first in range(0, len(indices), BLOCK):
        chosen = indices[first : first + BLOCK]
        won = dataset.battle_won[chosen] if with_won and dataset.battle_won is not None else None
        writer.append(dataset.episodes(chosen), won)
