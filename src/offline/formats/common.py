"""What every format shares: hints of the caller, and the way from padded arrays to a dataset."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from inspo.offline.dataset import (
    FIELDS,
    FILLED,
    UNKNOWN,
    DatasetMetadata,
    OfflineDataset,
    content_hash,
)
from inspo.offline.padded import PaddedSource, flatten
from inspo.offline.scratch import allocator
from inspo.offline.validation import check_filled, check_layout, require_valid, validate
from inspo.utils.errors import DatasetError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hints:
    """What the caller knows about a file that does not say it itself.

    env, map_name, quality: recorded where the file is silent. episode_limit: longer episodes are
    cut there and lose their terminal and their victory. verify_hash: compare the content with the
    hash in the file, if it has one (not if episodes are cut). in_memory: see `offline.scratch`.
    """

    env: str | None = None
    map_name: str | None = None
    quality: str | None = None
    episode_limit: int | None = None
    verify_hash: bool = True
    in_memory: bool | str = True


def infer_metadata(
    source: PaddedSource, hints: Hints, origin: str, notes: list[str]
) -> DatasetMetadata:
    """Metadata of a file that has none: sizes from its shapes, names from the hints."""
    obs, avail = source.shape("obs"), source.shape("avail_actions")
    return DatasetMetadata(
        env=hints.env or UNKNOWN,
        map_name=hints.map_name or UNKNOWN,
        quality=hints.quality or UNKNOWN,
        simulator=UNKNOWN,
        source=origin,
        n_agents=obs[2],
        n_actions=avail[3],
        state_shape=source.shape("state")[2],
        obs_shape=obs[3],
        episode_limit=hints.episode_limit or obs[1] - 1,
        created_by=origin,
        notes=tuple(notes),
    )


def unused_keys(source: PaddedSource) -> list[str]:
    """A note about the keys that a dataset does not have, `probs` or `actions_onehot`, if any."""
    unused = sorted(set(source.keys()) - {*FIELDS, FILLED})
    return [f"keys not read: {', '.join(unused)}"] if unused else []


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
    require_valid(check_layout(source, metadata.episode_limit if metadata else None), source.name)
    lengths, found = check_filled(source)
    require_valid(found, source.name)
    notes = unused_keys(source)
    for note in notes:
        log.info("%s: %s", source.name, note)

    kept = lengths if hints.episode_limit is None else np.minimum(lengths, hints.episode_limit)
    allocate = allocator(hints.in_memory, _bytes_of(source, kept), source.name)
    arrays = flatten(source, kept, allocate=allocate)
    cut = kept < lengths
    if cut.any():
        notes.append(
            f"{int(cut.sum())} of {len(lengths)} episodes were longer than the limit of "
            f"{hints.episode_limit} and are cut there"
        )
        log.warning("%s: %s", source.name, notes[-1])
        _forget_terminals(arrays["terminated"], kept, cut)
        battle_won = None if battle_won is None else np.where(cut, 0, battle_won).astype(np.uint8)

    if metadata is None:
        metadata = infer_metadata(source, hints, origin, notes)
    elif cut.any():
        metadata = replace(
            metadata, episode_limit=hints.episode_limit, notes=(*metadata.notes, *notes)
        )
    else:
        return _as_stated(OfflineDataset(arrays, kept, metadata, battle_won), source.name, hints)

    dataset = OfflineDataset.build(arrays, kept, metadata, battle_won)
    require_valid(validate(dataset), source.name)
    if dataset.metadata.n_cut:
        log.warning(
            "%s: %d episodes end before the limit of %d without a terminal",
            source.name,
            dataset.metadata.n_cut,
            dataset.metadata.episode_limit,
        )
    return dataset


def _bytes_of(source: PaddedSource, lengths: np.ndarray) -> int:
    """What the rows of episodes of these lengths take, flat."""
    return int((lengths + 1).sum()) * sum(
        int(np.prod(source.shape(key)[2:])) * spec.dtype.itemsize for key, spec in FIELDS.items()
    )


def _forget_terminals(terminated: np.ndarray, lengths: np.ndarray, cut: np.ndarray) -> None:
    """A cut episode goes on beyond its last row: no row of it is a terminal."""
    terminated[np.repeat(cut, lengths + 1)] = 0


def _as_stated(dataset: OfflineDataset, name: str, hints: Hints) -> OfflineDataset:
    """The dataset, if it is valid, its metadata tell the truth and its content has its hash."""
    require_valid(validate(dataset), name)
    meta = dataset.metadata
    for what, stated, found in (
        ("n_episodes", meta.n_episodes, len(dataset)),
        ("n_steps", meta.n_steps, int(dataset.lengths.sum())),
    ):
        if stated != found:
            raise DatasetError(
                f"{name}: the attribute '{what}' says {stated}, the data hold {found}. "
                "The file was changed after it was written: collect or convert it again."
            )
    if hints.verify_hash and content_hash(dataset.arrays, dataset.lengths) != meta.content_hash:
        raise DatasetError(
            f"{name}: the content does not have the hash that the attribute 'content_hash' "
            f"states ({meta.content_hash[:16]}...). The file is damaged or was changed: collect "
            "or convert it again."
        )
    if hints.episode_limit is not None and hints.episode_limit < meta.episode_limit:
        # No episode is longer: the data are those of the smaller limit as well.
        meta = replace(meta, episode_limit=hints.episode_limit)
    return replace(dataset, metadata=meta)


MAGIC = (
    (b"PK\x03\x04", "a zip archive (.zip or .npz): unpack it first"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x93NUMPY", "a single .npy array: name the folder that holds it"),
    (b"\x80", "a pickle, which is never opened: it could run code"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89HDF", "a damaged HDF5 file"),
)


def describe_content(path: Path) -> str:
    """What a file seems to be, from its first bytes; raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    for magic, description in MAGIC:
        if head.startswith(magic):
            return description
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page (a download that failed?)"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return "of an unknown kind"
