"""Grid files: algorithms x environments x maps x qualities x seeds x overrides, written in YAML.

`read_grid` makes the cells of a file, `FORMAT` explains it to a user (`src/sweep.py --help`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from inspo.experiments import tuning
from inspo.experiments.cells import FOLDER_NAMES, Cell, check_cells, is_folder_name
from inspo.experiments.tuning import Tuning
from inspo.utils.config import (
    PATH_KEYS,
    expand_user,
    flatten,
    map_label,
    offline_algorithms,
    read_yaml,
    type_name,
)
from inspo.utils.errors import ConfigError, UserError, nearest, require_known
from inspo.utils.paths import PROJECT_ROOT
from inspo.utils.settings import Settings

FORMAT = """\
# The first comment says what the grid is for.
folder: my_grid             # runs lie in results/runs/my_grid (default: the name of the file)
algorithms: [bc, inspo]     # names of src/config/algs/; `offline`: every one that learns from data
environments: smax_offline  # names of src/config/envs/
budget: own                 # each algorithm's own t_max; or {steps, episode_steps}, see below
maps: [2s3z]                # map_name (default: the environment's own)
qualities: [medium, mixed]  # quality of the data (default: the environment's own)
seeds: 3                    # 0, 1 and 2; or a list, [0, 7]
overrides:                  # keys of every cell, as after `with`; paths from the project's root
  test_nepisode: 32
