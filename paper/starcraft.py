"""The paper's Tables 4 to 6: in StarCraft II itself, or, told apart, in SMAX.

Table 4's cells are those of `sweeps/{sc2,smax}.yaml`, so that `src/sweep.py` runs the same; the
others are ablations of InSPO in the same folder of runs. What the tables share is run once: InSPO
as its presets have it is a row of Tables 4, 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from inspo.experiments import cells as checks
from inspo.experiments.cells import Cell
from inspo.experiments.records import Run
from inspo.utils.errors import UserError
from inspo.utils.settings import Settings
from paper.options import Options, check_maps, check_qualities
from paper.reader import Table, maps_of, read_grid_table, read_table, simulator
from paper.tables import run_table

# What a run that was tested in the game says of itself (envs/sc2.py).
GAME = "StarCraft II"


def reproduce(options: Options) -> bool:
    """Run what is missing of table4, table5, table6 or smax, and write it; whether none failed."""
    on = "smax" if options.command == "smax" else options.on
    tables = starcraft_tables(options.command, on, options)
    datasets = [data for table in tables for data in table.comparison.datasets]
    check_qualities(options.qualities, (data.overrides["quality"] for data in datasets))
    chosen = {
        data.key
        for data in datasets
        if (options.maps is None or data.overrides["map_name"] in options.maps)
        and (options.qualities is None or data.overrides["quality"] in options.qualities)
    }

    def prepare(cells: Sequence[Cell]) -> None:
        prepare_starcraft(on, options, cells)

    accept = check_tested_in_the_game if is_the_game(on) else None
    return all([run_table(table, options, chosen, prepare, accept) for table in tables])


def starcraft_tables(name: str, on: str, options: Options) -> list[Table]:
    """The tables of a command: one, but for Table 4 on SMAX, which has one for each map."""
    simulator(on)  # an unknown one is an error of --on
    if name == "table4" and not is_the_game(on):
        name = "smax"
    maps = maps_of(name, on)
    title = "Table 4" if name == "smax" else name.replace("table", "Table ")
    check_maps(title, on, options.maps, maps)
    if name == "smax":
        chosen = [m for m in maps if options.maps is None or m in options.maps]
        return [read_grid_table(name, on, options.seeds, map_name) for map_name in chosen]
    if name == "table4":
        return [read_grid_table(name, on, options.seeds)]
    return [read_table(name, options.seeds, on)]


def is_the_game(on: str) -> bool:
    return on == "sc2"


# --------------------------------------------------------------------------------------------------
# Checks


def prepare_starcraft(on: str, options: Options, cells: Sequence[Cell]) -> None:
    """What must be here before anything runs: the game, where it is that, and the data."""
    checks.check_algorithms(cells)
    if options.backend == "local":
        checks.check_game(cells)
    if is_the_game(on):
        download_data(cells)
    checks.check_data(cells)


def download_data(cells: Iterable[Cell]) -> None:
    """Fetch CFCQL's data for the cells whose dataset is missing, a map at a time."""
    from inspo.offline.collect import dataset_path
    from inspo.offline.download import download

    missing = {}
    for cell in cells:
        args = Settings(cell.config().values)
        if not args.dataset["path"] and not dataset_path(args).exists():
            missing[args.map_name] = Path(args.datasets_dir)
    for name, folder in missing.items():
        download(f"cfcql/{name}", folder)


def check_tested_in_the_game(runs: Iterable[Run]) -> None:
    """UserError if a run that is to be called StarCraft II's was not tested there."""
    for run in runs:
        tested_in = run.simulator or "a simulator that it does not name"
        if run.environment != "sc2" or not tested_in.startswith(GAME):
            raise UserError(
                f"{run.folder} was tested in {tested_in} (env {run.environment}): it cannot stand "
                "in a table of StarCraft II. Move it away; --on smax writes the tables of SMAX"
            )
