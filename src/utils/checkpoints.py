"""Checkpoints that a kill at any moment and a full disk leave whole.

A run's model folder holds one folder for each saved step, named by the number; that holds one file
for each entry, in `torch.save`'s format, and `manifest.json`: what it is, and each file's SHA-256.
It is written under a temporary name and renamed, so a folder named by a number is complete.
"""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import numpy as np
import torch

from inspo.utils import files as disk
from inspo.utils.errors import CheckpointError, nearest, reason_of

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ADVICE = "Use another step (load_step) or a fresh copy of the folder"
PICKLE_OVERHEAD = 16_384  # bytes a file takes beside its tensors, about


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: its folder, its step, its entries by file name, its words."""

    folder: Path
    step: int
    files: dict[str, Any]
    text: dict[str, Any]

    def entry(self, name: str) -> Any:
        """The content of one of its files; CheckpointError if there is no such file."""
        if name not in self.files:
            raise CheckpointError(_lacks(self.folder, name, self.files))
        return self.files[name]


# --------------------------------------------------------------------------------------------------
# Writing


def save_checkpoint(
    folder: str | Path,
    step: int,
    files: Mapping[str, Any],
    text: Mapping[str, Any] | None = None,
    keep_checkpoints: int = 0,
) -> Path:
    """Write `{folder}/{step}/`, then delete all but the newest `keep_checkpoints` (0: keep all).

    files: name ("agent.th") -> what `torch.load(weights_only=True)` can read back: tensors,
    numbers, strings, lists, tuples, dicts. text: JSON facts (algorithm, environment, map, ..).
    Until the new one is complete the earlier ones stay.
    """
    folder = Path(folder)
    writing = final = folder / str(int(step))
    try:
        with disk.temporary(final, folder=True) as new:
            for replaced in list_steps(folder):
                disk.settle(folder / str(replaced))
            listed = {}
            for name, entry in files.items():
                writing = final / name
                listed[name] = _write_entry(new / name, entry)
            writing = final / MANIFEST
            head = {"format_version": FORMAT_VERSION, "step": int(step)}
            manifest = {**head, **(text or {}), "files": listed}
            (new / MANIFEST).write_text(json.dumps(manifest, indent=2))
            disk.sync(new / MANIFEST)
            disk.sync(new)
            disk.replace_folder(new, final)
    except OSError as error:
        needed = sum(size_of(entry) + PICKLE_OVERHEAD for entry in files.values())
        raise CheckpointError(_no_room(writing, needed, error, folder)) from error
    if keep_checkpoints > 0:
        others = [s for s in list_steps(folder) if s != step]
        for old in others[: max(0, len(others) - (keep_checkpoints - 1))]:
            shutil.rmtree(_step_folder(folder, old), ignore_errors=True)
    return final


def _write_entry(path: Path, entry: Any) -> dict[str, Any]:
    """Save one entry and give its size and hash. A failed write is an OSError, as it should be."""
    try:
        with open(path, "wb") as file:
            torch.save(entry, file)
    except RuntimeError as error:
        # Torch's zip writer hides the reason; a write that did not fit is the only one we know.
        raise OSError(f"torch.save: {reason_of(error)}") from error
    disk.sync(path)
    return {"sha256": disk.sha256(path), "bytes": path.stat().st_size}


def _no_room(path: Path, needed: int, error: OSError, folder: Path) -> str:
    steps = list_steps(folder)
    earlier = f"The earlier checkpoint, step {steps[-1]}, is intact." if steps else ""
    free = "free space unknown"
    with suppress(OSError):
        free = f"{shutil.disk_usage(folder).free:,} bytes free"
    return (
        f"cannot write the checkpoint file {path}: {error.strerror or error} "
        f"(about {needed:,} bytes needed, {free}). "
        f"{earlier or 'There was no earlier checkpoint.'} "
        "Make room, or choose another local_results_path or a smaller keep_checkpoints"
    )


def size_of(entry: Any) -> int:
    """The bytes of the tensors in nested dicts and lists; eight for any other leaf."""
    if isinstance(entry, torch.Tensor):
        return entry.numel() * entry.element_size()
    if isinstance(entry, Mapping):
        return sum(size_of(value) for value in entry.values())
    if isinstance(entry, list | tuple):
        return sum(size_of(value) for value in entry)
    return len(entry) if isinstance(entry, str | bytes) else 8


# --------------------------------------------------------------------------------------------------
# Reading


def list_steps(folder: str | Path) -> list[int]:
    """The steps of the complete checkpoints of a run's model folder, ascending."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"(\d+)|\.(\d+)\.replaced", p.name) for p in folder.iterdir())
    return sorted({int(match[1] or match[2]) for match in matches if match})


def _step_folder(folder: Path, step: int) -> Path:
    """Where a step lies: a kill between two renames leaves it under its other name."""
    path = folder / str(step)
    return path if path.exists() else disk.aside(path)


def find_checkpoint(path: str | Path, load_step: int = 0) -> Path:
    """The folder of one step. `path` is a run's model folder, or such a folder itself.

    load_step: 0 is the last step; otherwise the nearest one, the earlier of two equally near.
    """
    path = Path(path)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(
            f"there is no checkpoint folder {path}.{nearest(path.name, siblings)} "
            "checkpoint_path and resume name a run's model folder (results/models/RUN)"
        )
    if (path / MANIFEST).is_file():
        return path
    steps = list_steps(path)
    if not steps:
        raise CheckpointError(
            f"{path} holds no checkpoint: expected folders named by their step (0, 10000, ..), "
            f"found {_listing(path)}. checkpoint_path and resume name a run's model folder; a run "
            "may have ended before its first checkpoint"
        )
    step = steps[-1] if load_step == 0 else min(steps, key=lambda s: (abs(s - load_step), s))
    return _step_folder(path, step)


