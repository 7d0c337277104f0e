"""What every format shares: hints of the caller, and the way from padded arrays to a dataset."""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inspo.offline.offline_dataset import (
    FIELDS,
    UNKNOWN,
    DatasetMetadata,
    OfflineDataset,
    complete_metadata,
    content_hash,
    ends_terminated,
)
from inspo.offline.padded import STORED, PaddedSource, check_filled, check_layout, flatten
from inspo.offline.scratch import allocator
from inspo.offline.validation import damaged, require_valid, validate
from inspo.utils.phases import Phase

log = logging.getLogger(__name__)

EXISTS = "exists already and is not overwritten. Choose another name, or remove it."

COMPUTED = (
    *("n_episodes", "n_steps", "content_hash"),
    *("n_cut", "return_mean", "return_std", "win_rate"),
)
"""The metadata that follow from the data."""

MAX_COMPRESSION = 1100
"""Deflate packs at most about 1030 to 1: a file that claims to hold more is damaged."""


@dataclass(frozen=True)
class Hints:
    """What the caller knows about a file that does not say it itself.

    env, map_name, quality: recorded where the file is silent. episode_limit: longer episodes are
    cut there and lose their terminal and their victory. in_memory: see `offline.scratch`.
    cast: take numbers of other dtypes and note it. phase: begins the phase of reading, where its
    length is known.
    """

    env: str | None = None
    map_name: str | None = None
    quality: str | None = None
    episode_limit: int | None = None
    in_memory: bool | str = True
    cast: bool = False
    phase: Callable[..., Phase] = Phase


def read_padded(
    source: PaddedSource,
    hints: Hints,
    *,
    metadata: DatasetMetadata | None,
    origin: str,
    battle_won: np.ndarray | None = None,
) -> OfflineDataset:
    """Read, trim and validate padded arrays.

    metadata: what the file says about itself, None for a foreign file, whose metadata are then
    inferred and which may hold episodes that end early without a terminal (they are counted).
    origin: goes into `source` and `created_by` of inferred metadata. battle_won: uint8 `[E]`.
    Raises DatasetError with every rule that is broken.
    """
    notes = _check_layout(source, metadata.episode_limit if metadata else None, hints.cast)
    lengths, broken = check_filled(source)
    require_valid(broken, source.name)
    for note in notes:
        log.info("%s: %s", source.name, note)

    kept, cut = cut_at_limit(lengths, hints.episode_limit, source.name, notes)
    n_bytes = int((kept + 1).sum()) * sum(
        int(np.prod(source.shape(key)[2:])) * spec.dtype.itemsize for key, spec in FIELDS.items()
    )
    room = allocator(hints.in_memory, n_bytes, source.name)
    with hints.phase("reading the data", n_bytes, unit="byte") as phase:
        arrays = flatten(source, kept, room, phase.update)
    arrays["terminated"][np.repeat(cut, kept + 1)] = 0  # a cut episode goes on
    if metadata is None:
        limit = hints.episode_limit or source.shape("obs")[1] - 1
        metadata = foreign_metadata(arrays, limit, hints, origin, notes)
    elif cut.any() and hints.episode_limit is not None:
        all_notes = (*metadata.notes, *notes)
        metadata = replace(metadata, episode_limit=hints.episode_limit, notes=all_notes)
    else:
        metadata = replace(metadata, notes=(*metadata.notes, *notes))
        return _as_stated(OfflineDataset(arrays, kept, metadata, battle_won), source.name, hints)
    return build_valid(arrays, kept, metadata, cut_as_lost(cut, battle_won), source.name)


def _check_layout(source: PaddedSource, episode_limit: int | None, cast: bool) -> list[str]:
    """Notes on what is not read as it stands; DatasetError if the layout is wrong."""
    broken = check_layout(source, episode_limit, cast)
    if broken and not check_layout(source, episode_limit, cast=True):
        advice = f"`python src/dataset.py convert {source.name} NEW.h5` casts them."
        require_valid(broken, source.name, advice)
    require_valid(broken, source.name)
    notes = []
    if unread := sorted(set(source.keys()) - STORED.keys()):
        notes.append(f"keys not read: {', '.join(unread)}")
    for key, spec in STORED.items():
        dtype = source.dtype(key).newbyteorder("=")
        if dtype != spec.dtype:
            narrower = spec.dtype.kind == "f" and dtype.kind == "f" and dtype > spec.dtype
            how = "to the nearest value" if narrower else "exactly"
            notes.append(f"key '{key}' was cast from {dtype} to {spec.dtype}, {how}")
    return notes


