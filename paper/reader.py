"""Reads `tables/*.yaml`: what a table compares, as cells and as a comparison of `experiments`.

A file has the fields of `Comparison` (title, caption, metric, unit, digits, share, ...), and

    environment: matrix_offline    # of src/config/envs/
    overrides: {test_nepisode: 32} # keys of every run
    seeds: 5                       # seeds 0 to 4 (default: 5)
    runs: paper                    # the runs are in results/runs/paper (default: paper)
    files: paper                   # the table's files are in results/paper (default: paper)
    datasets:                      # in place of them: maps and qualities; or `grid`, a grid file
      xor_a: {label: (a), map_name: xor, quality: a, data_mean: 0.5}  # perhaps an environment
    algorithm: inspo               # of methods that do not name theirs (default: their key)
    of_algorithm:                  # keys of every run of an algorithm
      inspo: {batch_size: 256}
    methods:
      bc:
      variant: {label: ..., overrides: {...}, only: [xor_a], deviation: a footnote}
    paper:                         # dataset -> method -> what the paper prints
      xor_a: {bc: 0.23 ± 0.01}
    paper_average: {bc: 0.38}

What differs between StarCraft II and SMAX stands under `simulators` and in `simulators.yaml`;
`{simulator}` in a title is its name. Further keys belong to the code of a single figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspo.experiments.cells import Cell, Key
from inspo.experiments.comparison import cells_of
from inspo.experiments.entries import Comparison, Data, Method
from inspo.experiments.gridfile import Grid, read_grid
from inspo.experiments.selection import NAMES
from inspo.utils.config import read_yaml
from inspo.utils.errors import require_known
from inspo.utils.paths import PROJECT_ROOT

TABLES = Path(__file__).parent / "tables"
SEEDS = 5
# What a file may say of a comparison as it is.
PLAIN = (
    "caption", "metric", "unit", "digits", "data_row", "share", "with_paper", "limits",
    "datasets_down",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A comparison and where it goes. runs: folder below results/runs. files: below results."""

    comparison: Comparison
    cells: Mapping[Key, Cell]
    runs: str
    files: str


def read_file(name: str, on: str | None = None) -> dict[str, Any]:
    """The content of `tables/NAME.yaml`; on: the simulator, for a table that has a choice."""
    content = read_yaml(TABLES / f"{name}.yaml")
    if on is None:
        return content
    return simulator(on) | content | (content["simulators"][on] or {})


def simulator(on: str) -> dict[str, Any]:
    """What the tables on one simulator have in common; ConfigError for an unknown one."""
    known = read_yaml(TABLES / "simulators.yaml")
    require_known(on, known, "--on: unknown simulator")
    return known[on]


def read_table(name: str, seeds: int | None = None, on: str | None = None) -> Table:
    """The table of a file without a grid."""
    content = read_file(name, on)
    comparison = comparison_of(name, content, seeds)
    return _table(content, comparison, cells_of(comparison))


def read_grid_table(name: str, on: str, seeds: int | None, map_name: str | None = None) -> Table:
    """The table of the grid file that a file names, of all its maps or of one of them."""
    content = read_file(name, on)
    grid = read_grid(PROJECT_ROOT / content["grid"])
    cells = {
        cell.key: cell
        for cell in grid.cells
        if (seeds is None or cell.key[2] < seeds) and map_name in (None, map_of(cell))
    }
    words = {"simulator": content["simulator"], "map_name": map_name}
    content = content | _parts_of_grid(grid, cells, content["label"])
    content |= {k: content.get(k, name).format(**words) for k in ("name", "title")}
    comparison = comparison_of(content["name"], content)
    return _table(content, comparison, cells)


def map_of(cell: Cell) -> str:
    return str(cell.config().values["map_name"])


def maps_of(name: str, on: str) -> list[str]:
    """The maps of a table on a simulator."""
    content = read_file(name, on)
    if "grid" not in content:
        return content["maps"]
    grid = read_grid(PROJECT_ROOT / content["grid"])
    return list(dict.fromkeys(map(map_of, grid.cells)))


