"""OG-MARL's vaults (written by flashbax), read and written with tensorstore: no JAX.

A vault is a folder with `metadata.json` and one OCDBT key-value store, in which each leaf of the
experience is a zarr array that is flat in time, with a leading 1: `observations.` `[1, T, n, O]`,
`actions.` and `rewards.`, `terminals.`, `truncations.` `[1, T, n]`, `infos.state.` `[1, T, S]`,
`infos.legals.` `[1, T, n, A]`; `vault_index` is T.

A vault stores transitions alone. The observation after the last one is not there: the row that the
canonical dataset has for it repeats the last state, observations and mask, with action 0 and reward
0. After a true end no learner reads it; after a truncation values are bootstrapped from it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from inspo.offline.dataset import UNKNOWN, DatasetMetadata, OfflineDataset, row_offsets
from inspo.offline.formats import folders
from inspo.offline.formats.common import Hints
from inspo.offline.scratch import allocator
from inspo.offline.validation import Violation, require_valid, validate
from inspo.utils.errors import DatasetError

log = logging.getLogger(__name__)

NAME = "vault"
DESCRIPTION = "OG-MARL's vault, a folder with metadata.json and manifest.ocdbt"

VERSION = 1.2  # flashbax's
LENGTH = "vault_index"
TIME_AXIS = 10**13  # flashbax makes every array so long; what is not written takes no room
BLOCK_BYTES = 4 << 20  # read or written at once
MAX_COMPRESSION = 1100  # as in the canonical format: a vault that claims more is damaged

LEAVES = {
    "observations": 4,
    "actions": 3,
    "rewards": 3,
    "terminals": 3,
    "truncations": 3,
    "infos.state": 3,
    "infos.legals": 4,
}
"""Dimensions of each leaf, the leading 1 included."""

REPEATED = "the observation after the last transition is not in a vault: the last row is repeated"
UNFINISHED = "the last episode has no end in the vault: it counts as cut"
NO_STATE = "the vault has no infos.state: the state is the agents' observations side by side"
NO_MASKS = "the vault has no infos.legals: every action counts as available"


# ------------------------------------------------------------------------------------ reading


def recognises(path: Path) -> bool:
    """Whether it is a vault, or a folder `{map}.vlt` that holds some."""
    return _is_vault(path) or bool(_inside(path))


def _is_vault(path: Path) -> bool:
    return (path / "manifest.ocdbt").is_file() and (path / "metadata.json").is_file()


def _inside(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if _is_vault(child)) if path.is_dir() else []


def load(path: Path, hints: Hints) -> OfflineDataset:
    """Read a vault, or the only one in a folder of vaults."""
    path = _the_vault(path)
    file = path / "metadata.json"
    content = folders.read_json(file)
    stated = folders.stated_metadata(content, file)
    hints = _with_names(folders.hints_with(stated, hints), path)
    source = VaultSource(path, content)
    lengths, ends, notes = source.episodes()
    n_actions = source.n_actions()
    kept = lengths if hints.episode_limit is None else np.minimum(lengths, hints.episode_limit)
    cut = kept < lengths
    if cut.any():
        notes.append(
            f"{int(cut.sum())} of {len(lengths)} episodes were longer than the limit of "
            f"{hints.episode_limit} and are cut there"
        )
    arrays = source.rows(lengths, kept, ends & ~cut, n_actions, hints)
    won = folders.stated_victories(stated, len(lengths), file)
    won = None if won is None else np.where(cut, 0, won).astype(np.uint8)
    if not stated and hints.episode_limit is None:
        notes.append("episode_limit is the length of the longest episode")
    for note in notes:
        log.info("%s: %s", path, note)
    limits = [limit for limit in (hints.episode_limit, stated.get("episode_limit")) if limit]
    limit = min(limits) if limits else int(kept.max())
    origin = f"converted from {path.parent.name}/{path.name} (OG-MARL's vault)"
    metadata = DatasetMetadata(
        env=hints.env or UNKNOWN,
        map_name=hints.map_name or UNKNOWN,
        quality=hints.quality or UNKNOWN,
        simulator=UNKNOWN,
        source=origin,
        n_agents=arrays["obs"].shape[1],
        n_actions=n_actions,
        state_shape=arrays["state"].shape[1],
        obs_shape=arrays["obs"].shape[2],
        episode_limit=limit,
        created_by=origin,
        notes=tuple(notes),
    )
    dataset = OfflineDataset.build(arrays, kept, folders.with_stated(metadata, stated), won)
    require_valid(validate(dataset), str(path), "Fetch it again.")
    return dataset


def _the_vault(path: Path) -> Path:
    """`path` itself, or the only vault in it."""
    if _is_vault(path):
        return path
    found = _inside(path)
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise DatasetError(f"{path}: holds {len(found)} vaults. Name one of them: {names}.")
    return found[0]


def _with_names(hints: Hints, path: Path) -> Hints:
    """Map and quality from OG-MARL's names, `{map}.vlt/{quality}`, where nothing else says them."""
    if path.parent.suffix != ".vlt":
        return hints
    return replace(
        hints,
        map_name=hints.map_name or path.parent.stem,
        quality=hints.quality or path.name.lower().replace("-", "_"),
    )


