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
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inspo.offline.formats import folders
from inspo.offline.formats.common import (
    MAX_COMPRESSION,
    Hints,
    build_valid,
    cut_as_lost,
    cut_at_limit,
    foreign_metadata,
    log,
)
from inspo.offline.offline_dataset import FIELDS, ContentHash, OfflineDataset, row_offsets
from inspo.offline.padded import cast_exactly
from inspo.offline.scratch import allocator
from inspo.offline.validation import Violation, damaged, require_valid
from inspo.utils.errors import DatasetError, reason_of

NAME = "vault"
DESCRIPTION = "OG-MARL's vault, a folder with metadata.json and manifest.ocdbt"

VERSION = 1.2  # flashbax's
LENGTH = "vault_index"
TIME_AXIS = 10**13  # flashbax makes every array so long; what is not written takes no room
BLOCK_BYTES = 4 << 20  # read or written at once

REPEATED = "the observation after the last transition is not in a vault: the last row is repeated"
UNFINISHED = "the last episode has no end in the vault: it counts as cut"
NO_STATE = "the vault has no infos.state: the state is the agents' observations side by side"
NO_MASKS = "the vault has no infos.legals: every action counts as available"


@dataclass(frozen=True)
class Leaf:
    """One array of a vault. dims: its dimensions, the leading 1 included. dtype: as we write it.

    values: what stands there for these rows of transitions of a dataset, `[len(rows), ...]`.
    """

    dims: int
    dtype: type
    values: Callable[[OfflineDataset, np.ndarray], np.ndarray]


def _each_agent(data: OfflineDataset, values: np.ndarray) -> np.ndarray:
    return np.repeat(values, data.metadata.n_agents, axis=1)


def _terminal(data: OfflineDataset, rows: np.ndarray) -> np.ndarray:
    return np.asarray(data.arrays["terminated"][rows] != 0)


def _truncated(data: OfflineDataset, rows: np.ndarray) -> np.ndarray:
    last = np.isin(rows, data.offsets[1:] - 2)[:, None]
    return np.asarray(last & ~_terminal(data, rows))


LEAVES = {
    "observations": Leaf(4, np.float32, lambda data, rows: data.arrays["obs"][rows]),
    "actions": Leaf(3, np.int32, lambda data, rows: data.arrays["actions"][rows, :, 0]),
    "rewards": Leaf(
        3, np.float32, lambda data, rows: _each_agent(data, data.arrays["reward"][rows])
    ),
    "terminals": Leaf(3, np.bool_, lambda data, rows: _each_agent(data, _terminal(data, rows))),
    "truncations": Leaf(3, np.bool_, lambda data, rows: _each_agent(data, _truncated(data, rows))),
    "infos.state": Leaf(3, np.float32, lambda data, rows: data.arrays["state"][rows]),
    "infos.legals": Leaf(4, np.bool_, lambda data, rows: data.arrays["avail_actions"][rows] != 0),
}


# ------------------------------------------------------------------------------------ reading


def recognises(path: Path) -> bool:
    """Whether it is a vault, or a folder `{map}.vlt` that holds some."""
    return bool(_vaults(path))


def _vaults(path: Path) -> list[Path]:
    """The vault at `path`, or those in it."""
    places = [path, *sorted(path.iterdir())] if path.is_dir() else []
    vaults = [
        place
        for place in places
        if (place / "manifest.ocdbt").is_file() and (place / "metadata.json").is_file()
    ]
    return vaults[:1] if vaults[:1] == [path] else vaults


