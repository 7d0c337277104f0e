"""The canonical file: one HDF5 file in CFCQL's layout, metadata in the attributes of its root.

Foreign files of this layout (CFCQL's own) are read too; their metadata are inferred.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from inspo.offline.dataset import (
    FIELDS,
    FILLED,
    FILLED_FIELD,
    ContentHash,
    DatasetMetadata,
    OfflineDataset,
    complete_metadata,
    ends_terminated,
    episode_returns,
)
from inspo.offline.formats.common import Hints, describe_content, read_padded
from inspo.offline.padded import ArraySource, flatten
from inspo.offline.validation import check_filled, check_layout, require_valid, validate
from inspo.utils.errors import DatasetError

NAME = "canonical"
DESCRIPTION = "HDF5 in CFCQL's layout, with or without our metadata"

FORMAT = "offline-marl-dataset"
FORMAT_VERSION = 1
SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHUNK_BYTES = 1 << 20
# Readable since HDF5 1.10 (2016). Older structures carry no checksums, and HDF5 crashes the process
# on some damaged ones; so do strings of variable length, which is why ours have fixed lengths.
LIBVER = ("v110", "v110")
# Deflate packs at most about 1030 to 1: a file that claims more than this is damaged.
MAX_COMPRESSION = 1100

# What h5py raises on damaged files; nothing of ours runs inside `_translated`.
H5_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    MemoryError,
    OverflowError,
    AttributeError,
    NotImplementedError,
    SystemError,
)


# ------------------------------------------------------------------------------------ reading


def recognises(path: Path) -> bool:
    """Whether the file begins as HDF5 does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


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
    """Turn what h5py raises on a damaged file into one DatasetError."""
    try:
        yield
    except H5_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatasetError(
            f"{path}: the HDF5 file is truncated or damaged ({doing}: {reason}). An interrupted "
            "copy or download looks like this: fetch, collect or convert it again."
        ) from error


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Hdf5Source]:
    """The file as a `PaddedSource`; DatasetError names what keeps it from being one."""
    try:
        content = describe_content(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file.") from None
    except PermissionError:
        raise DatasetError(f"{path}: no permission to read it. Change its mode or owner.") from None
    except IsADirectoryError:
        raise DatasetError(f"{path}: a folder, expected an HDF5 file.") from None
    if not recognises(path):
        raise DatasetError(f"{path}: expected an HDF5 file, found {content}.")
    with _translated(path, "opening it"):
        # Without locks: they fail on some network disks, and a file under its name is complete.
        file = h5py.File(path, "r", locking=False)
    try:
        yield Hdf5Source(file, path)
    finally:
        with contextlib.suppress(*H5_ERRORS):
            file.close()


class Hdf5Source:
    """A `PaddedSource` over an open HDF5 file."""

    def __init__(self, file: h5py.File, path: Path):
        self.file = file
        self.name = str(path)
        self._size = os.path.getsize(path)
        self._datasets: dict[str, h5py.Dataset] = {}
        with _translated(path, "listing its keys"):
            names = [name if isinstance(name, str) else repr(name) for name in file]
        for key in names:
            if key in FIELDS or key == FILLED:
                self._datasets[key] = self._dataset(key)
        self._names = names

    def _dataset(self, key: str) -> h5py.Dataset:
        with _translated(self.name, f"key '{key}'"):
            hard = isinstance(self.file.get(key, getlink=True), h5py.HardLink)
            item = self.file[key] if hard else None
            inside = isinstance(item, h5py.Dataset) and not (item.is_virtual or item.external)
            size = int(np.prod(item.shape, dtype=object)) * item.dtype.itemsize if inside else 0
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

    def shape(self, key: str) -> tuple[int, ...]:
        return self._datasets[key].shape

    def dtype(self, key: str) -> np.dtype:
        return self._datasets[key].dtype

    def chunk_episodes(self, key: str) -> int:
        chunks = self._datasets[key].chunks
        # Beyond the limit an aligned slab would cost more memory than it saves time.
        return chunks[0] if chunks and chunks[0] * self._episode_bytes(key) <= 64 << 20 else 1

    def read(self, key: str, first: int, end: int, n_steps: int) -> np.ndarray:
        with _translated(self.name, f"reading '{key}', episodes {first} to {end - 1}"):
            return self._datasets[key][first:end, :n_steps]

    def attributes(self) -> dict[str, Any]:
        with _translated(self.name, "reading its attributes"):
            return dict(self.file.attrs.items())

    def _episode_bytes(self, key: str) -> int:
        dataset = self._datasets[key]
        return int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize


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
    optional = kind.endswith("| None")
    if value is None and optional:
        return None
    try:
        if kind == "int" and isinstance(value, (int, np.integer)):
            return int(value)
        if kind.startswith("float") and isinstance(value, (float, np.floating)):
            return float(value)
        if kind.startswith("str") and isinstance(value, str):
            return value
        if kind.startswith("tuple") and isinstance(value, str):
            return tuple(line for line in value.split("\n") if line)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DatasetError(
        f"{name}: attribute '{key}': expected {kind}, found {value!r:.80}. The file is damaged or "
        "was changed: collect or convert it again."
    )


def read_battle_won(source: Hdf5Source) -> np.ndarray | None:
    """Who won each episode, uint8 `[E]`, from the attribute of that name (one bit an episode)."""
    packed = source.attributes().get("battle_won")
    if packed is None:
        return None
    keys = source.keys()
    n_episodes = source.shape(FILLED)[0] if FILLED in keys else 0
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.shape != (-(-n_episodes // 8),):
        raise DatasetError(
            f"{source.name}: attribute 'battle_won': expected uint8 [{-(-n_episodes // 8)}] (one "
            f"bit an episode), found {packed.dtype} {packed.shape}. The file was changed: collect "
            "or convert it again."
        )
    return np.unpackbits(packed, count=n_episodes)


# ------------------------------------------------------------------------------------ writing


class CanonicalWriter:
    """Writes a dataset file, batch by batch.

        with CanonicalWriter(path, metadata) as writer:
            writer.append(batch, battle_won)      # padded [b, T, ...], as an EpisodeBatch holds it
        writer.metadata                           # now with statistics and content hash

    Everything goes into a temporary file in the same folder, which gets the final name when the
    block ends without an exception, and is removed otherwise. Batches are validated as they come.

    metadata: its computed half is ignored. overwrite: replace an existing file (only at the end).
    allow_cut: accept episodes that end early without a terminal (the simulator crashed).
    Raises DatasetError: the target exists, the folder cannot be written, the disk is full, a batch
    breaks a rule, or nothing was appended.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        metadata: DatasetMetadata,
        *,
        overwrite: bool = False,
        allow_cut: bool = False,
    ):
        self.path = Path(path)
        self.metadata = metadata
        self._overwrite = overwrite
        self._allow_cut = allow_cut
        self._file: h5py.File | None = None
        # Held until the end: a handle that goes away writes what it has cached, and an error there
        # would be lost.
        self._datasets: dict[str, h5py.Dataset] = {}
        self._hash = ContentHash()
        self._per_episode: dict[str, list[np.ndarray]] = {
            "returns": [],
            "lengths": [],
            "terminated": [],
            "battle_won": [],
        }

    @property
    def n_episodes(self) -> int:
        """Episodes appended so far."""
        return sum(map(len, self._per_episode["lengths"]))

    def __enter__(self) -> CanonicalWriter:
        self._refuse_existing()
        self._temporary = self.path.with_name(
            f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._temporary, "x", libver=LIBVER, rdcc_nbytes=4 * CHUNK_BYTES)
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException:
                self._abandon()
                raise
        else:
            self._abandon()

    def append(self, batch: Mapping[str, np.ndarray], battle_won: np.ndarray | None = None) -> None:
        """Add padded episodes.

        batch: the keys of the canonical dataset, `[b, T, ...]` with T at most episode_limit + 1;
        what stands beyond `filled` is dropped. battle_won: `[b]`, bool or 0/1; either always given
        or never. Other keys of the batch are not stored.
        """
        name = f"{self.path}: episodes from {self.n_episodes} on"
        source = ArraySource({key: _as_field(key, batch[key]) for key in STORED if key in batch})
        require_valid(check_layout(source), name, ADVICE)
        lengths, found = check_filled(source)
        require_valid(found, name, ADVICE)
        arrays = flatten(source, lengths)
        terminated = ends_terminated(arrays["terminated"], lengths)
        short = (lengths < self.metadata.episode_limit) & ~terminated
        piece = OfflineDataset(
            arrays,
            lengths,
            replace(self.metadata, n_cut=int(short.sum()) if self._allow_cut else 0),
        )
        require_valid(validate(piece), name, ADVICE)
        self._remember(arrays, lengths, terminated, battle_won)
        self._write(arrays, lengths)

    def _remember(self, arrays, lengths, terminated, battle_won) -> None:
        seen = self._per_episode
        if seen["lengths"] and (battle_won is None) != (not seen["battle_won"]):
            raise DatasetError(f"{self.path}: 'battle_won' is given for some batches only.")
        if battle_won is not None:
            battle_won = np.asarray(battle_won)
            if battle_won.shape != lengths.shape or not np.isin(battle_won, (0, 1)).all():
                raise DatasetError(
                    f"{self.path}: 'battle_won': expected 0 or 1 for each of {len(lengths)} "
                    f"episodes, found {battle_won!r:.80}."
                )
            seen["battle_won"].append(battle_won.astype(np.uint8))
        seen["lengths"].append(lengths)
        seen["terminated"].append(terminated)
        seen["returns"].append(episode_returns(arrays["reward"], lengths))
        self._hash.update(arrays, lengths)

    def _write(self, arrays: Mapping[str, np.ndarray], lengths: np.ndarray) -> None:
        n_steps = self.metadata.episode_limit + 1
        mask = np.arange(n_steps) <= lengths[:, None]
        try:
            for key, rows in arrays.items():
                padded = np.zeros((*mask.shape, *rows.shape[1:]), dtype=rows.dtype)
                padded[mask] = rows
                self._extend(key, padded)
            self._extend(FILLED, mask[..., None].astype(FILLED_FIELD.dtype))
        except (OSError, RuntimeError) as error:
            raise self._cannot_write(error) from error

    def _extend(self, key: str, padded: np.ndarray) -> None:
        """Append `[b, T, ...]` to the dataset `key`, made with the first batch."""
        if key not in self._datasets:
            episode_bytes = max(padded[:1].nbytes, 1)
            chunk = min(max(CHUNK_BYTES // episode_bytes, 1), 1024)
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
        seen = {
            key: np.concatenate(parts) if parts else None
            for key, parts in self._per_episode.items()
        }
        self.metadata = complete_metadata(
            replace(
                self.metadata,
                created_by=self.metadata.created_by
                or f"{FORMAT} {FORMAT_VERSION}, h5py {h5py.__version__}",
            ),
            digest=self._hash.hexdigest(),
            **seen,
        )
        try:
            self._write_attributes(seen["battle_won"])
            self._file.flush()
            self._file.close()
            _sync(self._temporary)
            self._refuse_existing()
            os.replace(self._temporary, self.path)
        except (OSError, RuntimeError) as error:
            raise self._cannot_write(error) from error
        with contextlib.suppress(OSError):  # not every file system syncs folders
            _sync(self.path.parent)

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
        """Close and remove the temporary file, whatever state it is in."""
        if self._file:
            with contextlib.suppress(*H5_ERRORS):
                _detach(self._file)
            self._datasets.clear()
            with contextlib.suppress(*H5_ERRORS):
                self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _refuse_existing(self) -> None:
        if self.path.is_dir():
            raise DatasetError(f"{self.path}: a folder, expected the name of a file to write.")
        if self.path.exists() and not self._overwrite:
            raise DatasetError(
                f"{self.path}: exists already and is not overwritten. Choose another name, remove "
                "it, or ask for overwriting."
            )

    def _cannot_write(self, error: Exception) -> DatasetError:
        code = getattr(error, "errno", None)
        text = str(error).strip() or type(error).__name__
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if code in full or any(f"errno = {number}," in text for number in full):
            rows = sum(int(part.sum()) + len(part) for part in self._per_episode["lengths"])
            size = rows * _row_bytes(self.metadata)
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self.path.parent).free
                text = f"{free / 1e6:.0f} MB are free"
            return DatasetError(
                f"{self.path}: the disk (or a quota) is full: the {self.n_episodes} episodes so "
                f"far need up to {size / 1e6:.0f} MB, {text}. Nothing was left under this name; "
                "free some space or choose another folder, and run it again."
            )
        if isinstance(error, PermissionError) or code in (errno.EACCES, errno.EROFS, errno.EPERM):
            return DatasetError(
                f"{self.path}: no permission to write into this folder. Choose another one or "
                "change its mode."
            )
        return DatasetError(f"{self.path}: cannot be written ({text.splitlines()[0]}).")


STORED = (*FIELDS, FILLED)
ADVICE = "Nothing of these episodes was written; the program that made them must be put right."


def _as_field(key: str, value: Any) -> np.ndarray:
    """`value` in the dtype of the key, where that loses no more than rounding."""
    dtype = (FILLED_FIELD if key == FILLED else FIELDS[key]).dtype
    array = np.asarray(value)
    castable = np.can_cast(array.dtype, dtype, "same_kind")
    return array.astype(dtype, copy=False) if castable else array


def _row_bytes(metadata: DatasetMetadata) -> int:
    """Bytes of one uncompressed row."""
    return sum(
        int(np.prod(metadata.row_shape(key))) * spec.dtype.itemsize for key, spec in FIELDS.items()
    )


def _fixed(text: str) -> np.ndarray:
    """A string of fixed length, in UTF-8, as HDF5 stores it inside an attribute."""
    encoded = text.encode()
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(len(encoded), 1)))


def _detach(file: h5py.File) -> None:
    """Let what HDF5 has yet to write go nowhere, and not to the disk.

    On a full disk closing fails halfway and HDF5 then crashes the process (2.0, h5py 3.16).
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, file.id.get_vfd_handle())
    finally:
        os.close(nowhere)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_dataset(
    path: str | os.PathLike, dataset: OfflineDataset, *, overwrite: bool = False
) -> DatasetMetadata:
    """Write a dataset as a canonical file; returns the metadata as stored.

    Raises DatasetError as `CanonicalWriter` does.
    """
    allow_cut = dataset.metadata.n_cut > 0
    with CanonicalWriter(
        path, dataset.metadata, overwrite=overwrite, allow_cut=allow_cut
    ) as writer:
        for first in range(0, len(dataset), 64):
            end = min(first + 64, len(dataset))
            won = None if dataset.battle_won is None else dataset.battle_won[first:end]
            writer.append(dataset.episodes(np.arange(first, end)), won)
    return writer.metadata