@dataclass
class VaultSource:
    """The leaves of an open vault, read in blocks of time steps."""

    path: Path
    content: dict[str, Any]

    def __post_init__(self):
        structure = self.content.get("structure_shape")
        if not isinstance(structure, dict):
            raise DatasetError(
                f"{self.path / 'metadata.json'}: 'structure_shape': expected the names of the "
                "vault's arrays. Fetch it again."
            )
        present = set(_names(structure))
        needed = set(LEAVES) - {"infos.state", "infos.legals"}
        require_valid(
            [
                Violation("missing_key", name, f"an array '{name}'", ", ".join(sorted(present)))
                for name in LEAVES
                if name in needed - present
            ],
            str(self.path),
            "It is no multi-agent vault of OG-MARL's layout.",
        )
        self.leaves = {name: self._open(name + ".") for name in LEAVES if name in present}
        self.n_steps = self._length()
        self._check_shapes()

    def _open(self, name: str):
        try:
            return _tensorstore().open(spec_of(self.path, name), open=True, read=True).result()
        except Exception as error:  # tensorstore raises whatever fits
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> DatasetError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return DatasetError(
            f"{self.path}: '{name}' is truncated or damaged ({reason:.200}). Fetch it again."
        )

    def _length(self) -> int:
        """T, from `vault_index`."""
        store = self._open(LENGTH)
        if store.shape != (1,) or store.dtype.numpy_dtype.kind not in "iu":
            raise DatasetError(
                f"{self.path}: '{LENGTH}': expected one integer, found {store.dtype.name} "
                f"{store.shape}. Fetch it again."
            )
        try:
            n_steps = int(store.read().result()[0])
        except Exception as error:
            raise self._damaged(LENGTH, error) from error
        if n_steps < 1:
            require_valid(
                [Violation("zero_episodes", LENGTH, "at least 1 time step", str(n_steps))],
                str(self.path),
                "Fetch it again.",
            )
        return n_steps

    def _check_shapes(self) -> None:
        found = []
        agents = self.leaves["observations"].shape[2:3]
        for name, store in self.leaves.items():
            shape = store.shape
            if len(shape) != LEAVES[name] or shape[0] != 1 or 0 in shape[2:]:
                expected = f"[1, T, ...] with {LEAVES[name]} dimensions"
                found.append(Violation("wrong_shape", name, expected, str(shape)))
            elif shape[1] < self.n_steps:
                expected = f"{self.n_steps} time steps, as {LENGTH} says"
                found.append(Violation("wrong_length", name, expected, str(shape[1])))
            elif name != "infos.state" and shape[2:3] != agents:
                expected = f"{agents[0]} agents as 'observations' has"
                found.append(Violation("sizes_disagree", name, expected, str(shape[2])))
            kind = store.dtype.numpy_dtype.kind
            if name == "actions" and kind not in "iu":
                expected = "whole numbers (continuous actions are not supported)"
                found.append(Violation("wrong_dtype", name, expected, store.dtype.name))
            elif kind not in "iubf":
                found.append(Violation("wrong_dtype", name, "numbers", store.dtype.name))
        require_valid(found, str(self.path), "Fetch it again, or choose another vault.")
        claimed = self.n_steps * sum(map(_step_bytes, self.leaves.values()))
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        if claimed > MAX_COMPRESSION * size:
            raise DatasetError(
                f"{self.path}: claims {claimed} bytes, which a folder of {size} bytes cannot hold: "
                "it is truncated or damaged. Fetch it again."
            )

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """`(first step, values [t, ...])`, in order."""
        store = self.leaves[name]
        chunk = store.chunk_layout.read_chunk.shape[1] or 1
        step = max(BLOCK_BYTES // max(_step_bytes(store), 1) // chunk, 1) * chunk
        for first in range(0, self.n_steps, step):
            end = min(first + step, self.n_steps)
            try:
                yield first, store[0, first:end].read().result()
            except Exception as error:
                raise self._damaged(name, error) from error

    def n_actions(self) -> int:
        if "infos.legals" in self.leaves:
            return self.leaves["infos.legals"].shape[3]
        return 1 + max(int(values.max()) for _, values in self.blocks("actions"))

    def episodes(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Transitions of each episode `[E]`, whether it truly ends `[E]`, and what to note.

        An episode ends where all agents are terminal or truncated.
        """
        terminal = self._all_agents("terminals")
        last = np.flatnonzero(self._all_agents("terminals", "truncations"))
        notes = [REPEATED]
        notes += [NO_STATE] if "infos.state" not in self.leaves else []
        notes += [NO_MASKS] if "infos.legals" not in self.leaves else []
        if not len(last) or last[-1] != self.n_steps - 1:
            last = np.append(last, self.n_steps - 1)
            notes.append(UNFINISHED)
        return np.diff(last, prepend=-1).astype(np.int64), terminal[last], notes

    def _all_agents(self, *names: str) -> np.ndarray:
        """Where each agent has one of the flags: bool `[T]`."""
        flags = np.zeros((self.n_steps, self.leaves["terminals"].shape[2]), dtype=bool)
        for name in names:
            for first, values in self.blocks(name):
                flags[first : first + len(values)] |= values != 0
        return flags.all(axis=1)

    def rows(
        self, lengths: np.ndarray, kept: np.ndarray, ends: np.ndarray, n_actions: int, hints: Hints
    ) -> dict[str, np.ndarray]:
        """The canonical rows: the first `kept` transitions of each episode and a last row.

        ends: `[E]`, whether the last kept transition is a true end.
        """
        offsets = row_offsets(kept)
        n_rows, n = int(offsets[-1]), self.leaves["observations"].shape[2]
        obs_shape = self.leaves["observations"].shape[3]
        has_state = "infos.state" in self.leaves
        state_shape = self.leaves["infos.state"].shape[2] if has_state else n * obs_shape
        bytes_per_row = 4 * (state_shape + n * obs_shape + n * n_actions) + 8 * n + 5
        room = allocator(hints.in_memory, n_rows * bytes_per_row, self.path)
        place, last = self._places(lengths, kept, offsets)

        arrays = {
            "state": room((n_rows, state_shape), np.dtype(np.float32)),
            "obs": room((n_rows, n, obs_shape), np.dtype(np.float32)),
            "actions": room((n_rows, n, 1), np.dtype(np.int64)),
            "avail_actions": room((n_rows, n, n_actions), np.dtype(np.int32)),
            "reward": room((n_rows, 1), np.dtype(np.float32)),
            "terminated": room((n_rows, 1), np.dtype(np.uint8)),
        }
        self._fill(arrays["obs"], "observations", place)
        if has_state:
            self._fill(arrays["state"], "infos.state", place)
        else:
            arrays["state"][:] = arrays["obs"].reshape(n_rows, -1)
        self._fill(arrays["actions"][..., 0], "actions", place)
        if "infos.legals" in self.leaves:
            self._fill(arrays["avail_actions"], "infos.legals", place)
        else:
            arrays["avail_actions"][:] = 1
        self._fill_reward(arrays["reward"][:, 0], place)
        for key in ("state", "obs", "avail_actions"):
            arrays[key][last] = arrays[key][last - 1]
        arrays["actions"][last] = 0
        arrays["reward"][last] = 0
        arrays["terminated"][:] = 0
        arrays["terminated"][last[ends] - 1] = 1
        return arrays

    def _places(self, lengths, kept, offsets) -> tuple[np.ndarray, np.ndarray]:
        """The row of each time step (-1: cut off) `[T]`, and each episode's last row `[E]`."""
        begin = np.cumsum(lengths) - lengths
        step = np.arange(self.n_steps) - np.repeat(begin, lengths)
        place = np.repeat(offsets[:-1], lengths) + step
        place[step >= np.repeat(kept, lengths)] = -1
        return place, offsets[1:] - 1

    def _fill(self, rows: np.ndarray, name: str, place: np.ndarray) -> None:
        """Put the values of a leaf into their rows; whole numbers stay what they are."""
        for first, values in self.blocks(name):
            where = place[first : first + len(values)]
            if where.min() < 0:
                values, where = values[where >= 0], where[where >= 0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # NaN as an integer
                cast = values.astype(rows.dtype, copy=False)
            if rows.dtype.kind == "i" and not (cast == values).all():
                wrong = values[cast != values][0]
                raise DatasetError(
                    f"{self.path}: '{name}': expected whole numbers, found {wrong} at a step from "
                    f"{first} on. Fetch it again."
                )
            rows[where] = cast

    def _fill_reward(self, rows: np.ndarray, place: np.ndarray) -> None:
        for first, values in self.blocks("rewards"):
            differs = ~(np.isnan(values) | (values == values[:, :1])).all(axis=1)
            if differs.any():
                step = int(np.argmax(differs))
                raise DatasetError(
                    f"{self.path}: 'rewards': expected one reward shared by all agents, found "
                    f"{values[step].tolist()} at time step {first + step} ({int(differs.sum())} "
                    "such steps in this part). Add them up or average them first: what they mean "
                    "is not ours to guess."
                )
            where = place[first : first + len(values)]
            rows[where[where >= 0]] = values[where >= 0, 0]


def _names(structure: dict, prefix: str = "") -> Iterator[str]:
    """Dotted names of the leaves of a nested dictionary (as deep as any vault goes)."""
    for key, value in structure.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name.count(".") < 8:
            yield from _names(value, name + ".")
        else:
            yield name


def _step_bytes(store) -> int:
    return int(np.prod(store.shape[2:], dtype=object)) * store.dtype.numpy_dtype.itemsize


def _tensorstore():
    try:
        import tensorstore
    except ImportError as error:
        raise DatasetError(
            f"OG-MARL's vaults need the package tensorstore ({error}). Install requirements.txt."
        ) from error
    return tensorstore


def spec_of(path: Path, name: str) -> dict[str, Any]:
    """Where tensorstore finds a leaf."""
    base = {"driver": "file", "path": f"{path.absolute()}/"}
    return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": name}}


# ------------------------------------------------------------------------------------ writing

TYPES = {
    "observations": np.float32,
    "actions": np.int32,
    "rewards": np.float32,
    "terminals": np.bool_,
    "truncations": np.bool_,
    "infos.state": np.float32,
    "infos.legals": np.bool_,
}


def write(path: Path, dataset: OfflineDataset, *, overwrite: bool = False) -> None:
    """Write a vault that flashbax opens. Left out: the observation after each last transition.

    An episode without a true end is truncated in its last step, whether at the limit or before.
    """
    steps = np.flatnonzero(dataset.is_transition())
    shapes = {name: (1, len(steps), *_row(dataset, name, steps[:1]).shape[1:]) for name in LEAVES}
    with folders.new_folder(path, overwrite) as folder:
        content = {
            "version": VERSION,
            "structure_shape": _nested({name: str(shape) for name, shape in shapes.items()}),
            "structure_dtype": _nested({name: np.dtype(t).name for name, t in TYPES.items()}),
            folders.KEY: folders.describe(dataset),
        }
        (folder / "metadata.json").write_text(json.dumps(content))
        try:
            for name, shape in shapes.items():
                _write_leaf(folder, name, shape, dataset, steps)
            index = _create(folder, LENGTH, np.dtype(np.int32), (1,))
            index.write(np.array([len(steps)], dtype=np.int32)).result()
        except (ValueError, RuntimeError) as error:  # what tensorstore makes of a full disk
            raise DatasetError(f"{path}: cannot be written ({error!s:.200}).") from error


def _nested(flat: dict[str, str]) -> dict[str, Any]:
    infos = {name.split(".")[1]: value for name, value in flat.items() if "." in name}
    return {name: value for name, value in flat.items() if "." not in name} | {"infos": infos}


def _create(folder: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]):
    spec = spec_of(folder, name)
    if name != LENGTH:
        spec["metadata"] = {"compressor": {"id": "gzip", "level": 1}}
    return _tensorstore().open(spec, create=True, dtype=dtype, shape=shape).result()


def _write_leaf(folder, name, shape, dataset, steps) -> None:
    store = _create(folder, name + ".", np.dtype(TYPES[name]), (1, TIME_AXIS, *shape[2:]))
    chunk = store.chunk_layout.write_chunk.shape[1] or 1
    size = max(BLOCK_BYTES // max(_step_bytes(store), 1) // chunk, 1) * chunk
    for first in range(0, len(steps), size):
        values = _row(dataset, name, steps[first : first + size])
        store[0, first : first + len(values)].write(values).result()


def _row(dataset: OfflineDataset, name: str, rows: np.ndarray) -> np.ndarray:
    """The values of a leaf for these rows of transitions, `[len(rows), ...]`."""
    arrays, n = dataset.arrays, dataset.metadata.n_agents
    if name in ("terminals", "truncations"):
        ended = arrays["terminated"][rows] != 0
        if name == "truncations":
            is_last = np.isin(rows, dataset.offsets[1:] - 2)[:, None]
            ended = is_last & ~ended
        return np.repeat(ended, n, axis=1)
    if name == "rewards":
        return np.repeat(arrays["reward"][rows], n, axis=1)
    if name == "actions":
        return arrays["actions"][rows, :, 0].astype(np.int32)
    if name == "infos.legals":
        return arrays["avail_actions"][rows] != 0
    return arrays["state" if name == "infos.state" else "obs"][rows]