def load(path: Path, hints: Hints) -> OfflineDataset:
    """Read a vault, or the only one in a folder of vaults."""
    vaults = _vaults(path)
    if len(vaults) > 1:
        names = ", ".join(map(str, vaults))
        raise DatasetError(f"{path}: holds {len(vaults)} vaults. Name one of them: {names}.")
    path = vaults[0]
    file = path / "metadata.json"
    content = folders.read_json(file)
    stated = folders.stated_metadata(content, file)
    hints = _with_names(folders.hints_with(stated, hints), path)
    source = VaultSource(path, content)
    lengths, ends, notes = source.episodes()
    kept, cut = cut_at_limit(lengths, hints.episode_limit, str(path), notes)
    arrays = source.rows(lengths, kept, ends & ~cut, hints)
    won = cut_as_lost(cut, folders.stated_victories(stated, len(lengths), file))
    if not stated and hints.episode_limit is None:
        notes.append("episode_limit is the length of the longest episode")
    for note in notes:
        log.info("%s: %s", path, note)
    limits = [limit for limit in (hints.episode_limit, stated.get("episode_limit")) if limit]
    limit = min(limits) if limits else int(kept.max())
    origin = f"converted from {path.parent.name}/{path.name} (OG-MARL's vault)"
    metadata = foreign_metadata(arrays, limit, hints, origin, notes)
    dataset = build_valid(arrays, kept, metadata, won, str(path))
    return folders.as_stated(dataset, stated, hints, file)


def _with_names(hints: Hints, path: Path) -> Hints:
    """Map and quality from OG-MARL's names, `{map}.vlt/{quality}`, where nothing else says them."""
    if path.parent.suffix != ".vlt":
        return hints
    return replace(
        hints,
        map_name=hints.map_name or path.parent.stem,
        quality=hints.quality or path.name.lower().replace("-", "_"),
    )


