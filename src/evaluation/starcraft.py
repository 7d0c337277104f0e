"""The paper's Tables 4 to 7: in StarCraft II itself, or, told apart, in SMAX.

Table 4 is the grid file `sweeps/{sc2,smax}.yaml`, so that `src/sweep.py` runs the same cells; the
others are ablations of InSPO in the same folder of runs. What the tables share is run once: InSPO
as its presets have it is a column of Table 4, one of Table 5 and one of Table 6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspo.evaluation import paper
from inspo.evaluation.comparison import (
    NONE,
    Comparison,
    Data,
    Key,
    Method,
    cells_of,
)
from inspo.evaluation.grid import Cell, Result
from inspo.evaluation.gridfile import Grid, read_grid, select
from inspo.evaluation.statistics import mean_std
from inspo.evaluation.tables import (
    commits,
    fixed,
    machine,
    markdown_table,
    mean_pm_std,
    provenance,
    write_csv,
    write_json,
    write_text,
)
from inspo.utils.errors import ConfigError, UserError, nearest
from inspo.utils.paths import PROJECT_ROOT

SWEEPS = PROJECT_ROOT / "sweeps"
METRIC = "test_battle_won_mean"
TESTS = {"test_nepisode": 32}
# Of Eq. 25: starts careful, and arrives within the few hundred updates of a run (as the preset).
TUNED = {"tune_alpha": True, "alpha": 1.0, "alpha_lr": 0.01}
# What a run says of itself when it was tested in the game (envs/sc2.py).
GAME = "StarCraft II"


@dataclass(frozen=True)
class Simulator:
    """Where the tables are made.

    maps, qualities: of Tables 5 to 7. timing: overrides of Table 7's runs; None: it reads the runs
    of Table 4.
    """

    key: str
    title: str
    environment: str
    seeds: int
    maps: Mapping[int, tuple[str, ...] | None]  # None: those of the grid file
    qualities: Mapping[int, tuple[str, ...]]
    timing: Mapping[str, Any] | None

    @property
    def is_the_game(self) -> bool:
        return self.key == "sc2"


QUALITIES = ("medium", "medium_replay", "expert", "mixed")
SIMULATORS = {
    "sc2": Simulator(
        "sc2",
        "StarCraft II",
        "sc2_offline",
        seeds=5,
        maps={5: ("6h_vs_8z",), 6: ("5m_vs_6m", "6h_vs_8z"), 7: None},
        qualities={5: ("expert", "mixed"), 6: QUALITIES, 7: ("medium",)},
        timing=None,
    ),
    # Cloning the expert of 2s3z leaves nothing to gain: Table 5 has medium beside the paper's two.
    "smax": Simulator(
        "smax",
        "SMAX",
        "smax_offline",
        seeds=3,
        maps={5: ("2s3z",), 6: ("2s3z",), 7: ("2s3z",)},
        qualities={5: ("medium", "expert", "mixed"), 6: QUALITIES, 7: ("medium",)},
        # The shared configurations have budgets and batches of their own; time is compared at one.
        timing={"batch_size": 128, "t_max": 300_000, "test_nepisode": 0, "log_interval": 25_000},
    ),
}


@dataclass(frozen=True)
class Table:
    """What is run, and what is written of it. folder: of the runs, below `results/runs`."""

    comparison: Comparison
    cells: Mapping[Key, Cell]
    folder: str


# --------------------------------------------------------------------------------------------------
# Table 4


def table4(on: Simulator, seeds: int | None, maps: Sequence[str] | None) -> list[Table]:
    """One table of all maps in StarCraft II, as in the paper; one for each map in SMAX."""
    grid = grid_of(on)
    if seeds is not None:
        grid = select(grid, lambda cell, place: place.seed < seeds)
    known = maps_of(on, 4)
    if on.is_the_game:
        return [_table_of_grid(on, grid, "table4", "Table 4: StarCraft II", SC2_CAPTION)]
    return [
        _table_of_grid(
            on,
            select(grid, lambda cell, place, m=m: place.map_name == m),
            m,
            f"Offline on SMAX {m}",
            SMAX_CAPTION,
        )
        for m in known
        if m in check_maps(on, 4, maps)
    ]


SC2_CAPTION = """\
Averaged test win rates: last checkpoint, greedy, 320 episodes a seed at the end (the paper: 32),
CFCQL's datasets. BC, OMAR and CFCQL as Shao et al. report them. MACQL, ICQ and AlberDICE are not in
the paper's table."""
SMAX_CAPTION = """\
Win rates in the final test: last checkpoint, greedy, 320 episodes a seed. Training reads the data
alone. mixed is half medium and half expert, mixed_90_10 nine tenths medium. The paper has no
numbers on SMAX; its Table 4 is StarCraft II itself."""


