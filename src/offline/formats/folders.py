"""What the formats that are folders share: written under a temporary name, described in JSON."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from inspo.offline.dataset import UNKNOWN, DatasetMetadata, OfflineDataset
from inspo.offline.formats.common import Hints
from inspo.utils.errors import DatasetError

KEY = "offline_marl_dataset"
"""Under it our metadata stand in a foreign format's JSON file, where its readers ignore them."""

TEXTS = ("env", "map_name", "quality", "simulator", "source")


def describe(dataset: OfflineDataset) -> dict[str, Any]:
    """What the foreign format itself has no place for, as JSON."""
    meta = dataset.metadata
    stated: dict[str, Any] = {name: getattr(meta, name) for name in TEXTS}
    stated |= {"episode_limit": meta.episode_limit, "notes": list(meta.notes)}
    stated |= {} if meta.env_args is None else {"env_args": meta.env_args}
    if dataset.battle_won is not None:
        stated["battle_won"] = np.packbits(dataset.battle_won).tobytes().hex()
    return stated


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; DatasetError if the file holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{file}: missing. The folder is incomplete: fetch it again.") from None
    except PermissionError:
        raise DatasetError(f"{file}: no permission to read it. Change its mode or owner.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not valid JSON ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file}: expected a JSON object. Fetch it again.")
    return content


def stated_metadata(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """What `describe` wrote there; empty for a foreign folder. Raises DatasetError if damaged."""
    stated = content.get(KEY)
    if stated is None:
        return {}
    limit = stated.get("episode_limit") if isinstance(stated, dict) else None
    if (
        not isinstance(limit, int)
        or limit < 1
        or not all(isinstance(stated.get(name), str) for name in TEXTS)
        or not all(isinstance(note, str) for note in _list(stated.get("notes")))
        or not isinstance(stated.get("env_args", ""), str)
    ):
        raise DatasetError(
            f"{file}: '{KEY}': expected the names, notes and limit of the dataset. The file was "
            "changed or damaged: convert it again."
        )
    return stated


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [None]


def hints_with(stated: dict[str, Any], hints: Hints) -> Hints:
    """The hints, where the folder does not know better."""
    names = {name: stated.get(name) or getattr(hints, name) for name in TEXTS[:3]}
    return replace(hints, **names)


def with_stated(metadata: DatasetMetadata, stated: dict[str, Any]) -> DatasetMetadata:
    """`metadata` with where the data come from, if the folder says it."""
    if not stated:
        return metadata
    return replace(
        metadata,
        simulator=stated["simulator"] or UNKNOWN,
        source=stated["source"],
        env_args=stated.get("env_args"),
        notes=tuple(dict.fromkeys((*stated["notes"], *metadata.notes))),
    )


def stated_victories(stated: dict[str, Any], n_episodes: int, file: Path) -> np.ndarray | None:
    """Who won, uint8 `[E]`; None where the folder does not say."""
    if "battle_won" not in stated:
        return None
    with contextlib.suppress(TypeError, ValueError):
        packed = np.frombuffer(bytes.fromhex(stated["battle_won"]), dtype=np.uint8)
        if len(packed) == -(-n_episodes // 8):
            return np.unpackbits(packed, count=n_episodes)
    raise DatasetError(
        f"{file}: '{KEY}': 'battle_won' does not have one bit for each of {n_episodes} episodes. "
        "The file was changed or damaged: convert it again."
    )


def refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise DatasetError(
            f"{path}: exists already and is not overwritten. Choose another name, remove it, or "
            "use --force."
        )
    if path.exists() and not path.is_dir():
        raise DatasetError(f"{path}: a file, expected the name of a folder to write.")


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that gets the name `path` when the block ends without an exception.

    Otherwise it is removed. A folder that is replaced is there until the last moment.
    """
    refuse_existing(path, overwrite)
    token = f"{os.getpid()}.{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    old = path.with_name(f".{path.name}.{token}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        refuse_existing(path, overwrite)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}). Nothing was left under this "
            "name; make room or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():  # the second of the two moves failed
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