of_algorithm:               # keys of every cell of an algorithm
  inspo: {ratio: geometric}
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
FILE_KEYS = (*BLOCK_KEYS, "folder", "blocks", "budget", "of_algorithm", "tuning")
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
class Grid:
    """A grid file, read and checked. about: method -> its footnote, where the file has one.

    A cell's method is the algorithm's name or the block's label, what is varied behind it.
    """

    path: Path
    folder: str
    cells: tuple[Cell, ...]
    about: Mapping[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None

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
    _check_keys(content, FILE_KEYS)
    folder = str(content.get("folder", path.stem))
    if not is_folder_name(folder):
        raise ConfigError(
            f"folder: expected a name such as my_grid, found '{folder}', which is the file's where "
            f"the file says no other. {FOLDER_NAMES}"
        )
    blocks = content.get("blocks", [{}])
    _expect(isinstance(blocks, list) and blocks, "blocks: expected a list of blocks", blocks)
    of_algorithm = _of_algorithm(content, blocks)
    stage = _tuning(path, content, blocks, of_algorithm) if "tuning" in content else None
    tuned = stage.chosen() if stage else {}
    own_keys = {a: {**of_algorithm.get(a, {}), **tuned.get(a, {})} for a in {*of_algorithm, *tuned}}
    cells: list[Cell] = []
    about: dict[str, str] = {}
    for number, block in enumerate(blocks, 1):
        try:
            _expect(block is None or isinstance(block, dict), "expected 'key: value' lines", block)
            _check_keys(block or {}, BLOCK_KEYS)
            whole = {k: v for k, v in content.items() if k in (*BLOCK_KEYS, "budget")}
            whole |= block or {}
            common, own = (_mapping(part, "overrides") for part in (content, block or {}))
            made = list(_cells(whole, common, own, own_keys))
        except UserError as error:
            where = f"block {number}: " if "blocks" in content else ""
            raise ConfigError(f"{where}{error}") from None
        if "about" in whole:
            about |= {cell.key[1]: str(whole["about"]) for cell in made}
        cells += made
    cells.sort(key=lambda cell: cell.overrides["seed"])  # stable: else in the order of the file
    check_cells(cells)
    if "budget" not in content:
        _check_budgets(cells)
    return Grid(path, folder, tuple(cells), about, stage)


def _check_budgets(cells: Sequence[Cell]) -> None:
    """ConfigError if algorithms train for different numbers of steps on the same data."""
    t_max: dict[str, dict[str, int]] = {}
    for cell in cells:
        t_max.setdefault(cell.key[0], {})[cell.algorithm] = cell.config().values["t_max"]
    for data, of in t_max.items():
        if len(set(of.values())) > 1:
            shown = ", ".join(f"{name} {steps:,}" for name, steps in of.items())
            raise ConfigError(
                f"budget: on {data} the algorithms train for different numbers of steps ({shown}). "
                "Give all the same, `budget: {steps: N, episode_steps: L}`, or say `budget: own`"
            )


def _budget(content: Mapping[str, Any]) -> tuple[int, float] | None:
    """Steps of a run, and of an episode; None where every algorithm has its own."""
    budget = content.get("budget", "own")
    if budget == "own":
        return None
    fits = isinstance(budget, dict) and budget.keys() == {"steps", "episode_steps"}
    fits = fits and all(type(v) in (int, float) and v >= 1 for v in budget.values())
    _expect(fits, "budget: expected own, or {steps: N, episode_steps: L}", budget)
    return int(budget["steps"]), float(budget["episode_steps"])


def _within_budget(cell: Cell, budget: tuple[int, float] | None) -> Cell:
    """The cell with the t_max that its behaviour policies leave of the budget."""
    if budget is None:
        return cell
    from inspo.learners import REGISTRY  # torch takes seconds

    steps, episode_steps = budget
    if "t_max" in cell.overrides:
        raise ConfigError("t_max: the grid has a budget, which says it; leave one of the two out")
    values = cell.config().values
    if REGISTRY[values["learner"]].fits_behaviour(Settings(values)):
        fit = values["behaviour"]
        steps -= int(fit["updates"] * fit["batch_size"] * episode_steps)
        if fit["others"] == "autoregressive":
            steps -= fit["others_updates"] * fit["others_batch_size"]
    if steps < 1:
        raise ConfigError(
            f"budget: {budget[0]:,} steps are fewer than {cell.algorithm} needs for its behaviour "
            f"policies alone ({budget[0] - steps:,}). Give more, or make `behaviour` smaller"
        )
    return replace(cell, overrides={**cell.overrides, "t_max": steps})


def _of_algorithm(content: Mapping[str, Any], blocks: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The section `of_algorithm`: algorithm -> keys of all its cells."""
    given = content.get("of_algorithm") or {}
    _expect(isinstance(given, dict), "of_algorithm: expected algorithm: {key: value} lines", given)
    if given:
        known = _all_algorithms(content, blocks)
        for name in given:
            require_known(name, known, "of_algorithm: no algorithm of this grid")
    return {name: _mapping(given, name) for name in given}


def _all_algorithms(content: Mapping[str, Any], blocks: Sequence[Any]) -> list[str]:
    whole = {key: value for key, value in content.items() if key in BLOCK_KEYS}
    return sorted({name for block in blocks for name in _algorithms({**whole, **(block or {})})})


def _tuning(
    path: Path,
    content: Mapping[str, Any],
    blocks: Sequence[Any],
    of_algorithm: Mapping[str, Mapping[str, Any]],
) -> Tuning:
    """The section `tuning`, checked."""
    given = content["tuning"]
    _expect(isinstance(given, dict), "tuning: expected 'key: value' lines", given)
    _check_keys(given, tuning.KEYS)
    for key in ("seeds", "score", "configurations"):
        _expect(key in given, f"tuning: expected the key {key}", None)
    configurations = _mapping_of_lists(given["configurations"])
    whole = {k: v for k, v in content.items() if k in BLOCK_KEYS and k != "vary"}
    algorithms = set(_all_algorithms(content, blocks))
    for name in sorted(algorithms - configurations.keys()):
        raise ConfigError(f"tuning: {name} has no configurations; every algorithm needs its own")
    for name in sorted(configurations.keys() - algorithms):
        raise ConfigError(f"tuning: {name} is no algorithm of the grid")
    numbers = {name: len(tried) for name, tried in configurations.items()}
    if len(set(numbers.values())) > 1:
        shown = ", ".join(f"{name} {number}" for name, number in numbers.items())
        raise ConfigError(f"tuning: expected as many configurations for each, found {shown}")
    common = _mapping(content, "overrides")
    cells: dict[str, list[tuple[Cell, ...]]] = {}
    for name, tried in configurations.items():
        block = whole | {k: given[k] for k in ("seeds", "maps", "qualities") if k in given}
        block |= {"algorithms": name, "budget": content.get("budget", "own")}
        cells[name] = [
            tuple(
                _cells(block | {"label": f"{name}_tune{number}"}, common, overrides, of_algorithm)
            )
            for number, overrides in enumerate(tried)
        ]
    file = path.with_name(f"{path.stem}_tuned.yaml")
    score, seeds = str(given["score"]), tuple(_seeds(given))
    return Tuning(file, score, seeds, configurations, cells)


def _mapping_of_lists(given: Any) -> dict[str, list[dict[str, Any]]]:
    place = "tuning: configurations: expected a list of overrides for each algorithm"
    _expect(isinstance(given, dict) and given, place, given)
    for name, tried in given.items():
        fits = isinstance(tried, list) and tried and all(isinstance(one, dict) for one in tried)
        _expect(fits, f"{place}; {name}", tried)
    return {name: [dict(flatten(one)) for one in tried] for name, tried in given.items()}


def _algorithms(block: Mapping[str, Any]) -> list[str]:
    every = block.get("algorithms") == EVERY_OFFLINE
    return offline_algorithms() if every else _list(block, "algorithms")


def _cells(
    block: Mapping[str, Any],
    common: Mapping[str, Any],
    own: Mapping[str, Any],
    of_algorithm: Mapping[str, Mapping[str, Any]],
) -> Iterator[Cell]:
    """The product of one block. common: the file's overrides; of_algorithm: an algorithm's own, and
    what tuning chose for it; own: the block's overrides, above both."""
    algorithms, budget = _algorithms(block), _budget(block)
    places = ("maps", "qualities")
    maps, qualities = (_list(block, key) if key in block else [None] for key in places)
    label = block.get("label")
    if label is not None and len(algorithms) > 1:
        raise ConfigError(
            f"label: '{label}' would name {len(algorithms)} algorithms ({', '.join(algorithms)}); "
            "give each a block of its own"
        )
    variants = list(_variants(block))
    for algorithm, environment, map_name, quality, (suffix, varied), seed in itertools.product(
        algorithms, _list(block, "environments"), maps, qualities, variants, _seeds(block)
    ):
        place = {"map_name": map_name, "quality": quality}
        chosen = {key: value for key, value in place.items() if value is not None}
        overrides = {**common, **of_algorithm.get(algorithm, {}), **own}
        chosen |= _overrides(overrides, "overrides") | varied | {"seed": seed}
        method = (algorithm if label is None else str(label)) + suffix
        values = Cell("config", algorithm, environment, chosen).config().values
        data = map_label(values)
        cell = Cell(f"{data}/{method}/seed{seed}", algorithm, environment, chosen)
        yield _within_budget(cell, budget)


def _variants(block: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(suffix of the name, overrides) of every combination of what is varied."""
    vary = _mapping(block, "vary")
    for key, values in vary.items():
        fits = isinstance(values, list) and values
        _expect(fits, f"vary: {key}: expected a list of values", values)
    for combination in itertools.product(*vary.values()):
        varied = _overrides(dict(zip(vary, combination)), "vary")
        # As it is written: a name does not depend on where the project lies.
        written = [Path(v).name if k in PATH_KEYS and v else v for k, v in zip(vary, combination)]
        parts = [f"_{key.rsplit('.', 1)[-1]}_{value}" for key, value in zip(vary, written)]
        yield re.sub(r"[^\w.+-]+", "_", "".join(parts)), varied


def _expect(fits: Any, expected: str, found: Any) -> None:
    """ConfigError unless it fits; `expected` begins with the place in the file."""
    if not fits:
        shown = "nothing" if found in (None, [], {}) else f"'{str(found)[:60]}'"
        raise ConfigError(f"{expected}, found {shown}")


def _check_keys(content: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in content:
        require_known(key, known, "unknown key")


def _mapping(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Dotted key -> value of a part of the file."""
    value = block.get(key) or {}
    _expect(isinstance(value, dict), f"{key}: expected key: value lines", value)
    return dict(flatten(value))


def _list(block: Mapping[str, Any], key: str) -> list[Any]:
    """The values of an axis; a single one may stand without brackets."""
    _expect(key in block, f"{key}: expected a name or a list of names", None)
    values = block[key] if isinstance(block[key], list) else [block[key]]
    if not values:
        raise ConfigError(f"{key}: the list is empty, so there is nothing to run")
    for value in values:
        _expect(isinstance(value, str), f"{key}: expected names", value)
    return values


def _seeds(block: Mapping[str, Any]) -> list[int]:
    seeds = block.get("seeds")
    listed = list(range(seeds)) if type(seeds) is int else seeds
    fits = isinstance(listed, list) and all(type(seed) is int and seed >= 0 for seed in listed)
    expected = "a number of seeds (3: 0 to 2) or a list of them ([0, 7]), at least one"
    _expect(fits and listed, f"seeds: expected {expected}", seeds)
    return list(listed or [])


def _overrides(overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checked; paths from the project's root, as in every YAML file."""
    checked = dict(overrides)
    for key, value in overrides.items():
        if key in TAKEN:
            raise ConfigError(f"{where}: '{key}' does not belong there; it is said by {TAKEN[key]}")
        if key in PATH_KEYS and value not in (None, ""):
            place = f"{where}: {key}"
            _expect(isinstance(value, str), f"{place}: expected a path", value)
            checked[key] = str(PROJECT_ROOT / expand_user(value, place))
    return checked


def select_names(grid: Grid, names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells whose name, or the beginning of it, fits one of the patterns; all without any."""
    patterns = [*names, *(f"{name}/*" for name in names)] or ["*"]
    selected = tuple(c for c in grid.cells if any(fnmatchcase(c.id, p) for p in patterns))
    if not selected:
        known = [cell.id for cell in grid.cells]
        raise ConfigError(
            f"--only {' '.join(names)}: no cell of {grid.path} has such a name."
            f"{nearest(names[0], known)} --plan shows them all"
        )
    return selected
