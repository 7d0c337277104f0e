"""Grid files: algorithms x environments x maps x qualities x seeds x overrides, written in YAML.

`read_grid` makes the cells of a file, `FORMAT` explains it to a user (`src/sweep.py --help`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from inspo.experiments.cells import FOLDER_NAMES, Cell, check_cells, is_folder_name, is_offline
from inspo.utils.config import (
    PATH_KEYS,
    expand_user,
    flatten,
    map_label,
    names,
    read_yaml,
    type_name,
)
from inspo.utils.errors import ConfigError, UserError, nearest
from inspo.utils.paths import CONFIG_DIR, PROJECT_ROOT

FORMAT = """\
# The first comment says what the grid is for.
folder: my_grid             # runs lie in results/runs/my_grid (default: the name of the file)
algorithms: [bc, inspo]     # names of src/config/algs/; `offline`: every one that learns from data
environments: smax_offline  # names of src/config/envs/
maps: [2s3z]                # map_name (default: the environment's own)
qualities: [medium, mixed]  # quality of the data (default: the environment's own)
seeds: 3                    # 0, 1 and 2; or a list, [0, 7]
overrides:                  # keys of every cell, as after `with`; paths from the project's root
  test_nepisode: 32
blocks:                     # leave out for a grid that is one product. Each block is one; what it
  - {}                      # does not say, it takes from above, and its overrides come on top.
  - algorithms: inspo
    qualities: mixed
    label: inspo_control    # what this is called in place of the algorithm's name
    about: all weights 1    # for the footnote of a table
    overrides: {advantage_weighting: False}
  - algorithms: inspo
    vary: {alpha: [0.03, 0.3], td_lambda: [0.0, 0.95]}   # a product too; the names tell them apart
"""
EVERY_OFFLINE = "offline"  # in place of a list of algorithms
AXES = ("algorithms", "environments", "maps", "qualities", "seeds")
BLOCK_KEYS = (*AXES, "overrides", "vary", "label", "about")
FILE_KEYS = (*BLOCK_KEYS, "folder", "blocks")
# What has a place of its own in the file, or is the engine's to say.
TAKEN = {
    "seed": "seeds",
    "map_name": "maps",
    "env_args.map_name": "maps",
    "quality": "qualities",
    "offline": "environments: whether a run learns from data is theirs",
    "local_results_path": "--results",
    "resume": "nothing: unfinished cells go on by themselves",
    "evaluate": "nothing: a cell trains",
    "collect.n_episodes": "nothing: a cell trains",
}


@dataclass(frozen=True)
class Place:
    """Where a cell stands in its grid: what a table needs to know of it."""

    data: str  # map and quality, as in the names of results
    map_name: str | None
    quality: str | None
    method: str  # the algorithm's name, or the block's label; what is varied behind it
    seed: int


@dataclass(frozen=True)
class Grid:
    """A grid file, read and checked. about: method -> its footnote, where the file has one."""

    path: Path
    folder: str
    cells: tuple[Cell, ...]
    places: Mapping[str, Place]  # cell id -> place
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.stem


def read_grid(path: str | Path) -> Grid:
    """The cells of a grid file, seed by seed, so that a stop leaves whole seeds.

    ConfigError, naming the file: an unknown key, algorithm or environment; a value that cannot be;
    a product of nothing; two cells of one name.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such grid file (--help shows what one looks like)")
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type_name(content)}")
    try:
        return _grid(path, content)
    except UserError as error:
        raise ConfigError(f"{path}: {error}") from None


def _grid(path: Path, content: dict[str, Any]) -> Grid:
    _known(content, FILE_KEYS, "")
    folder = _folder(path, content)
    blocks = content.get("blocks", [{}])
    if not isinstance(blocks, list) or not blocks:
        raise ConfigError(f"blocks: expected a list of blocks, found {_short(blocks)}")
    pairs: list[tuple[Cell, Place]] = []
    about: dict[str, str] = {}
    for number, block in enumerate(blocks, 1):
        where = f"block {number}: " if "blocks" in content else ""
        block = {} if block is None else block
        if not isinstance(block, dict):
            raise ConfigError(f"{where}expected 'key: value' lines, found {_short(block)}")
        _known(block, BLOCK_KEYS, where)
        try:
            whole = _inherit(content, block)
            made = list(_cells(whole))
        except UserError as error:
            raise ConfigError(f"{where}{error}") from None
        if "about" in whole:
            about |= {place.method: str(whole["about"]) for _, place in made}
        pairs += made
    pairs.sort(key=lambda pair: pair[1].seed)  # stable: otherwise in the order of the file
    cells = tuple(cell for cell, _ in pairs)
    check_cells(cells)
    return Grid(path, folder, cells, {cell.id: place for cell, place in pairs}, about)


def _folder(path: Path, content: Mapping[str, Any]) -> str:
    folder = str(content.get("folder", path.stem))
    if is_folder_name(folder):
        return folder
    if "folder" in content:
        raise ConfigError(
            f"folder: expected a name such as my_grid, found '{folder}'. {FOLDER_NAMES}"
        )
    raise ConfigError(
        f"the file's name cannot name the folder of its runs. {FOLDER_NAMES}. Give another one, "
        "`folder: my_grid`, or rename the file"
    )


def _known(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{where}unknown key '{key}'.{nearest(str(key), known)} Known: {', '.join(known)}"
            )