def grid_of(on: Simulator) -> Grid:
    return read_grid(SWEEPS / f"{on.key}.yaml")


def _table_of_grid(on: Simulator, grid: Grid, name: str, title: str, caption: str) -> Table:
    places = grid.places
    datasets = {
        place.data: Data(
            place.data,
            f"{place.map_name} {place.quality}" if on.is_the_game else str(place.quality),
            on.environment,
            {"map_name": place.map_name, "quality": place.quality},
            paper.WIN_RATES.get((place.map_name, place.quality), {}) if on.is_the_game else {},
        )
        for place in places.values()
    }
    algorithms = {places[cell.id].method: cell.algorithm for cell in grid.cells}
    methods = []
    for key in sorted(algorithms, key=lambda key: _rank(key, algorithms[key])):
        only = tuple(dict.fromkeys(p.data for p in places.values() if p.method == key))
        methods.append(
            Method(
                key,
                algorithms[key],
                label(key, algorithms[key]),
                deviation=grid.about.get(key, ""),
                only=only if len(only) < len(datasets) else None,
            )
        )
    comparison = Comparison(
        name=name,
        title=title,
        caption=caption,
        datasets=list(datasets.values()),
        methods=methods,
        seeds=sorted({place.seed for place in places.values()}),
        metric=METRIC,
        unit="battles won, %",
        further=(("test_return_mean", "Return"),),
        digits=2 if on.is_the_game else 3,
        data_row=True,
        share=True,
        with_paper=on.is_the_game,
        limits=(0, 105),
        datasets_down=on.is_the_game,
        published_average=paper.MEAN_WIN_RATE if on.is_the_game else None,
    )
    cells = {
        (place.data, place.method, place.seed): cell
        for cell in grid.cells
        for place in [places[cell.id]]
    }
    return Table(comparison, cells, grid.folder)


def _rank(key: str, algorithm: str) -> tuple:
    """The paper's order of columns, then the others by name; variants behind their algorithm."""
    order = [*paper.NAMES, *paper.FURTHER_NAMES]
    position = order.index(algorithm) if algorithm in order else len(order)
    return position, algorithm, key != algorithm, key


def label(key: str, algorithm: str) -> str:
    """A method's name as papers write it: `cfcql_published` is `CFCQL, published`."""
    name = (paper.NAMES | paper.FURTHER_NAMES).get(algorithm, algorithm)
    if key == algorithm:
        return name
    rest = key.removeprefix(f"{algorithm}_").replace("_", " ")
    return f"{name}, {rest}" if key.startswith(f"{algorithm}_") else rest


# --------------------------------------------------------------------------------------------------
# Tables 5 and 6


def table5(on: Simulator, seeds: int | None, maps: Sequence[str] | None) -> list[Table]:
    """Fixed alpha against tuned."""
    variants = {
        value: (f"α = {value}", {"tune_alpha": False, "alpha": float(value)})
        for value in ("0.1", "5", "10", "50")
    } | {"auto": ("auto-α", TUNED)}
    caption = (
        "Win rates of InSPO by the temperature α: fixed, or tuned by Eq. 25 with the sign that "
        "works, from 1 towards a divergence of 0.18."
    )
    return [_ablation(on, 5, "α", variants, caption, paper.ALPHAS, seeds, maps)]


def table6(on: Simulator, seeds: int | None, maps: Sequence[str] | None) -> list[Table]:
    """The order of the agents."""
    variants = {
        order: (order.replace("_", "-"), {"agent_order": order})
        for order in ("random", "fixed", "semi_greedy")
    }
    caption = "Win rates of InSPO by the order in which the agents are updated."
    return [_ablation(on, 6, "order", variants, caption, paper.ORDERS, seeds, maps)]


