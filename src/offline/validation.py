"""The rules of the canonical dataset, one validator for training, collection and tools.

Here are those of the rows: their layout and their values (`ROW_RULES`). Those of padded arrays are
in `padded.py`. All violations are counted; of each rule the first is located. A new rule on values
is one entry in `ROW_RULES`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from inspo.offline.offline_dataset import FIELDS, DatasetMetadata, OfflineDataset, ends_terminated
from inspo.utils.errors import DatasetError

Data = TypeVar("Data")


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
        places = {"episode": self.episode, "step": self.step, "agent": self.agent}
        where = ", ".join(f"{name} {at}" for name, at in places.items() if at is not None)
        place = f"; {self.count} in all (first at {where})" if where else ""
        return (
            f"[{self.rule}] key '{self.key}': expected {self.expected}, found {self.found}{place}"
        )


Place = tuple[int, ...]
"""Episode, step and agent, as many of them as there are; or an index of an array."""


@dataclass(frozen=True)
class Rule(Generic[Data]):
    """A rule on values. bad: a mask of the entries that break it. value: what
    stands in one of them, of the data, the key and a place."""

    name: str
    key: str
    expected: str
    bad: Callable[[Data], np.ndarray]
    value: Callable[[Data, str, Place], str]


class Tally:
    """Counts violations by rule, and keeps the first of each."""

    def __init__(self) -> None:
        self._first: dict[str, Violation] = {}

    def add(
        self, rule: Rule[Data], data: Data, first: int, offsets: np.ndarray | None = None
    ) -> None:
        """Apply a rule to the episodes from `first` on. offsets: where each begins in rows."""
        bad = rule.bad(data)
        count = int(np.count_nonzero(bad))
        if not count:
            return
        known = self._first.get(rule.name)
        if known is None:
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            value = rule.value(data, rule.key, at)
            if offsets is not None:
                episode = int(np.searchsorted(offsets, at[0], side="right")) - 1
                at = (episode, at[0] - int(offsets[episode]), *at[1:])
            where = dict(zip(("episode", "step", "agent"), (first + at[0], *at[1:])))
            known = Violation(rule.name, rule.key, rule.expected, value, 0, **where)
        self._first[rule.name] = replace(known, count=known.count + count)

    def violations(self) -> list[Violation]:
        return list(self._first.values())


# -------------------------------------------------------------------------- values of the rows


@dataclass(frozen=True)
class Rows:
    """A run of whole episodes: `arrays[key]` `[rows, ...]`, `offsets` `[e + 1]` into them."""

    arrays: Mapping[str, np.ndarray]
    offsets: np.ndarray

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def at_end(self, place: int) -> np.ndarray:
        """True in one row of each episode, counted from its end: bool `[rows]`."""
        mask = np.zeros(int(self.offsets[-1]), dtype=bool)
        mask[self.offsets[1:] + place] = True
        return mask


LAST_TRANSITION, TERMINAL = -2, -1  # rows of an episode


def _not_finite(key: str) -> Callable[[Rows], np.ndarray]:
    def bad(rows: Rows) -> np.ndarray:
        finite = np.isfinite(rows[key])
        # Nearly always all is well: one reduction over everything is the cheap way to know.
        return np.zeros(len(finite), dtype=bool) if finite.all() else ~finite.all(axis=-1)

    return bad


def _out_of_range(rows: Rows) -> np.ndarray:
    actions = rows["actions"][..., 0]
    return np.asarray((actions < 0) | (actions >= rows["avail_actions"].shape[-1]))


def _unavailable(rows: Rows) -> np.ndarray:
    actions, avail = rows["actions"], rows["avail_actions"]
    inside = np.clip(actions, 0, avail.shape[-1] - 1)
    refused = np.take_along_axis(avail, inside, axis=-1)[..., 0] == 0
    # An action outside the range is the business of another rule, and that of a terminal row
    # starts no transition.
    return np.asarray(refused & (inside == actions)[..., 0] & ~rows.at_end(TERMINAL)[:, None])


def _not_binary(rows: Rows) -> np.ndarray:
    return np.asarray(((rows["avail_actions"] & ~np.int32(1)) != 0).any(axis=-1))


def _without_action(rows: Rows) -> np.ndarray:
    return np.asarray((rows["avail_actions"] == 0).all(axis=-1))


def _misplaced(rows: Rows) -> np.ndarray:
    return np.asarray((rows["terminated"][:, 0] != 0) & ~rows.at_end(LAST_TRANSITION))


def _value(rows: Rows, key: str, at: Place) -> str:
    """What stands in a row, or in one of an agent; of states and the like what is not finite."""
    entry = rows[key][at]
    odd = entry[~np.isfinite(entry)]
    return str(odd[0] if len(odd) else entry[0] if entry.size == 1 else entry.tolist())


def _action_and_mask(rows: Rows, key: str, at: Place) -> str:
    return f"action {rows[key][at][0]}, mask {rows['avail_actions'][at].tolist()}"


def _flag(rows: Rows) -> np.ndarray:
    return rows["terminated"][:, 0]


FINITE, BINARY = "finite numbers", "0 or 1"
AVAILABLE, ALWAYS = "an action that its mask allows", "at least 1 available action"
ENDS = "1 in the last transition of an episode only"
ROW_RULES = (
    Rule("finite_state", "state", FINITE, _not_finite("state"), _value),
    Rule("finite_obs", "obs", FINITE, _not_finite("obs"), _value),
    Rule("finite_reward", "reward", FINITE, _not_finite("reward"), _value),
    Rule("action_range", "actions", "an action in 0..n_actions-1", _out_of_range, _value),
    Rule("action_available", "actions", AVAILABLE, _unavailable, _action_and_mask),
    Rule("mask_values", "avail_actions", BINARY, _not_binary, _value),
    Rule("no_action", "avail_actions", ALWAYS, _without_action, _value),
    Rule("terminated_values", "terminated", BINARY, lambda rows: _flag(rows) > 1, _value),
    Rule("terminated_place", "terminated", ENDS, _misplaced, _value),
)
"""Masks `[rows]` or `[rows, n]`."""


def validate(dataset: OfflineDataset) -> list[Violation]:
    """Every rule of the canonical dataset; an empty list says that all hold."""
    if broken := _check_layout(dataset):
        return broken
    tally = Tally()
    for first, end in dataset.blocks():
        begin, stop = dataset.offsets[first], dataset.offsets[end]
        arrays = {key: array[begin:stop] for key, array in dataset.arrays.items()}
        rows = Rows(arrays, dataset.offsets[first : end + 1] - begin)
        for rule in ROW_RULES:
            tally.add(rule, rows, first, rows.offsets)
    return tally.violations() + _check_cut(dataset)


def _check_layout(dataset: OfflineDataset) -> list[Violation]:
    """Keys, dtypes and shapes of the rows against the metadata."""
    if not len(dataset):
        return [Violation("zero_episodes", "lengths", "at least 1 episode", "0")]
    broken = []
    limit = dataset.metadata.episode_limit
    wrong = np.flatnonzero((dataset.lengths < 1) | (dataset.lengths > limit))
    if len(wrong):
        expected, value = f"1 to episode_limit = {limit} transitions", dataset.lengths[wrong[0]]
        place = len(wrong), int(wrong[0])
        broken.append(Violation("wrong_length", "lengths", expected, str(value), *place))
    for key, spec in FIELDS.items():
        array = dataset.arrays.get(key)
        if array is None:
            broken.append(Violation("missing_key", key, f"an array '{key}'", "none"))
            continue
        if array.dtype != spec.dtype:
            broken.append(Violation("wrong_dtype", key, str(spec.dtype), str(array.dtype)))
        shape = (dataset.n_rows, *dataset.metadata.row_shape(key))
        if array.shape != shape:
            broken.append(Violation("wrong_shape", key, f"shape {shape}", str(array.shape)))
    return broken


def _check_cut(dataset: OfflineDataset) -> list[Violation]:
    """Episodes that neither terminate nor reach the limit, beyond those that metadata admits."""
    limit, admitted = dataset.metadata.episode_limit, dataset.metadata.n_cut
    ended = ends_terminated(dataset.arrays["terminated"], dataset.lengths)
    cut = np.flatnonzero((dataset.lengths < limit) & ~ended)
    if len(cut) <= max(admitted, 0):
        return []
    length = int(dataset.lengths[cut[0]])
    expected = f"an episode that terminates, or lasts {limit} steps"
    expected += f" ({admitted} such episodes are admitted)" if admitted else ""
    value = f"{length} steps and no terminal"
    place = len(cut), int(cut[0]), length - 1
    return [Violation("no_terminal", "terminated", expected, value, *place)]


def damaged(place: object, expected: object, found: object) -> DatasetError:
    """The error for what no whole file holds."""
    return DatasetError(
        f"{place}: expected {expected}, found {found}. It is incomplete, damaged or was changed: "
        "fetch, collect or convert it again."
    )


def require_valid(
    violations: Sequence[Violation], name: str, advice: str = "Collect or convert it again."
) -> None:
    """Raise one DatasetError that names the file, and every rule that is broken, if any is."""
    if violations:
        shown = "\n".join(f"  {violation}" for violation in violations)
        raise DatasetError(f"{name} is not a valid dataset:\n{shown}\n{advice}")


# ------------------------------------------------------------------- the data and the environment

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
NOT_OF_THE_DATA = {
    *("map_name", "seed", "game_version", "debug", "replay_dir", "replay_prefix"),
    *("window_size_x", "window_size_y"),
}


def differing_settings(
    metadata: DatasetMetadata, env_args: Mapping[str, Any], name: str = "The dataset"
) -> list[str]:
    """What the data were collected with and the environment has otherwise, one text each.

    Of the settings that both know. Data whose settings are not known differ in none. DatasetError
    if the metadata are damaged.
    """
    text = metadata.env_args or "{}"
    try:
        own = json.loads(text)
    except (ValueError, RecursionError):
        own = None
    if not isinstance(own, dict):
        raise damaged(f"{name}: attribute 'env_args'", "a JSON object", f"'{text[:60]}'")
    return [
        f"env_args.{key} was {own[key]} and is {env_args[key]}"
        for key in own
        if key in env_args and key not in NOT_OF_THE_DATA and own[key] != env_args[key]
    ]
