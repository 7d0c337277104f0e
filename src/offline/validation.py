"""The rules of the canonical dataset, one validator for training, collection and tools.

Three kinds, from the outside in: the layout of padded arrays (`check_layout`), the mask `filled`
(`check_filled`), and the values of the rows (`ROW_RULES`). All violations are counted; of each
rule the first is located. A new rule on values is one entry in `ROW_RULES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from inspo.offline.dataset import FIELDS, FILLED, FILLED_FIELD, DatasetMetadata, OfflineDataset
from inspo.offline.padded import ArraySource, PaddedSource, flatten, read_filled, slabs
from inspo.utils.errors import DatasetError


@dataclass(frozen=True)
class Violation:
    """One rule that is broken: how often, and where first.

    episode, step, agent: of the first violation, None where the rule has no such place.
    """

    rule: str
    key: str
    expected: str
    found: str
    count: int = 1
    episode: int | None = None
    step: int | None = None
    agent: int | None = None

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (
                ("episode", self.episode),
                ("step", self.step),
                ("agent", self.agent),
            )
            if value is not None
        ]
        place = f" (first at {', '.join(where)})" if where else ""
        times = f"; {self.count} in all{place}" if place else ""
        what = f"[{self.rule}] key '{self.key}': expected {self.expected}, found {self.found}"
        return what + times


# ---------------------------------------------------------------------------- layout (padded)

SIZES = {"E": "episodes", "T": "time steps", "n": "agents", "A": "actions"}


def check_layout(source: PaddedSource, episode_limit: int | None = None) -> list[Violation]:
    """Keys, dtypes and shapes of padded arrays `[E, T, ...]`.

    episode_limit: where it is known, T must be one more.
    """
    fields = {**FIELDS, FILLED: FILLED_FIELD}
    present = set(source.keys())
    found: list[Violation] = [
        Violation("missing_key", key, f"a dataset '{key}'", f"only {', '.join(sorted(present))}")
        for key in fields
        if key not in present
    ]
    sizes: dict[str, tuple[int, str]] = {}
    for key, spec in fields.items():
        if key not in present:
            continue
        shape, dtype = source.shape(key), source.dtype(key)
        if dtype.newbyteorder("=") != spec.dtype:
            found.append(Violation("wrong_dtype", key, str(spec.dtype), str(dtype)))
        dims = ("E", "T", *spec.dims)
        described = f"[{', '.join(map(str, dims))}]"
        if len(shape) != len(dims):
            found.append(
                Violation("wrong_ndim", key, f"{len(dims)} dimensions {described}", str(shape))
            )
            continue
        for dim, size in zip(dims, shape, strict=True):
            found += _check_size(key, dim, size, described, shape, sizes)
    if "E" in sizes and sizes["E"][0] == 0:
        found.append(Violation("zero_episodes", sizes["E"][1], "at least 1 episode", "0"))
    if "T" in sizes and episode_limit is not None and sizes["T"][0] != episode_limit + 1:
        found.append(
            Violation(
                "wrong_length",
                sizes["T"][1],
                f"T = episode_limit + 1 = {episode_limit + 1} time steps",
                str(sizes["T"][0]),
            )
        )
    return found


def _check_size(key, dim, size, described, shape, sizes) -> list[Violation]:
    """One dimension of one key; remembers in `sizes` the first key that has this dimension."""
    if isinstance(dim, int):
        if size == dim:
            return []
        return [Violation("wrong_shape", key, f"shape {described}", str(shape))]
    if size == 0 and dim != "E":
        return [Violation("wrong_shape", key, f"shape {described} with {dim} > 0", str(shape))]
    agreed, first_key = sizes.setdefault(dim, (size, key))
    if agreed == size:
        return []
    what = SIZES.get(dim, dim)
    return [Violation("sizes_disagree", key, f"{agreed} {what} as '{first_key}' has", str(size))]


# ------------------------------------------------------------------------- the mask `filled`


def check_filled(source: PaddedSource) -> tuple[np.ndarray, list[Violation]]:
    """The number of transitions of each episode, int64 `[E]`, and what is wrong with `filled`.

    The lengths mean something only where nothing is wrong.
    """
    n_episodes = source.shape(FILLED)[0]
    lengths = np.zeros(n_episodes, dtype=np.int64)
    tally = _Tally()
    for first, filled in read_filled(source, n_episodes):
        rows = (filled != 0).sum(axis=1)
        lengths[first : first + len(filled)] = rows - 1
        tally.add(
            "filled_values",
            FILLED,
            "0 or 1",
            (filled != 0) & (filled != 1),
            lambda at, filled=filled: str(filled[at]),
            first,
        )
        resumed = (filled[:, 1:] != 0) & (filled[:, :-1] == 0)
        tally.add(
            "filled_prefix",
            FILLED,
            "ones, then zeros",
            resumed,
            lambda at: "a filled step after one that is not",
            first,
            step_shift=1,
        )
        tally.add(
            "empty_episode",
            FILLED,
            "at least 1 transition and the terminal observation",
            rows < 2,
            lambda at, rows=rows: f"{rows[at]} filled steps",
            first,
        )
    return lengths, tally.violations()


class _Tally:
    """Counts violations by rule, and keeps the first of each. Masks are `[e]` or `[e, T]`."""

    def __init__(self):
        self._first: dict[str, Violation] = {}
        self._count: dict[str, int] = {}

    def add(self, rule, key, expected, bad, describe, first_episode, step_shift=0) -> None:
        count = int(np.count_nonzero(bad))
        if not count:
            return
        if rule not in self._first:
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            step = at[1] + step_shift if len(at) > 1 else None
            self.put(Violation(rule, key, expected, describe(at), 0, first_episode + at[0], step))
        self._count[rule] += count

    def put(self, violation: Violation) -> None:
        self._first[violation.rule] = violation
        self._count[violation.rule] = violation.count

    def has(self, rule: str) -> bool:
        return rule in self._first

    def more(self, rule: str, count: int) -> None:
        self._count[rule] += count

    def violations(self) -> list[Violation]:
        return [replace(v, count=self._count[rule]) for rule, v in self._first.items()]


# -------------------------------------------------------------------------- values of the rows


@dataclass(frozen=True)
class Rows:
    """A run of whole episodes: `arrays[key]` `[rows, ...]`, `offsets` `[e + 1]` into them."""

    arrays: Mapping[str, np.ndarray]
    offsets: np.ndarray

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def is_transition(self) -> np.ndarray:
        """False in the rows of terminal observations: `[rows]`."""
        mask = np.ones(int(self.offsets[-1]), dtype=bool)
        mask[self.offsets[1:] - 1] = False
        return mask

    def is_last_transition(self) -> np.ndarray:
        """True in the row of the last transition of each episode: `[rows]`."""
        mask = np.zeros(int(self.offsets[-1]), dtype=bool)
        mask[self.offsets[1:] - 2] = True
        return mask


@dataclass(frozen=True)
class RowRule:
    """A rule on the values of rows. `bad(rows)` is a mask `[rows]` or `[rows, n]`."""

    name: str
    key: str
    expected: str
    bad: Callable[[Rows], np.ndarray]


def _not_finite(key: str) -> Callable[[Rows], np.ndarray]:
    def bad(rows: Rows) -> np.ndarray:
        values = rows[key]
        finite = np.isfinite(values)
        # Nearly always all is well: one reduction over everything is the cheap way to know.
        if finite.all():
            return np.zeros(len(values), dtype=bool)
        return ~finite.all(axis=-1)

    return bad


def _out_of_range(rows: Rows) -> np.ndarray:
    actions = rows["actions"][..., 0]
    return (actions < 0) | (actions >= rows["avail_actions"].shape[-1])


def _unavailable(rows: Rows) -> np.ndarray:
    actions, avail = rows["actions"], rows["avail_actions"]
    inside = np.clip(actions, 0, avail.shape[-1] - 1)
    taken = np.take_along_axis(avail, inside, axis=-1)[..., 0] != 0
    # An action outside the range is the business of another rule, and that of a terminal row
    # starts no transition.
    return ~taken & (inside == actions)[..., 0] & rows.is_transition()[:, None]


ROW_RULES: tuple[RowRule, ...] = (
    RowRule("finite_state", "state", "finite numbers", _not_finite("state")),
    RowRule("finite_obs", "obs", "finite numbers", _not_finite("obs")),
    RowRule("finite_reward", "reward", "finite numbers", _not_finite("reward")),
    RowRule("action_range", "actions", "an action in 0..n_actions-1", _out_of_range),
    RowRule("action_available", "actions", "an action that its mask allows", _unavailable),
    RowRule(
        "mask_values",
        "avail_actions",
        "0 or 1",
        lambda rows: ((rows["avail_actions"] & ~np.int32(1)) != 0).any(axis=-1),
    ),
    RowRule(
        "no_action",
        "avail_actions",
        "at least 1 available action",
        lambda rows: ~(rows["avail_actions"] != 0).any(axis=-1),
    ),
    RowRule("terminated_values", "terminated", "0 or 1", lambda rows: rows["terminated"][:, 0] > 1),
    RowRule(
        "terminated_place",
        "terminated",
        "1 in the last transition of an episode only",
        lambda rows: (rows["terminated"][:, 0] != 0) & ~rows.is_last_transition(),
    ),
)


def _describe(rows: Rows, rule: RowRule, row: int, agent: int | None) -> str:
    """The offending value, short."""
    value = rows[rule.key][row] if agent is None else rows[rule.key][row, agent]
    if rule.name.startswith("finite_"):
        return str(value[~np.isfinite(value)][0])
    if rule.name == "action_available":
        return f"action {value[0]}, mask {rows['avail_actions'][row, agent].tolist()}"
    return str(value[0]) if value.size == 1 else str(value.tolist())


def _check_rows(rows: Rows, first_episode: int, tally: _Tally) -> None:
    """Apply `ROW_RULES` to a run of whole episodes that begins with `first_episode`."""
    for rule in ROW_RULES:
        bad = rule.bad(rows)
        count = int(np.count_nonzero(bad))
        if not count:
            continue
        if tally.has(rule.name):
            tally.more(rule.name, count)
            continue
        at = np.argwhere(bad)[0]
        row, agent = int(at[0]), (int(at[1]) if len(at) > 1 else None)
        episode = int(np.searchsorted(rows.offsets, row, side="right")) - 1
        tally.put(
            Violation(
                rule.name,
                rule.key,
                rule.expected,
                _describe(rows, rule, row, agent),
                count,
                first_episode + episode,
                row - int(rows.offsets[episode]),
                agent,
            )
        )


def _check_short(
    lengths: np.ndarray, terminated: np.ndarray, episode_limit: int, n_cut: int
) -> list[Violation]:
    """Episodes that neither terminate nor reach the limit, beyond those that metadata admits."""
    short = (lengths < episode_limit) & ~terminated
    count = int(short.sum())
    if count <= max(n_cut, 0):
        return []
    episode = int(np.flatnonzero(short)[0])
    return [
        Violation(
            "no_terminal",
            "terminated",
            f"an episode that terminates, or lasts {episode_limit} steps"
            + (f" ({n_cut} such episodes are admitted)" if n_cut else ""),
            f"{lengths[episode]} steps and no terminal",
            count,
            episode,
            int(lengths[episode]) - 1,
        )
    ]


# ------------------------------------------------------------------------------- entry points


def validate(
    data: OfflineDataset | PaddedSource | Mapping[str, np.ndarray],
    *,
    episode_limit: int | None = None,
    n_cut: int | None = 0,
) -> list[Violation]:
    """Every rule of the canonical dataset; an empty list says that all hold.

    data: a dataset in memory, or padded arrays `[E, T, ...]`, which are read slab by slab.
    episode_limit: for padded arrays, where it is known (T must be one more). n_cut: how many
    episodes may end early without a terminal (None: any number); a dataset brings its own.
    """
    if isinstance(data, OfflineDataset):
        return _validate_flat(data)
    source = ArraySource(data) if isinstance(data, Mapping) else data
    return _validate_padded(source, episode_limit, n_cut)


def _validate_flat(dataset: OfflineDataset) -> list[Violation]:
    found = _check_flat_layout(dataset)
    if found:
        return found
    tally = _Tally()
    for first, end in dataset.blocks():
        begin, stop = dataset.offsets[first], dataset.offsets[end]
        arrays = {key: array[begin:stop] for key, array in dataset.arrays.items()}
        _check_rows(Rows(arrays, dataset.offsets[first : end + 1] - begin), first, tally)
    terminated = dataset.arrays["terminated"][dataset.offsets[1:] - 2, 0] != 0
    meta = dataset.metadata
    return tally.violations() + _check_short(
        dataset.lengths, terminated, meta.episode_limit, meta.n_cut
    )


def _check_flat_layout(dataset: OfflineDataset) -> list[Violation]:
    """Keys, dtypes and shapes of flat rows against the metadata."""
    if not len(dataset):
        return [Violation("zero_episodes", "lengths", "at least 1 episode", "0")]
    found = []
    limit = dataset.metadata.episode_limit
    off = (dataset.lengths < 1) | (dataset.lengths > limit)
    if off.any():
        episode = int(np.flatnonzero(off)[0])
        found.append(
            Violation(
                "wrong_length",
                "lengths",
                f"1 to episode_limit = {limit} transitions",
                str(dataset.lengths[episode]),
                int(off.sum()),
                episode,
            )
        )
    for key, spec in FIELDS.items():
        array = dataset.arrays.get(key)
        if array is None:
            found.append(Violation("missing_key", key, f"an array '{key}'", "none"))
            continue
        if array.dtype != spec.dtype:
            found.append(Violation("wrong_dtype", key, str(spec.dtype), str(array.dtype)))
        expected = (dataset.n_rows, *dataset.metadata.row_shape(key))
        if array.shape != expected:
            found.append(Violation("wrong_shape", key, f"shape {expected}", str(array.shape)))
    return found


def _validate_padded(
    source: PaddedSource, episode_limit: int | None, n_cut: int | None
) -> list[Violation]:
    found = check_layout(source, episode_limit)
    if found:
        return found
    lengths, found = check_filled(source)
    if found:
        return found
    tally = _Tally()
    terminated = np.zeros(len(lengths), dtype=bool)
    for first, end in slabs(source, "obs", len(lengths)):
        arrays = flatten(source, lengths[first:end], first)
        offsets = np.concatenate([[0], np.cumsum(lengths[first:end] + 1)])
        _check_rows(Rows(arrays, offsets), first, tally)
        terminated[first:end] = arrays["terminated"][offsets[1:] - 2, 0] != 0
    limit = source.shape(FILLED)[1] - 1
    short = [] if n_cut is None else _check_short(lengths, terminated, limit, n_cut)
    return tally.violations() + short


def require_valid(
    violations: Sequence[Violation], name: str, advice: str = "Collect or convert it again."
) -> None:
    """Raise one DatasetError that names the file, and every rule that is broken, if any is."""
    if not violations:
        return
    shown = "\n".join(f"  {violation}" for violation in violations)
    raise DatasetError(f"{name} is not a valid dataset:\n{shown}\n{advice}")


CHOOSE = "Choose the dataset of this map, or the map of this dataset."


def check_matches(
    metadata: DatasetMetadata,
    env_info: Mapping[str, Any] | None = None,
    map_name: str | None = None,
    name: str = "The dataset",
    advise: Callable[[dict[str, int]], str] | None = None,
) -> None:
    """Raise DatasetError unless the data belong to this environment.

    env_info: as `get_env_info` gives it; of its keys those that the metadata have are compared.
    Every number that differs is named. advise: the data's numbers -> what to do.
    """
    own = metadata.env_info()
    differing = [
        f"{key} is {own[key]} in the data and {env_info[key]} in the environment"
        for key in own
        if env_info is not None and key in env_info and int(env_info[key]) != own[key]
    ]
    if map_name is not None and metadata.map_name != map_name:
        differing.insert(0, f"map_name is '{metadata.map_name}' and not '{map_name}'")
    if differing:
        advice = advise(own) if advise else CHOOSE
        raise DatasetError(
            f"{name} is another map's data, or was made with other settings ({metadata.env}, "
            f"{metadata.map_name}, {metadata.quality}; {metadata.simulator}): "
            f"{'; '.join(differing)}. {advice}"
        )


# Settings of a simulator that say nothing of the data: where and how it is watched.
NOT_OF_THE_DATA = (
    "map_name",
    "seed",
    "game_version",
    "debug",
    "replay_dir",
    "replay_prefix",
    "window_size_x",
    "window_size_y",
)


def differing_settings(
    metadata: DatasetMetadata, env_args: Mapping[str, Any], name: str = "The dataset"
) -> list[str]:
    """What the data were collected with and the environment has otherwise, in words.

    Of the settings that both know. Data whose settings are not known differ in none. DatasetError
    if the metadata are damaged.
    """
    text = metadata.env_args or "{}"
    try:
        own = json.loads(text)
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, dict):
        raise DatasetError(
            f"{name}: attribute 'env_args': expected a JSON object, found '{text[:60]}'. The file "
            "is damaged or was changed: collect or convert it again."
        )
    return [
        f"env_args.{key} was {own[key]} and is {env_args[key]}"
        for key in own
        if key in env_args and key not in NOT_OF_THE_DATA and own[key] != env_args[key]
    ]
