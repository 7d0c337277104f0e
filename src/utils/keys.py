"""What a key of the configuration is: its type, its range, its meaning, and what may differ.

A key is declared once, where its default stands in `config/*.yaml`. Its comment says what it means
and, after `::`, what the value does not say by itself, separated by commas:

    seed: null          # seeds everything :: int | null, >= 0
    update: sequential  # how the agents are updated :: sequential | simultaneous
    gamma: 0.99         # discount :: >= 0, <= 1
    offset: 0.5         # of the reward :: any
    torch_threads: 1    # threads of this process :: >= 1, may differ

- types or choices, with `|` between them; without any, the type is the default's, and null may
  become anything;
- bounds: `>= 0`, `> 0`, `<= 1`, `< 1`; `any` for a number that has none. No number may be as large
  as to leave what we compute with (LARGEST);
- `range`: a list of two numbers within the bounds, the smaller one first;
- `over t_max`: a schedule of which t_max is the length, so that a run with it cannot be resumed
  with a larger t_max; `over t_max unless 0`: but for that value;
- `may grow`: a run may be resumed with a larger value;
- `may differ`: two runs that differ in it may be compared, and one may be resumed with another
  value; `may differ when compared`: compared, but not resumed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from inspo.utils.errors import ConfigError, require_known
from inspo.utils.nested import flatten, get, has
from inspo.utils.paths import CONFIG_DIR
from inspo.utils.yaml_files import read_comments

TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "~": None}
BOUNDS = {
    ">=": (operator.ge, "at least"),
    "<=": (operator.le, "at most"),
    ">": (operator.gt, "more than"),
    "<": (operator.lt, "less than"),
}
LARGEST = {int: 2**53, float: 1e30}  # networks compute in 32-bit floats, JSON's readers in doubles
RANGE = "range"
MAY_GROW = "may grow"
MAY_DIFFER = "may differ"
MAY_DIFFER_COMPARED = "may differ when compared"
WORDS = {MAY_DIFFER, MAY_DIFFER_COMPARED, MAY_GROW, RANGE, "any"}
OVER_T_MAX = re.compile(r"over t_max(?: unless (\S+))?")


@dataclass(frozen=True)
class Key:
    """One key. types: names of `TYPES` or null, empty where anything goes; choices: empty for any;
    bounds: (sign, number) pairs."""

    name: str
    types: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    bounds: tuple[tuple[str, float], ...] = ()
    meaning: str = ""
    flags: frozenset[str] = frozenset()

    def narrowed(self, other: Key) -> Key:
        """This key as a later file declares it: what that one says counts, the rest stays."""
        return replace(
            self,
            types=other.types or self.types,
            choices=other.choices or self.choices,
            bounds=other.bounds or self.bounds,
            meaning=other.meaning or self.meaning,
        )


def type_name(value: Any) -> str:
    """The name of a value's type as the files write it."""
    if value is None:
        return "null"
    return next((name for name, kind in TYPES.items() if type(value) is kind), type(value).__name__)


def declare(name: str, default: Any, comment: str, place: str) -> Key:
    """The key of a line in a YAML file. ConfigError, naming `place`, for an unreadable `::`."""
    meaning, _, declaration = comment.partition("::")
    types: tuple[str, ...] = ()
    choices: tuple[Any, ...] = ()
    bounds: list[tuple[str, float]] = []
    flags = set()
    for item in filter(None, map(str.strip, declaration.split(","))):
        bound = re.fullmatch(r"(>=|<=|>|<)\s*(\S+)", item)
        alternatives = [part.strip() for part in item.split("|")]
        if bound and _is_number(bound[2]):
            bounds.append((bound[1], float(bound[2])))
        elif item in WORDS or OVER_T_MAX.fullmatch(item):
            flags.add(item)
        elif all(part in TYPES or part == "null" for part in alternatives):
            types = tuple(alternatives)
        elif len(alternatives) > 1 or not re.search(r"\s", item):
            choices = tuple(_choice(part, default) for part in alternatives)
            types = tuple(dict.fromkeys(type_name(choice) for choice in choices))
        else:
            raise ConfigError(f"{place}: {name}: '{item}' after '::' is not known")
    return Key(name, types, choices, tuple(bounds), meaning.strip(), frozenset(flags))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _choice(text: str, default: Any) -> Any:
    if text.lower() in CONSTANTS and not (isinstance(default, str) and text == "none"):
        return CONSTANTS[text.lower()]
    if type(default) in (int, float) and _is_number(text):
        return type(default)(float(text))
    return text


