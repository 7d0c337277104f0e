"""What the formats that are folders share: written under a temporary name, described in JSON."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inspo.offline.formats.common import EXISTS, Hints, require_stated
from inspo.offline.offline_dataset import (
    FIELDS,
    FILLED,
    UNKNOWN,
    OfflineDataset,
)
from inspo.offline.validation import damaged
from inspo.utils import files
from inspo.utils.errors import DatasetError

KEY = "offline_marl_dataset"
"""Under it our metadata stand in a foreign format's JSON file, where its readers ignore them."""

TEXTS = ("env", "map_name", "quality", "simulator", "source")

ARRAYS = "|".join((*FIELDS, FILLED, "actions_onehot"))
WRITTEN = {
    "meta.json": re.compile(rf"meta\.json|({ARRAYS})\.npy"),
    "metadata.json": re.compile(r"metadata\.json|manifest\.ocdbt|d|d/[0-9a-f]+"),
}
"""For each JSON file that can hold our metadata, all names that we write into such a folder."""


# ------------------------------------------------------------------------------------ reading


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; DatasetError if the file holds none."""
    try:
        content = json.loads(files.read_text(file))
    except PermissionError:
        raise DatasetError(f"{file}: no permission to read it. Change its mode or owner.") from None
    except FileNotFoundError:
        raise damaged(file, "a JSON object", "no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, "a JSON object", error) from error
    if not isinstance(content, dict):
        raise damaged(file, "a JSON object", f"{content!r:.80}")
    return content


def stated_metadata(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """What `describe` wrote there; empty for a foreign folder. Raises DatasetError if damaged."""
    if KEY not in content:
        return {}
    stated = content[KEY]
    kinds = dict.fromkeys(TEXTS, str) | {"episode_limit": int, "notes": list}
    if (
        not isinstance(stated, dict)
        or not all(isinstance(stated.get(name), kind) for name, kind in kinds.items())
        or stated["episode_limit"] < 1
        or not all(isinstance(note, str) for note in stated["notes"])
        or not isinstance(stated.get("env_args", ""), str)
        or not isinstance(stated.get("content_hash", ""), str)
        or not isinstance(stated.get("win_rate", 0.0), float)
    ):
        expected = "the names, notes and limit of the dataset"
        raise damaged(f"{file}: '{KEY}'", expected, f"{stated!r:.80}")
    return stated


def hints_with(stated: dict[str, Any], hints: Hints) -> Hints:
    """The hints, where the folder does not know better."""
    names = {name: stated.get(name) or getattr(hints, name) for name in TEXTS[:3]}
    return replace(hints, **names)


def as_stated(
    dataset: OfflineDataset, stated: dict[str, Any], hints: Hints, file: Path
) -> OfflineDataset:
    """`dataset` with where it comes from, if the folder says it.

    Raises DatasetError if the data are not those that the folder describes.
    """
    if not stated:
        return dataset
    metadata = dataset.metadata
    cut = hints.episode_limit is not None and hints.episode_limit < stated["episode_limit"]
    for what in ("content_hash", "win_rate") if not cut else ():
        if what in stated:
            require_stated(f"{file}: '{KEY}': '{what}'", stated[what], getattr(metadata, what))
    metadata = replace(
        metadata,
        simulator=stated["simulator"] or UNKNOWN,
        source=stated["source"],
        env_args=stated.get("env_args"),
        notes=tuple(dict.fromkeys((*stated["notes"], *metadata.notes))),
    )
    return replace(dataset, metadata=metadata)


def stated_victories(stated: dict[str, Any], n_episodes: int, file: Path) -> np.ndarray | None:
    """Who won, uint8 `[E]`; None where the folder does not say."""
    if "battle_won" not in stated:
        return None
    with contextlib.suppress(TypeError, ValueError):
        packed = np.frombuffer(bytes.fromhex(stated["battle_won"]), dtype=np.uint8)
        if len(packed) == -(-n_episodes // 8):
            return np.unpackbits(packed, count=n_episodes)
    expected, found = f"one bit for each of {n_episodes} episodes", f"{stated['battle_won']!r:.80}"
    raise damaged(f"{file}: '{KEY}': 'battle_won'", expected, found)


# ------------------------------------------------------------------------------------ writing


def describe(dataset: OfflineDataset, digest: str) -> dict[str, Any]:
    """What the foreign format itself has no place for, as JSON. digest: of what it will hold."""
    meta = dataset.metadata
    stated: dict[str, Any] = {name: getattr(meta, name) for name in TEXTS}
    stated |= {"episode_limit": meta.episode_limit, "notes": list(meta.notes)}
    stated["content_hash"] = digest
    stated |= {} if meta.win_rate is None else {"win_rate": meta.win_rate}
    stated |= {} if meta.env_args is None else {"env_args": meta.env_args}
    if dataset.battle_won is not None:
        stated["battle_won"] = np.packbits(dataset.battle_won).tobytes().hex()
    return stated


def is_ours(path: Path) -> bool:
    """Whether a folder holds a dataset that this program wrote, and nothing else."""
    for name, written in WRITTEN.items():
        try:
            stated = stated_metadata(read_json(path / name), path / name)
        except DatasetError:
            continue
        return bool(stated) and all(
            written.fullmatch(item.relative_to(path).as_posix()) and not item.is_symlink()
            for item in path.rglob("*")
        )
    return False


def refuse_existing(path: Path, overwrite: bool) -> None:
    """DatasetError if a folder may not be written at `path`."""
    if not path.exists():
        return
    if not overwrite:
        raise DatasetError(f"{path}: {EXISTS}")
    if not path.is_dir():
        raise DatasetError(f"{path}: a file, expected the name of a folder to write.")
    if any(path.iterdir()) and not is_ours(path):
        raise DatasetError(
            f"{path}: holds something else than a dataset that this program wrote, and is never "
            "replaced. Choose another name, or remove the folder yourself."
        )


def restore(path: Path) -> None:
    """Put a folder back that lost its name to a process that was killed while it replaced it."""
    if not path.exists() and is_ours(files.aside(path)):
        with files.locked(path):
            files.settle(path)


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that gets the name `path` when the block ends without an exception.

    Otherwise it is removed. A folder that is replaced is there until the last moment, and comes
    back if the process is killed in it (`restore`).
    """
    try:
        restore(path)
        refuse_existing(path, overwrite)
        with files.temporary(path, folder=True) as folder:
            yield folder
            with files.locked(path):
                refuse_existing(path, overwrite)
                files.replace_folder(folder, path)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}). Nothing was left under this "
            "name; make room or choose another folder."
        ) from error