class VaultSource:
    """The leaves of an open vault, read in blocks of time steps. content: its metadata.json."""

    def __init__(self, path: Path, content: dict[str, Any]):
        self.path = path
        for item in path.rglob("*"):
            if not (item.is_file() or item.is_dir()):  # tensorstore would wait for a pipe's end
                raise damaged(item, "a file", "none")
        structure = content.get("structure_shape")
        if not isinstance(structure, dict):
            place = f"{path / 'metadata.json'}: 'structure_shape'"
            raise damaged(place, "the names of the vault's arrays", f"{structure!r:.80}")
        present = set(_names(structure))
        missing = [
            Violation("missing_key", name, f"an array '{name}'", ", ".join(sorted(present)))
            for name in LEAVES
            if name not in present and not name.startswith("infos.")
        ]
        require_valid(missing, str(path), "It is no multi-agent vault of OG-MARL's layout.")
        self.leaves = {name: self._open(name + ".") for name in LEAVES if name in present}
        self.n_steps = self._length()
        self._check_shapes()

    def _open(self, name: str) -> Any:
        import tensorstore  # half a second, which other formats need not wait for

        spec = spec_of(self.path, name)
        return self._of_tensorstore(name, lambda: tensorstore.open(spec, open=True, read=True))

    def _of_tensorstore(self, name: str, begin: Callable[[], Any]) -> Any:
        """The result of what `begin` begins, with whatever tensorstore raises as DatasetError."""
        try:
            return begin().result()
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(
                f"{self.path}: '{name}' is truncated or damaged ({reason_of(error):.200}). "
                "Fetch it again."
            ) from error

    def _length(self) -> int:
        """T, from `vault_index`."""
        store = self._open(LENGTH)
        if store.shape != (1,) or store.dtype.numpy_dtype.kind not in "iu":
            found = f"{store.dtype.name} {store.shape}"
            raise damaged(f"{self.path}: '{LENGTH}'", "one integer", found)
        n_steps = int(self._of_tensorstore(LENGTH, store.read)[0])
        if n_steps < 1:
            raise damaged(f"{self.path}: '{LENGTH}'", "at least 1 time step", n_steps)
        return n_steps

    def _check_shapes(self) -> None:
        broken = []
        agents = self.leaves["observations"].shape[2:3]
        for name, store in self.leaves.items():
            shape, kind = store.shape, store.dtype.numpy_dtype.kind
            if len(shape) != LEAVES[name].dims or shape[0] != 1 or 0 in shape[2:]:
                expected = f"[1, T, ...] with {LEAVES[name].dims} dimensions"
                broken.append(Violation("wrong_shape", name, expected, str(shape)))
            elif shape[1] < self.n_steps:
                expected = f"{self.n_steps} time steps, as {LENGTH} says"
                broken.append(Violation("wrong_length", name, expected, str(shape[1])))
            elif name != "infos.state" and shape[2:3] != agents:
                expected = f"{agents[0]} agents as 'observations' has"
                broken.append(Violation("sizes_disagree", name, expected, str(shape[2])))
            if kind not in ("iu" if name == "actions" else "iubf"):
                whole = "whole numbers (continuous actions are not supported)"
                expected = whole if name == "actions" else "numbers"
                broken.append(Violation("wrong_dtype", name, expected, store.dtype.name))
        require_valid(broken, str(self.path), "Fetch it again, or choose another vault.")
        claimed = self.n_steps * sum(map(_step_bytes, self.leaves.values()))
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        if claimed > MAX_COMPRESSION * size:
            held = f"at most what a folder of {size} bytes can hold"
            raise damaged(self.path, held, f"a claim of {claimed} bytes")

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """`(first step, values [t, ...])`, in order."""
        store = self.leaves[name]
        step = _block_steps(store, store.chunk_layout.read_chunk)
        for first in range(0, self.n_steps, step):
            block = store[0, first : min(first + step, self.n_steps)]
            yield first, self._of_tensorstore(name, block.read)

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
        return np.asarray(flags.all(axis=1))

    def rows(
        self, lengths: np.ndarray, kept: np.ndarray, ends: np.ndarray, hints: Hints
    ) -> dict[str, np.ndarray]:
        """The canonical rows: the first `kept` transitions of each episode and a last row.

        ends: `[E]`, whether the last kept transition is a true end.
        """
        offsets = row_offsets(kept)
        place, last = self._places(lengths, kept, offsets), offsets[1:] - 1
        has_state, has_masks = "infos.state" in self.leaves, "infos.legals" in self.leaves
        n, width = self.leaves["observations"].shape[2:4]
        state = self.leaves["infos.state"].shape[2] if has_state else n * width
        if has_masks:
            n_actions = self.leaves["infos.legals"].shape[3]
        else:
            n_actions = 1 + max(int(values.max()) for _, values in self.blocks("actions"))
        sizes: dict[str | int, int] = {"S": state, "O": width, "n": n, "A": n_actions, 1: 1}
        shapes = {key: tuple(sizes[dim] for dim in spec.dims) for key, spec in FIELDS.items()}
        row_bytes = (int(np.prod(shapes[k])) * spec.dtype.itemsize for k, spec in FIELDS.items())
        room = allocator(hints.in_memory, int(offsets[-1]) * sum(row_bytes), self.path)
        arrays = {
            key: room((int(offsets[-1]), *shapes[key]), spec.dtype) for key, spec in FIELDS.items()
        }
        self._fill(arrays["obs"], "observations", place)
        if has_state:
            self._fill(arrays["state"], "infos.state", place)
        else:
            arrays["state"][:] = arrays["obs"].reshape(len(arrays["obs"]), -1)
        self._fill(arrays["actions"][..., 0], "actions", place)
        if has_masks:
            self._fill(arrays["avail_actions"], "infos.legals", place)
        else:
            arrays["avail_actions"][:] = 1
        self._fill_reward(arrays["reward"][:, 0], place)
        _repeat_last(arrays, last)
        arrays["terminated"][:] = 0
        arrays["terminated"][last[ends] - 1] = 1
        return arrays

    def _places(self, lengths: np.ndarray, kept: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The row of each time step (-1: cut off) `[T]`."""
        begin = np.cumsum(lengths) - lengths
        step = np.arange(self.n_steps) - np.repeat(begin, lengths)
        place = np.repeat(offsets[:-1], lengths) + step
        return np.where(step < np.repeat(kept, lengths), place, -1)

    def _fill(self, rows: np.ndarray, name: str, place: np.ndarray) -> None:
        """Put the values of a leaf into their rows."""
        for first, values in self.blocks(name):
            where = place[first : first + len(values)]
            values, where = values[where >= 0], where[where >= 0]
            rows[where] = cast_exactly(values, rows.dtype, str(self.path), name)

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


def _names(structure: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the leaves of a nested dictionary (as deep as any vault goes)."""
    for key, value in structure.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name.count(".") < 8:
            yield from _names(value, name + ".")
        else:
            yield name


def _step_bytes(store: Any) -> int:
    return int(math.prod(store.shape[2:]) * store.dtype.numpy_dtype.itemsize)


def _block_steps(store: Any, chunks: Any) -> int:
    """Time steps of about `BLOCK_BYTES`, a multiple of those in a chunk."""
    chunk = chunks.shape[1] or 1
    return max(BLOCK_BYTES // max(_step_bytes(store), 1) // chunk, 1) * int(chunk)


def spec_of(path: Path, name: str) -> dict[str, Any]:
    """Where tensorstore finds a leaf."""
    base = {"driver": "file", "path": f"{path.absolute()}/"}
    return {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": name}}


# ------------------------------------------------------------------------------------ writing


def write(path: Path, dataset: OfflineDataset, *, overwrite: bool = False) -> None:
    """Write a vault that flashbax opens. Left out: the observation after each last transition.

    An episode without a true end is truncated in its last step, whether at the limit or before.
    """
    steps = np.flatnonzero(dataset.is_transition())
    shapes = {
        name: (1, len(steps), *leaf.values(dataset, steps[:1]).shape[1:])
        for name, leaf in LEAVES.items()
    }
    dtypes = {name: np.dtype(leaf.dtype).name for name, leaf in LEAVES.items()}
    with folders.new_folder(path, overwrite) as folder:
        content = {
            "version": VERSION,
            "structure_shape": _nested({name: str(shape) for name, shape in shapes.items()}),
            "structure_dtype": _nested(dtypes),
            folders.KEY: folders.describe(dataset, _hash_without_last_rows(dataset)),
        }
        (folder / "metadata.json").write_text(json.dumps(content))
        try:
            for name, shape in shapes.items():
                _write_leaf(folder, name, shape, dataset, steps)
            index = _create(folder, LENGTH, np.dtype(np.int32), (1,))
            index.write(np.array([len(steps)], dtype=np.int32)).result()
        except (ValueError, RuntimeError) as error:  # what tensorstore makes of a full disk
            raise DatasetError(f"{path}: cannot be written ({error!s:.200}).") from error


def _repeat_last(arrays: dict[str, np.ndarray], last: np.ndarray) -> None:
    """What a vault does not say of the rows after the last transitions."""
    for key in ("state", "obs", "avail_actions"):
        arrays[key][last] = arrays[key][last - 1]
    arrays["actions"][last] = 0
    arrays["reward"][last] = 0


def _hash_without_last_rows(dataset: OfflineDataset) -> str:
    """The content hash of what a reader of the vault will get."""
    digest = ContentHash()
    for first, end in dataset.blocks():
        begin, stop = dataset.offsets[first], dataset.offsets[end]
        arrays = {key: array[begin:stop].copy() for key, array in dataset.arrays.items()}
        _repeat_last(arrays, dataset.offsets[first + 1 : end + 1] - begin - 1)
        digest.update(arrays, dataset.lengths[first:end])
    return digest.hexdigest()


def _nested(flat: dict[str, str]) -> dict[str, Any]:
    infos = {name.split(".")[1]: value for name, value in flat.items() if "." in name}
    return {name: value for name, value in flat.items() if "." not in name} | {"infos": infos}


def _create(folder: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    import tensorstore

    spec = spec_of(folder, name)
    if name != LENGTH:
        spec["metadata"] = {"compressor": {"id": "gzip", "level": 1}}
    return tensorstore.open(spec, create=True, dtype=dtype, shape=shape).result()


def _write_leaf(
    folder: Path, name: str, shape: tuple[int, ...], dataset: OfflineDataset, steps: np.ndarray
) -> None:
    leaf = LEAVES[name]
    store = _create(folder, name + ".", np.dtype(leaf.dtype), (1, TIME_AXIS, *shape[2:]))
    size = _block_steps(store, store.chunk_layout.write_chunk)
    for first in range(0, len(steps), size):
        values = leaf.values(dataset, steps[first : first + size])
        store[0, first : first + len(values)].write(values.astype(leaf.dtype, copy=False)).result()