def cut_at_limit(
    lengths: np.ndarray, limit: int | None, name: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Transitions to keep of each episode `[E]`, and where that is less than there are `[E]`.

    Says in the log and in `notes` how many episodes are cut.
    """
    kept = lengths if limit is None else np.minimum(lengths, limit)
    cut = kept < lengths
    if cut.any():
        notes.append(
            f"{int(cut.sum())} of {len(lengths)} episodes were longer than the limit of "
            f"{limit} and are cut there"
        )
        log.warning("%s: %s", name, notes[-1])
    return kept, cut


def cut_as_lost(cut: np.ndarray, battle_won: np.ndarray | None) -> np.ndarray | None:
    """Who won, without the victories of cut episodes, which come after the cut: uint8 `[E]`."""
    return None if battle_won is None else np.where(cut, 0, battle_won).astype(np.uint8)


def foreign_metadata(
    arrays: dict[str, np.ndarray], episode_limit: int, hints: Hints, origin: str, notes: list[str]
) -> DatasetMetadata:
    """Metadata of a file that has none: sizes from its rows, names from the hints."""
    return DatasetMetadata(
        env=hints.env or UNKNOWN,
        map_name=hints.map_name or UNKNOWN,
        quality=hints.quality or UNKNOWN,
        simulator=UNKNOWN,
        source=origin,
        n_agents=arrays["obs"].shape[1],
        n_actions=arrays["avail_actions"].shape[2],
        state_shape=arrays["state"].shape[1],
        obs_shape=arrays["obs"].shape[2],
        episode_limit=episode_limit,
        created_by=origin,
        notes=tuple(notes),
    )


def build_valid(
    arrays: dict[str, np.ndarray],
    lengths: np.ndarray,
    metadata: DatasetMetadata,
    battle_won: np.ndarray | None,
    name: str,
) -> OfflineDataset:
    """The dataset of these rows with statistics and hash, if it is valid."""
    dataset = OfflineDataset.build(arrays, lengths, metadata, battle_won)
    require_valid(validate(dataset), name)
    if dataset.metadata.n_cut:
        log.warning(
            "%s: %d episodes end before the limit of %d without a terminal",
            name,
            dataset.metadata.n_cut,
            dataset.metadata.episode_limit,
        )
    return dataset


def _as_stated(dataset: OfflineDataset, name: str, hints: Hints) -> OfflineDataset:
    """The dataset, if it is valid, its metadata tell the truth and its content has its hash."""
    require_valid(validate(dataset), name)
    meta = dataset.metadata
    counted = complete_metadata(
        meta,
        returns=dataset.episode_returns(),
        lengths=dataset.lengths,
        terminated=ends_terminated(dataset.arrays["terminated"], dataset.lengths),
        battle_won=dataset.battle_won,
        digest=content_hash(dataset.arrays, dataset.lengths),
    )
    for what in COMPUTED:
        require_stated(f"{name}: attribute '{what}'", getattr(meta, what), getattr(counted, what))
    if hints.episode_limit is not None and hints.episode_limit < meta.episode_limit:
        # No episode is longer: the data are those of the smaller limit as well.
        meta = replace(meta, episode_limit=hints.episode_limit)
    return replace(dataset, metadata=meta)


def require_stated(place: str, stated: Any, counted: Any) -> None:
    """DatasetError unless a number or hash in the file is that of its data, but for rounding."""
    both = isinstance(stated, float) and isinstance(counted, float)
    if not (
        math.isclose(stated, counted, rel_tol=1e-6, abs_tol=1e-6) if both else stated == counted
    ):
        raise damaged(place, f"{counted}, which the data hold", stated)


PICKLE = "a pickle, which is never opened: it could run code"
MAGIC = (
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x93NUMPY", "a single .npy array: name the folder that holds it"),
    (b"\x80", PICKLE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89HDF", "a damaged HDF5 file"),
)


def describe_content(path: Path) -> str:
    """What a file or folder seems to be, for errors; raises OSError where it cannot be read."""
    if path.is_dir():
        pickles = sum(
            file.is_file() and describe_content(file) == PICKLE for file in path.iterdir()
        )
        several = f"a folder of {pickles} files like {PICKLE}"
        return several if pickles else "a folder without meta.json, and no vault"
    if not path.is_file():
        return "neither a file nor a folder" if path.exists() else "nothing"
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if head.startswith(b"PK\x03\x04"):
        zipped = "a zip archive (.zip or .npz): unpack it first"
        return PICKLE if _is_torch_archive(path) else zipped
    for magic, description in MAGIC:
        if head.startswith(magic):
            return description
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page (a download that failed?)"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return "of an unknown kind"


def _is_torch_archive(path: Path) -> bool:
    """Whether `torch.save` made it: a zip archive around a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