def _ablation(
    on: Simulator,
    number: int,
    what: str,
    variants: Mapping[str, tuple[str, Mapping[str, Any]]],
    caption: str,
    published: Mapping[tuple[str, str], Mapping[str, paper.Value]],
    seeds: int | None,
    maps: Sequence[str] | None,
) -> Table:
    """Variants of InSPO; the one that its presets make anyway is the method `inspo` of Table 4."""
    check_maps(on, number, maps)
    pairs = [(m, q) for m in maps_of(on, number) for q in on.qualities[number]]
    place = {"map_name": pairs[0][0], "quality": pairs[0][1], "seed": 0}
    usual = Cell("usual", "inspo", on.environment, place).config().values
    methods = {}
    for name, (words, overrides) in variants.items():
        values = Cell(name, "inspo", on.environment, {**place, **overrides}).config().values
        key = "inspo" if values == usual else f"inspo_{what.replace('α', 'alpha')}_{name}"
        methods[name] = Method(key, "inspo", words, overrides)
    datasets = [
        Data(
            f"{m}_{q}",
            f"{m} {q}",
            on.environment,
            {"map_name": m, "quality": q, **TESTS},
            {
                methods[name].key: value
                for name, value in (published.get((m, q), {}) if on.is_the_game else {}).items()
            },
        )
        for m, q in pairs
    ]
    comparison = Comparison(
        name=f"table{number}",
        title=f"Table {number} in {on.title}: InSPO by {what}",
        caption=caption if on.is_the_game else f"{caption} {NOT_THE_GAME}",
        datasets=datasets,
        methods=list(methods.values()),
        seeds=range(seeds or on.seeds),
        metric=METRIC,
        unit="battles won, %",
        digits=2 if on.is_the_game else 3,
        share=True,
        with_paper=on.is_the_game,
        limits=(0, 105),
        datasets_down=True,
    )
    return Table(comparison, cells_of(comparison), on.key)


NOT_THE_GAME = "SMAX, not StarCraft II: the paper's numbers cannot be set beside these."


# --------------------------------------------------------------------------------------------------
# Table 7

TIMED = ("cfcql", "inspo")
STEPS = 1e7  # of the paper's runs, in filled steps of data


def timed_cells(on: Simulator, seeds: int | None, maps: Sequence[str] | None) -> dict[Key, Cell]:
    """(map, algorithm, seed) -> cell; in StarCraft II those of Table 4."""
    wanted = check_maps(on, 7, maps)
    return {
        (m, algorithm, seed): Cell(
            f"{m}_{quality}/{algorithm}/seed{seed}",
            algorithm,
            on.environment,
            {"map_name": m, "quality": quality, **(on.timing or TESTS), "seed": seed},
        )
        for seed in range(seeds or on.seeds)
        for m in wanted
        for quality in on.qualities[7]
        for algorithm in TIMED
    }


def timing_folder(on: Simulator) -> str:
    return on.key if on.timing is None else f"{on.key}_timing"


def training_hours(result: Result, steps: float = STEPS) -> float:
    """Hours of training on so many steps, at the pace that the run logged, tests included.

    The pace is in `metrics.json`: updates per second, each over an equal share of the run. What
    comes before (making the data, fitting behaviour policies) is left out.
    """
    path = result.run_folder / "metrics.json"
    try:
        paces = json.loads(path.read_text(encoding="utf-8"))["updates_per_second"]["values"]
        seconds = [1 / pace for pace in paces]
        seconds_per_update = sum(seconds) / len(seconds)
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: expected updates_per_second, which runs log since they have a pace, found "
            "none that can be read. Move that run away, and it is made anew"
        ) from error
    if not (all(second > 0 for second in seconds) and result.t_env > 0):
        raise UserError(
            f"{path}: expected numbers above 0, found {paces} as updates_per_second in a run of "
            f"{result.t_env} steps. Move that run away, and it is made anew"
        )
    return steps * result.updates / result.t_env * seconds_per_update / 3600