def _inherit(content: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    whole = {key: value for key, value in content.items() if key in BLOCK_KEYS} | dict(block)
    overrides = [_mapping(part, "overrides") for part in (content, block)]
    whole["overrides"] = dict(flatten(overrides[0])) | dict(flatten(overrides[1]))
    return whole


def _mapping(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = block.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: expected key: value lines, found {_short(value)}")
    return value


def _cells(block: Mapping[str, Any]) -> Iterator[tuple[Cell, Place]]:
    """The product of one block."""
    algorithms = _algorithms(block)
    environments = _list(block, "environments")
    maps, qualities = (_list(block, key, default=[None]) for key in ("maps", "qualities"))
    label = block.get("label")
    if label is not None and len(algorithms) > 1:
        raise ConfigError(
            f"label: '{label}' would name {len(algorithms)} algorithms ({', '.join(algorithms)}); "
            "give each a block of its own"
        )
    overrides = _overrides(block["overrides"], "overrides")
    variants = list(_variants(block))
    for algorithm, environment, map_name, quality, (suffix, varied), seed in itertools.product(
        algorithms, environments, maps, qualities, variants, _seeds(block)
    ):
        chosen = {
            **({} if map_name is None else {"map_name": map_name}),
            **({} if quality is None else {"quality": quality}),
            **overrides,
            **varied,
            "seed": seed,
        }
        method = (algorithm if label is None else str(label)) + suffix
        values = Cell("config", algorithm, environment, chosen).config().values
        data = map_label(values)
        cell = Cell(f"{data}/{method}/seed{seed}", algorithm, environment, chosen)
        yield cell, Place(data, values["map_name"], values.get("quality"), method, seed)


def _algorithms(block: Mapping[str, Any]) -> list[str]:
    if block.get("algorithms") == EVERY_OFFLINE:
        return offline_algorithms()
    return _list(block, "algorithms")


def offline_algorithms() -> list[str]:
    """The registered algorithms that learn from data."""
    return [name for name in names("algs", CONFIG_DIR) if is_offline(name)]


def _list(block: Mapping[str, Any], key: str, default: list | None = None) -> list:
    """The values of an axis; a single one may stand without brackets."""
    if key not in block:
        if default is None:
            raise ConfigError(f"{key}: expected a name or a list of names, found nothing")
        return default
    values = block[key] if isinstance(block[key], list) else [block[key]]
    if not values:
        raise ConfigError(f"{key}: the list is empty, so there is nothing to run")
    for value in values:
        if not isinstance(value, str):
            raise ConfigError(f"{key}: expected names, found {_short(value)}")
    return values


def _seeds(block: Mapping[str, Any]) -> list[int]:
    seeds = block.get("seeds")
    if type(seeds) is int and seeds > 0:
        return list(range(seeds))
    if isinstance(seeds, list) and seeds and all(type(s) is int and s >= 0 for s in seeds):
        return seeds
    raise ConfigError(
        "seeds: expected a number of seeds (3: 0 to 2) or a list of them ([0, 7]), at least one, "
        f"found {_short(seeds)}"
    )


def _variants(block: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(suffix of the name, overrides) of every combination of what is varied."""
    vary = dict(flatten(_mapping(block, "vary")))
    for key, values in vary.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"vary: {key}: expected a list of values, found {_short(values)}")
    for combination in itertools.product(*vary.values()):
        varied = _overrides(dict(zip(vary, combination)), "vary")
        # As it is written: a name does not depend on where the project lies.
        written = [Path(v).name if k in PATH_KEYS and v else v for k, v in zip(vary, combination)]
        words = [f"_{key.rsplit('.', 1)[-1]}_{value}" for key, value in zip(vary, written)]
        yield re.sub(r"[^\w.+-]+", "_", "".join(words)), varied


def _overrides(overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checked; paths from the project's root, as in every YAML file."""
    for key in overrides:
        if key in TAKEN:
            raise ConfigError(f"{where}: '{key}' does not belong there; it is said by {TAKEN[key]}")
    return {
        key: _path(value, f"{where}: {key}") if key in PATH_KEYS else value
        for key, value in overrides.items()
    }


def _path(value: Any, where: str) -> str | None:
    if value in (None, ""):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{where}: expected a path, found {_short(value)}")
    return str(PROJECT_ROOT / expand_user(value, where))


def _short(value: Any) -> str:
    return "nothing" if value in (None, [], {}) else f"'{str(value)[:60]}'"


def select(grid: Grid, keep: Callable[[Cell, Place], bool]) -> Grid:
    """The grid of those cells for which `keep(cell, place)` holds."""
    cells = tuple(cell for cell in grid.cells if keep(cell, grid.places[cell.id]))
    return replace(grid, cells=cells, places={c.id: grid.places[c.id] for c in cells})


def select_names(grid: Grid, names: Sequence[str]) -> Grid:
    """The cells whose name, or the beginning of it, fits one of the patterns; all without any."""
    if not names:
        return grid
    patterns = [*names, *(f"{name}/*" for name in names)]
    selected = select(grid, lambda cell, _: any(fnmatchcase(cell.id, p) for p in patterns))
    if not selected.cells:
        known = [cell.id for cell in grid.cells]
        raise ConfigError(
            f"--only {' '.join(names)}: no cell of {grid.path} has such a name."
            f"{nearest(names[0], known)} --list shows them all"
        )
    return selected