def converted(key: Key, value: Any, text: str | None) -> Any:
    """`value` in the type of its declaration, or a ConfigError.

    Two conversions lose nothing and are made: an int where a float is declared, and a float of
    integral value (1e6) where an int is. Where a string is declared, a number on the command line
    (`text`) is meant as its text, and so is none, unless null is allowed.
    """
    found = type_name(value)
    if key.types and found not in key.types:
        if found == "int" and "float" in key.types:
            value = float(value) if abs(value) <= LARGEST[float] else value
        elif found == "float" and "int" in key.types and value.is_integer():
            value = int(value)
        elif found in ("int", "float", "null") and "str" in key.types and text is not None:
            value = text
        else:
            raise ConfigError(
                f"{key.name}: expected {' or '.join(key.types)}, found {found} "
                f"({text if text is not None else value!r})"
            )
    if value is not None:
        _check(key, value)
    return value


def _check(key: Key, value: Any) -> None:
    if isinstance(value, str) and re.search(r"[\x01-\x1f\x7f-\x9f\ud800-\udfff]", value):
        raise ConfigError(
            f"{key.name}: expected text without line breaks, control characters and broken "
            f"UTF-8, found {value[:60]!a}"
        )
    if key.choices:
        require_known(value, key.choices, f"{key.name}: unknown value")
    if RANGE in key.flags:
        numbers = [x for x in value if type(x) in (int, float)]
        if len(numbers) != 2 or len(value) != 2 or not numbers[0] < numbers[1]:
            raise ConfigError(
                f"{key.name}: expected two numbers, the smaller one first; found {value}"
            )
        for number in numbers:
            _check_number(key, number)
    elif type(value) in (int, float):
        _check_number(key, value)


def _check_number(key: Key, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key.name}: expected a finite number, found {value}")
    if abs(value) > (largest := LARGEST[type(value)]):
        found = f"{str(value)[:30]}..." if len(str(value)) > 30 else value
        raise ConfigError(f"{key.name}: expected a number up to {largest:g}, found {found}")
    for sign, bound in key.bounds:
        fits, phrase = BOUNDS[sign]
        if not fits(value, bound):
            limit = bound if isinstance(value, float) else math.ceil(bound)
            raise ConfigError(f"{key.name}: expected {phrase} {limit}, found {value}")


# --------------------------------------------------------------------------------------------------
# May two runs differ in a key?


def may_differ_compared(key: str) -> bool:
    """Whether runs that differ in this dotted key may stand beside each other in one result."""
    flags = _flags(CONFIG_DIR / "default.yaml").get(key, frozenset())
    return bool(flags & {MAY_DIFFER, MAY_DIFFER_COMPARED})


def may_differ_resumed(key: str) -> bool:
    """Whether a run may be resumed with another value of this dotted key."""
    return MAY_DIFFER in _flags(CONFIG_DIR / "default.yaml").get(key, ())


def resume_differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of all that keeps a run from being resumed with `now`."""
    old = dict(flatten(before))
    differing = [
        (key, old.get(key), value)
        for key, value in flatten(now)
        if not may_differ_resumed(key) and old.get(key) != value
    ]
    return [
        (key, first, second)
        for key, first, second in differing
        if not (_may_grow(key, first, second) and not spread_over_t_max(now))
    ]


def _may_grow(key: str, old: Any, new: Any) -> bool:
    flags = _flags(CONFIG_DIR / "default.yaml").get(key, frozenset())
    return MAY_GROW in flags and isinstance(old, int) and new > old


def spread_over_t_max(values: Mapping[str, Any]) -> list[str]:
    """The dotted keys of a configuration whose schedules would change with t_max."""
    found = []
    for path in sorted((CONFIG_DIR / "algs").glob("*.yaml")):
        for key, flags in _flags(path).items():
            for match in filter(None, map(OVER_T_MAX.fullmatch, flags)):
                value = get(values, key)
                if has(values, key) and value != _choice(match[1] or "", value):
                    found.append(key)
    return list(dict.fromkeys(found))


@cache
def _flags(path: Path) -> dict[str, frozenset[str]]:
    """The keys of a file that may differ or depend on t_max, with how."""
    keys = (declare(name, 0, text, str(path)) for name, text in read_comments(path).items())
    return {key.name: key.flags for key in keys if key.flags - {"any"}}
