"""Putting a saved state back: one that is built like the state that is there, or a clear error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from inspo.utils.errors import CheckpointError


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def put_back(part: Stateful, state: Any, path: Path, note: str = "") -> None:
    """`part.load_state_dict(state)`. CheckpointError, naming file and key, for what does not fit.

    path: the file that `state` was read from. note: whose it is, for the error.
    """
    with naming(path, note):
        require_like(state, part.state_dict())
        part.load_state_dict(state)


@contextmanager
def naming(path: Path, note: str = "") -> Iterator[None]:
    """Whatever the content of `path` makes fail within the block is one CheckpointError."""
    try:
        yield
    except Exception as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        reason = reason.strip().splitlines()[0] if reason.strip() else type(error).__name__
        raise CheckpointError(
            f"{path} does not fit this configuration{note}: {reason}. Use the checkpoint and the "
            "options of one run, written by this version"
        ) from error


def require_like(found: Any, like: Any, place: str = "", exact: bool = False) -> None:
    """ValueError, naming the place, unless `found` is built like `like`.

    The same keys, tensors of the same dtype and shape (0 stands for any size), numbers, texts and
    lists in the same places. Where `like` has None or an empty dictionary, anything may stand.
    exact: numbers and texts must be the same.
    """
    where = place or "the whole"
    if isinstance(like, Mapping) and like.keys() == {"state", "param_groups"}:
        return _require_optimiser(found, like, place)
    if isinstance(like, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            raise ValueError(f"{where}: expected a tensor, found {_shown(found)}")
        free = len(like.shape) == len(found.shape) and all(
            size in (0, other) for size, other in zip(like.shape, found.shape)
        )
        if not free or like.dtype != found.dtype:
            raise ValueError(f"{where}: expected {_shown(like)}, found {_shown(found)}")
    elif isinstance(like, Mapping):
        _require_keys(found, like, place)
        for key in like:
            require_like(found[key], like[key], f"{place}.{key}" if place else str(key), exact)
    elif (exact and found != like) or (like is not None and _kind(found) != _kind(like)):
        expected = repr(like) if exact else f"a {_kind(like)}"
        raise ValueError(f"{where}: expected {expected}, found {_shown(found)}")


def _require_keys(found: Any, like: Mapping[Any, Any], place: str) -> None:
    where = f"{place}: " if place else ""
    if not isinstance(found, Mapping):
        keys = ", ".join(map(str, like)) or "a dictionary"
        raise ValueError(f"{where}expected {keys}, found {_shown(found)}")
    for key in [key for key in like if key not in found]:
        raise ValueError(f"{where}'{key}' is missing")
    for key in [key for key in found if like and key not in like]:
        raise ValueError(f"{where}'{key}' is not known")


def _require_optimiser(found: Any, like: Mapping[str, Any], place: str) -> None:
    """Options change what a step does: only the learning rate, which has schedules, may differ."""
    _require_keys(found, like, place)
    groups, expected = found["param_groups"], like["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(expected):
        raise ValueError(f"{place}.param_groups: expected {len(expected)}, found {_shown(groups)}")
    for number, (group, options) in enumerate(zip(groups, expected)):
        here = f"{place}.param_groups[{number}]"
        # Flags that an older torch did not know torch fills in by itself.
        known = {
            key: value
            for key, value in options.items()
            if not isinstance(value, bool | None) or (isinstance(group, Mapping) and key in group)
        }
        _require_keys(group, known, here)
        require_like({**group, "lr": 0}, {**known, "lr": 0}, here, exact=True)
        rate = group["lr"]
        if _kind(rate) != "number" or not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{here}.lr: expected a learning rate, found {_shown(rate)}")
    _require_keys(found["state"], {}, f"{place}.state")
    for index, kept in found["state"].items():
        _require_keys(kept, {}, f"{place}.state[{index}]")


def _kind(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, str):  # large numbers are written in hexadecimal
        return "number" if value.startswith("0x") else "text"
    return "list" if isinstance(value, list | tuple) else type(value).__name__


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:60]