def load_checkpoint(
    path: str | Path,
    load_step: int = 0,
    map_location: Any = "cpu",
    expect: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
) -> Checkpoint:
    """Read and verify a checkpoint; whatever is wrong with it is one CheckpointError.

    expect: facts that its manifest must name, as `{"alg": "inspo"}`. only: the files to read
    (default: all).
    """
    folder = find_checkpoint(path, load_step)
    manifest = read_manifest(folder)
    for key, wanted in (expect or {}).items():
        if manifest.get(key) != wanted:
            raise CheckpointError(
                f"{folder} is a checkpoint of another {key}: expected {wanted!r}, "
                f"found {manifest.get(key)!r}. Give the path of a matching run, or its own options"
            )
    listed = manifest["files"]
    wanted_files = list(listed) if only is None else list(only)
    for name in wanted_files:
        if name not in listed:
            raise CheckpointError(_lacks(folder, name, listed))
    files = {name: _read_entry(folder / name, listed[name], map_location) for name in wanted_files}
    text = {k: v for k, v in manifest.items() if k not in ("format_version", "step", "files")}
    return Checkpoint(folder, int(manifest["step"]), files, text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of one step's folder."""
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(
            f"{folder} has no {MANIFEST} (it holds {_listing(folder)}): "
            "not a checkpoint of this program, or an incomplete copy of one"
        )
    try:
        manifest = json.loads(disk.read_text(path))
        _check_manifest(manifest)
        return manifest
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is broken: {error}. {ADVICE}") from error


def _check_manifest(manifest: Any) -> None:
    """ValueError unless it holds what this program writes."""
    kinds = {"step": int, "files": dict}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError("expected the keys step and files")
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise ValueError(f"it has format {found!r}, and this program reads format {FORMAT_VERSION}")
    if not isinstance(manifest.get("config", {}), dict):
        raise ValueError("config: expected the run's configuration")
    for name, given in manifest["files"].items():
        facts = given if isinstance(given, dict) else {}
        typed = isinstance(facts.get("bytes"), int) and isinstance(facts.get("sha256"), str)
        if not (typed and re.fullmatch(r"\w[\w.-]*", name)):
            expected = "the name of a file, with its bytes and sha256"
            raise ValueError(f"files: '{name}': expected {expected}, found {given!r:.200}")


def _lacks(folder: Path, name: str, listed: Iterable[str]) -> str:
    return f"{folder} holds no {name}: expected it beside {', '.join(listed) or 'nothing'}"


def _read_entry(path: Path, facts: Mapping[str, Any], map_location: Any) -> Any:
    try:
        size = disk.require_file(path)
        if size != facts["bytes"]:
            raise ValueError(f"expected {facts['bytes']:,} bytes, found {size:,}")
        if disk.sha256(path) != facts["sha256"]:
            raise ValueError(f"its content differs from the hash in {MANIFEST}")
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever the unpickler makes of a file that is none
        reason = reason_of(error)
        if isinstance(error, FileNotFoundError):
            reason = f"it is missing, although {MANIFEST} names it"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it holds objects, which are not loaded because they could run code"
        raise CheckpointError(f"{path} is broken: {reason}. {ADVICE}") from error


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "a file"
    found = sorted(path.name for path in folder.iterdir())
    return ", ".join(found[:5] + [".."] * (len(found) > 5)) or "nothing"


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def put_back(part: Stateful, state: Any, path: Path, note: str = "") -> None:
    """`part.load_state_dict(state)`, what fails of it as in `naming`."""
    with naming(path, note):
        part.load_state_dict(state)


@contextmanager
def naming(path: Path, note: str = "") -> Iterator[None]:
    """Whatever the content of `path` makes fail within the block is one CheckpointError.

    note: whose content it is, for the error.
    """
    try:
        yield
    except Exception as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        reason = shorten(reason, 300, placeholder=" ...") or type(error).__name__
        raise CheckpointError(
            f"{path} does not fit this configuration{note}: {reason}. Use the checkpoint and the "
            "options of one run, written by this version"
        ) from error


# --------------------------------------------------------------------------------------------------
# Random states


def get_random_states() -> dict[str, Any]:
    """The states of random, numpy (global) and torch (CPU, every GPU), in plain types."""
    return {
        "random": random.getstate(),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `get_random_states` gave. GPUs that this machine lacks are passed over."""
    version, internal, gauss = states["random"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_numpy_state(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    for index, state in enumerate(states["cuda"]):
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state.cpu(), index)


def get_generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """The state of a numpy Generator, in plain types."""
    return _plain(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put back what `get_generator_state` gave."""
    generator.bit_generator.state = _numpy_state(state)


def _plain(value: Any) -> Any:
    """Dicts, lists, ints, floats and strings alone. Ints beyond 64 bits become hexadecimal text,
    which every unpickler can read."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, int) and value.bit_length() > 63:
        return hex(value)
    return value


def _numpy_state(value: Any) -> Any:
    """The inverse of `_plain`, in numpy's types."""
    if isinstance(value, Mapping):
        return {key: _numpy_state(item) for key, item in value.items()}
    if isinstance(value, list):
        return np.array(value, dtype=np.uint32)
    if isinstance(value, str) and value.startswith("0x"):
        return int(value, 16)
    return value
