"""What a command of `src/reproduce.py` is asked for, and what is checked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from inspo.utils.config import has, names, offline_algorithms, parse_value
from inspo.utils.errors import ConfigError, require_known
from inspo.utils.paths import PROJECT_ROOT

if TYPE_CHECKING:  # --help need not wait for pandas
    from inspo.experiments.cells import Cell

K = TypeVar("K")


@dataclass(frozen=True)
class Options:
    """The options of the command line. None: the command's own default."""

    command: str
    algorithms: list[str] | None = None
    seeds: int | None = None
    jobs: int | None = None
    results: Path = PROJECT_ROOT / "results"
    qualities: list[str] | None = None
    maps: list[str] | None = None
    on: str = "sc2"
    changes: dict[str, Any] = field(default_factory=dict)
    backend: str = "local"
    address: str | None = None
    gpus: float = 0.0
    jobs_per_gpu: int | None = None
    fill: bool = False  # leave out the runs that the table's file holds already


def read_changes(assignments: Iterable[str]) -> dict[str, Any]:
    """`["lr=0.1"]` of `--with` as a mapping; ConfigError for what is no assignment."""
    changes = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--with: '{assignment}' is not of the form key=value")
        changes[key] = parse_value(text)
    return changes


def changed(cells: Mapping[K, Cell], changes: Mapping[str, Any]) -> dict[K, Cell]:
    """The cells with the keys of `--with` set: in each cell that has the key.

    ConfigError for a key that no cell has, for one that tells the cells apart, and for a value that
    the key cannot have.
    """
    from inspo.experiments.gridfile import TAKEN

    result = dict(cells)
    for key, value in changes.items():
        if key in TAKEN:
            option = TAKEN[key] if " " in TAKEN[key] else f"--{TAKEN[key].lstrip('-')}"
            raise ConfigError(f"--with: '{key}' does not belong there; it is said by {option}")
        having = [name for name, cell in cells.items() if has(cell.config().values, key)]
        if not having:
            raise ConfigError(f"--with: no run of this command has the key '{key}'")
        for name in having:
            result[name] = replace(result[name], overrides={**result[name].overrides, key: value})
            result[name].config()
    return result


def check_algorithms(requested: Sequence[str], methods: Iterable[str] = ()) -> list[str]:
    """The names of `--algs`, each once; ConfigError for one that is no offline algorithm.

    methods: rows of the table, which may be named too although they are no algorithms (`control`).
    """
    registered, offline = names("algs"), offline_algorithms()
    known = list(dict.fromkeys([*offline, *methods]))
    for name in requested:
        if name in registered and name not in offline:
            raise ConfigError(f"--algs: {name} learns online; these tables compare offline ones")
        require_known(name, known, "--algs: unknown algorithm")
    return list(dict.fromkeys(requested))


def check_maps(table: str, on: str, requested: Sequence[str] | None, known: Iterable[str]) -> None:
    """ConfigError for a map of `--maps` that the table does not have."""
    known = list(known)
    for name in requested or ():
        require_known(name, known, f"--maps: {table} on {on} has no map")


def check_qualities(requested: Sequence[str] | None, known: Iterable[str]) -> None:
    """ConfigError for a quality of `--qualities` that the table does not have."""
    known = sorted(set(known))
    for quality in requested or ():
        require_known(quality, known, "--qualities: unknown quality")
