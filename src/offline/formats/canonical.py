"""The canonical file: one HDF5 file in CFCQL's layout, metadata in the attributes of its root.

Foreign files of this layout (CFCQL's own) are read too; their metadata are inferred.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from inspo.offline import files
from inspo.offline.formats.common import MAX_COMPRESSION, Hints, describe_content, read_padded
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
from inspo.utils.errors import DatasetError

NAME = "canonical"
DESCRIPTION = "HDF5 in CFCQL's layout, with or without our metadata"

FORMAT = "offline-marl-dataset"
FORMAT_VERSION = 1
CHUNK_BYTES = 1 << 20
BLOCK = 64  # episodes padded at a time
# Readable since HDF5 1.10 (2016). Older structures carry no checksums, and HDF5 crashes the process
# on some damaged ones; so do strings of variable length, which is why ours have fixed lengths.
LIBVER = ("v110", "v110")


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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(
            f"{path}: the HDF5 file is truncated or damaged ({doing}: {reason}). An interrupted "
            "copy or download looks like this: fetch, collect or convert it again."
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
            raise DatasetError(
                f"{self.name}: key '{key}' is no dataset of this file (a group, or a link to "
                "another file, which is not followed). Expected an array stored in the file."
            )
        if size > MAX_COMPRESSION * self._size:
            raise DatasetError(
                f"{self.name}: key '{key}' claims {size} bytes, which a file of {self._size} "
                "bytes cannot hold: it is truncated or damaged. Fetch or collect it again."
            )
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
    if "format" not in attributes:
        return None
    if _parse(source.name, attributes, "format", "str") != FORMAT:
        raise DatasetError(
            f"{source.name}: attribute 'format': expected '{FORMAT}', found "
            f"'{attributes['format']}'. This program does not know that format."
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


def _parse(name: str, attributes: Mapping[str, Any], key: str, kind: str) -> Any:
    """One attribute as the type `kind` that the annotation of `DatasetMetadata` states."""
    value = attributes.get(key)
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if value is None and kind.endswith("| None"):
        return None
    if kind == "int" and isinstance(value, (int, np.integer)):
        return int(value)
    if kind.startswith("float") and isinstance(value, (float, np.floating)):
        return float(value)
    if kind.startswith("str") and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, str):
        return tuple(line for line in value.split("\n") if line)
    raise DatasetError(
        f"{name}: attribute '{key}': expected {kind}, found {value!r:.80}. The file is damaged or "
        "was changed: collect or convert it again."
    )


def read_battle_won(source: Hdf5Source) -> np.ndarray | None:
    """Who won each episode, uint8 `[E]`, from the attribute of that name (one bit an episode)."""
    packed = source.attributes().get("battle_won")
    if packed is None:
        return None
    n_episodes = source.shape(FILLED)[0] if FILLED in source.arrays else 0
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.shape != (-(-n_episodes // 8),):
        raise DatasetError(
            f"{source.name}: attribute 'battle_won': expected uint8 [{-(-n_episodes // 8)}] (one "
            f"bit an episode), found {packed.dtype} {packed.shape}. The file was changed: collect "
            "or convert it again."
        )
    return np.unpackbits(packed, count=n_episodes)


# ------------------------------------------------------------------------------------ writing

ADVICE = "Nothing of these episodes was written; correct the program that made them."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """DatasetError if a file may not be written at `path`."""
    if path.is_dir():
        raise DatasetError(f"{path}: a folder, expected the name of a file to write.")
    if not path.exists():
        return
    if not overwrite:
        raise DatasetError(
            f"{path}: exists already and is not overwritten. Choose another name, remove it, or "
            "use --force."
        )
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
        self._lengths: list[np.ndarray] = []  # and what else is known of the episodes of each batch
        self._returns: list[np.ndarray] = []
        self._terminated: list[np.ndarray] = []
        self._won: list[np.ndarray] = []

    @property
    def n_episodes(self) -> int:
        """Episodes appended so far."""
        return sum(map(len, self._lengths))

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
        self._lengths.append(lengths)
        self._terminated.append(terminated)
        self._returns.append(episode_returns(arrays["reward"], lengths))
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
        if self._lengths and (battle_won is None) != (not self._won):
            raise DatasetError(f"{self.path}: 'battle_won' is given for some batches only.")
        if battle_won is None:
            return
        battle_won = np.asarray(battle_won)
        if battle_won.shape != (n_episodes,) or not np.isin(battle_won, (0, 1)).all():
            raise DatasetError(
                f"{self.path}: 'battle_won': expected 0 or 1 for each of {n_episodes} "
                f"episodes, found {battle_won!r:.80}."
            )
        self._won.append(battle_won.astype(np.uint8))

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
        won = np.concatenate(self._won) if self._won else None
        self.metadata = complete_metadata(
            replace(self.metadata, created_by=self.metadata.created_by or program),
            returns=np.concatenate(self._returns),
            lengths=np.concatenate(self._lengths),
            terminated=np.concatenate(self._terminated),
            battle_won=won,
            digest=self._hash.hexdigest(),
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
        code = getattr(error, "errno", None)
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if code in FULL or any(f"errno = {number}," in str(error) for number in FULL):
            rows = sum(int(lengths.sum()) + len(lengths) for lengths in self._lengths)
            with contextlib.suppress(OSError):
                text = f"{shutil.disk_usage(self.path.parent).free / 1e6:.0f} MB are free"
            return DatasetError(
                f"{self.path}: the disk (or a quota) is full: the {self.n_episodes} episodes so "
                f"far need up to {rows * self.metadata.row_bytes() / 1e6:.0f} MB, {text}. Nothing "
                "was left under this name; free some space or choose another folder, and run it "
                "again."
            )
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            return DatasetError(
                f"{self.path}: no permission to write into this folder. Choose another one or "
                "change its mode."
            )
        return DatasetError(f"{self.path}: cannot be written ({text}).")


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
