"""Errors that a user can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry")


class UserError(Exception):
    """Something outside the program is wrong: a key, a file, a checkpoint, a full disk.

    The message is all that the user sees (no traceback; exit status 2). It names the file or the
    key, what was expected, what was found, and what to do.
    """


class ConfigError(UserError):
    """A key, a value or a name on the command line or in a YAML file."""


class DatasetError(UserError):
    """A dataset that cannot be read, written, or used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written."""


class TrainingFailure(UserError):
    """Losses, gradients or weights that are not finite, so that training on has no sense."""


class EnvironmentFailure(UserError):
    """An environment that broke, or whose process failed again and again."""


def printable(text: str) -> str:
    """`text` with control characters spelled out: those from a file could command a terminal.

    >>> printable("a red \\x1b[31mword")
    'a red \\\\x1b[31mword'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", _escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def reason_of(error: BaseException) -> str:
    """What a library's error says, in its first line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named(registry: Mapping[str, Entry], name: str, key: str) -> Entry:
    """The entry of a registry that the configuration's `key` names; ConfigError for another one."""
    require_known(name, registry, f"{key}: unknown value")
    return registry[name]


def require_known(name: Any, known: Collection[Any], what: str) -> None:
    """ConfigError unless `name` is among the known ones. what: how the sentence begins."""
    if name not in known:
        listed = ", ".join(map(str, known)) or "none"
        raise ConfigError(f"{what} '{name}'.{nearest(name, known)} Known: {listed}")


def nearest(name: Any, known: Iterable[Any]) -> str:
    """` Did you mean 'a' or 'b'?`, or an empty string when nothing known comes close."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], cutoff=0.5)
    if not matches:
        return ""
    return " Did you mean " + " or ".join(f"'{m}'" for m in matches) + "?"
