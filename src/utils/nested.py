"""Nested dictionaries by dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MISSING = object()


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf.

    >>> flatten({"a": {"b": 1}, "c": {}})
    [('a.b', 1), ('c', {})]
    """
    leaves: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def get(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key, or `default` where there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return node


def has(values: Mapping[str, Any], key: str) -> bool:
    return get(values, key, _MISSING) is not _MISSING


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place, with the mappings on the way to it."""
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value