def _table(content: Mapping[str, Any], comparison: Comparison, cells: Mapping[Key, Cell]) -> Table:
    return Table(comparison, cells, content.get("runs", "paper"), content.get("files", "paper"))


# --------------------------------------------------------------------------------------------------
# From a file's content to a comparison


def comparison_of(name: str, content: Mapping[str, Any], seeds: int | None = None) -> Comparison:
    """The comparison that a file's content describes. seeds: how many, in place of its own."""
    number = seeds or content.get("seeds", SEEDS)
    plain = {key: content[key] for key in PLAIN if key in content}
    if note := content.get("note"):
        plain["caption"] += f" {note}"
    return Comparison(
        name=name,
        title=content["title"].format(simulator=content.get("simulator")),
        datasets=_datasets(content),
        methods=_methods(content),
        seeds=range(number) if isinstance(number, int) else number,
        further=tuple(content.get("further", {}).items()),
        published_average=content.get("paper_average"),
        **plain,
    )


def _datasets(content: Mapping[str, Any]) -> list[Data]:
    datasets = content.get("datasets") or {
        f"{map_name}_{quality}": {"map_name": map_name, "quality": quality}
        for map_name in content["maps"]
        for quality in content["qualities"]
    }
    printed = content.get("paper", {}) if content.get("with_paper", True) else {}
    return [
        Data(
            key,
            data.get("label", f"{data['map_name']} {data['quality']}"),
            data.get("environment", content["environment"]),
            {k: data[k] for k in ("map_name", "quality")} | content.get("overrides", {}),
            {method: _mean_std(value) for method, value in printed.get(key, {}).items()},
            data.get("data_mean"),
        )
        for key, data in datasets.items()
    ]


def _mean_std(printed: str | float) -> tuple[float, float]:
    """`0.23 ± 0.01` as numbers; a deviation that is not printed is nan."""
    mean, _, std = str(printed).partition("±")
    return float(mean), float(std) if std else math.nan


def _methods(content: Mapping[str, Any]) -> list[Method]:
    methods = []
    for key, given in content["methods"].items():
        given = given or {}
        algorithm = given.get("algorithm", content.get("algorithm", key))
        name = algorithm if key == content.get("usual") else key
        common = content.get("of_algorithm", {}).get(algorithm, {})
        methods.append(
            Method(
                name,
                algorithm,
                given.get("label") or label(key, algorithm),
                common | given.get("overrides", {}),
                given.get("deviation", ""),
                tuple(given["only"]) if "only" in given else None,
            )
        )
    return methods


def _parts_of_grid(grid: Grid, cells: Mapping[Key, Cell], label_of_data: str) -> dict[str, Any]:
    """Datasets, methods and seeds of a grid's cells, as a table's file would have them."""
    algorithms = {method: cell.algorithm for (_, method, _), cell in cells.items()}
    datasets = {}
    for (data, _, _), cell in cells.items():
        place = {"map_name": map_of(cell), "quality": cell.config().values["quality"]}
        datasets[data] = place | {"label": label_of_data.format(**place)}
    methods = {}
    for method in sorted(algorithms, key=lambda method: _rank(method, algorithms[method])):
        own = list(dict.fromkeys(data for data, name, _ in cells if name == method))
        methods[method] = {
            "algorithm": algorithms[method],
            "deviation": grid.about.get(method, ""),
            **({"only": own} if len(own) < len(datasets) else {}),
        }
    seeds = sorted({seed for _, _, seed in cells})
    return {"datasets": datasets, "methods": methods, "seeds": seeds, "runs": grid.folder}


def _rank(method: str, algorithm: str) -> tuple[int, str, bool, str]:
    """The paper's order of columns, then the others by name; variants behind their algorithm."""
    order = list(NAMES)
    position = order.index(algorithm) if algorithm in order else len(order)
    return position, algorithm, method != algorithm, method


def label(method: str, algorithm: str) -> str:
    """A method's name as papers write it: `cfcql_published` is `CFCQL, published`."""
    name = NAMES.get(algorithm, algorithm)
    if method == algorithm:
        return name
    rest = method.removeprefix(f"{algorithm}_").replace("_", " ")
    return f"{name}, {rest}" if method.startswith(f"{algorithm}_") else rest