def write_times(on: Simulator, results: Mapping[Key, Result], maps: Sequence[str], folder: Path):
    """`table7.md`, `.csv`, `.json` of what is finished."""
    header, rows, flat = ["map"], [], []
    columns = [f"{label(a, a)}{w}" for a in TIMED for w in (", paper", "")]
    header += columns if on.is_the_game else [label(a, a) for a in TIMED]
    header += ["ratio, paper", "ratio"] if on.is_the_game else ["ratio"]
    for m in maps:
        row, means = [m], {}
        for algorithm in TIMED:
            runs = [r for (name, a, _), r in results.items() if (name, a) == (m, algorithm)]
            hours = [training_hours(run) for run in runs]
            flat += [
                {"map": m, "algorithm": algorithm, "seed": run.seed, "hours": time}
                | {"updates": run.updates, "t_env": run.t_env, "commit": run.commit}
                for run, time in zip(runs, hours)
            ]
            printed = paper.HOURS.get(m, {}).get(algorithm)
            row += [_hours(printed)] if on.is_the_game else []
            row.append(mean_pm_std(*mean_std(hours)) + " h" if hours else "missing")
            means[algorithm] = sum(hours) / len(hours) if hours else math.nan
        if on.is_the_game:
            row.append(fixed(paper.HOURS[m]["inspo"] / paper.HOURS[m]["cfcql"]))
        ratio = means["inspo"] / means["cfcql"]
        row.append(NONE if math.isnan(ratio) else fixed(ratio))
        rows.append(row)
    runs = list(results.values())
    origin = ""
    if runs:
        machines = ", ".join(dict.fromkeys(machine(run.host) for run in runs))
        origin = f"{len(runs)} runs on {machines}, commit {commits(runs)}."
    text = [
        f"# Table 7 in {on.title}: training time of CFCQL and InSPO",
        f"Hours of training for 1e7 steps of data (128 episodes an update, {on.qualities[7][0]} "
        "data), at the pace that each run measured; fitting the behaviour policies comes on top. "
        "The paper does not say on which data it measured. Times compare only between runs of one "
        "machine that had nothing else to do: `--jobs 1`."
        + ("" if on.is_the_game else f" {NOT_THE_GAME}"),
        markdown_table(header, rows),
        "Mean ± standard deviation over seeds. ratio: InSPO's time in CFCQL's.",
        origin,
    ]
    stem = folder / "table7"
    record = {"hours": flat, "runs": [provenance(run) for run in runs]}
    return [
        write_text(f"{stem}.md", "\n\n".join(part for part in text if part) + "\n"),
        write_csv(f"{stem}.csv", flat),
        write_json(f"{stem}.json", record),
    ]


def _hours(value: float | None) -> str:
    return NONE if value is None else f"{fixed(value)} h"


# --------------------------------------------------------------------------------------------------
# Checks


def find_simulator(on: str) -> Simulator:
    if on not in SIMULATORS:
        raise ConfigError(
            f"--on: unknown simulator '{on}'.{nearest(on, SIMULATORS)} "
            f"Known: {', '.join(SIMULATORS)}"
        )
    return SIMULATORS[on]


def maps_of(on: Simulator, number: int) -> list[str]:
    """The maps of a table."""
    listed = on.maps.get(number)
    if listed is not None:
        return list(listed)
    return list(dict.fromkeys(place.map_name for place in grid_of(on).places.values()))


def check_maps(on: Simulator, number: int, maps: Sequence[str] | None) -> list[str]:
    """The maps asked for, all of the table's by default; ConfigError for one that it has not."""
    known = maps_of(on, number)
    for name in maps or ():
        if name not in known:
            raise ConfigError(
                f"--maps: Table {number} on {on.key} has no map '{name}'.{nearest(name, known)} "
                f"Known: {', '.join(known)}"
            )
    return [name for name in known if maps is None or name in maps]


def check_tested_in_the_game(results: Iterable[Result]) -> None:
    """UserError if a result that is to be called StarCraft II's was not made there."""
    for result in results:
        simulator = result.simulator or "a simulator that it does not name"
        if result.config["env"] != "sc2" or not simulator.startswith(GAME):
            raise UserError(
                f"{result.run_folder} was tested in {simulator} (env {result.config['env']}): it "
                "cannot stand in a table of StarCraft II. Move it away; --on smax writes the "
                "tables of SMAX"
            )


def download_data(cells: Iterable[Cell], say: Callable[[str], None]) -> None:
    """Fetch CFCQL's data for the cells whose dataset is missing, a map at a time."""
    from types import SimpleNamespace

    from inspo.offline.collect import dataset_path
    from inspo.offline.download import download

    missing = {}
    for cell in cells:
        args = SimpleNamespace(**cell.config().values)
        if not args.dataset["path"] and not dataset_path(args).exists():
            missing[args.map_name] = Path(args.datasets_dir)
    for name, folder in missing.items():
        download(f"cfcql/{name}", folder, log=say)
