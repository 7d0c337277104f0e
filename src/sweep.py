"""Grids of runs: `python src/sweep.py GRID.yaml`. `--help` says more, with an example of a grid."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.evaluation.grid import Cell, GridReport, command_of, read_result, run_grid
from inspo.evaluation.gridfile import FORMAT, Grid, read_grid, select
from inspo.evaluation.jobs import BACKENDS, check_options, make_launcher
from inspo.evaluation.preflight import check_algorithms, check_data, check_game
from inspo.evaluation.tables import fixed, public_command, text_table, write_json
from inspo.utils.config import expand_user
from inspo.utils.errors import ConfigError, UserError, nearest
from inspo.utils.interrupts import Interrupted, exit_status
from inspo.utils.paths import PROJECT_ROOT

# Of the final test, in the closing table; what a simulator does not have is left out.
SHOWN = {
    "test_battle_won_mean": "win rate",
    "test_return_mean": "return",
    "test_expected_return": "expected return",
}


@dataclass(frozen=True)
class Options:
    """What the command line says, checked."""

    grid: Grid
    only: list[str]
    results: Path
    show: str | None  # list | dry_run
    backend: str
    jobs: int | None
    address: str | None
    gpus: float


def sweep(options: Options) -> bool:
    """Run what is missing of the grid; whether all that was asked for is finished."""
    grid, folder = options.grid, options.results / "runs" / options.grid.folder
    asked = chosen(grid, options.only)
    try:
        check_algorithms(asked.cells)
    except ConfigError as error:
        raise ConfigError(f"{grid.path}: {error}") from None
    if options.show == "dry_run":
        for cell in asked.cells:
            print(public_command(command_of(cell, folder)[2:]))
        return True
    if options.show == "list":
        statuses = {cell.id: status(folder, cell, GridReport()) for cell in asked.cells}
        print(text_table(["cell", "status"], [list(item) for item in statuses.items()]))
        return True
    if options.backend == "local":  # the nodes of a cluster are not ours to look at
        check_game(asked.cells)
    check_data(asked.cells)
    print(f"{len(asked.cells)} runs in {folder}; Ctrl-C saves, the same command goes on")
    report = GridReport()
    launcher = make_launcher(options.backend, options.jobs, options.address, options.gpus)
    try:
        run_grid(asked.cells, launcher, folder, title=grid.name, report=report)
    except Interrupted:
        write_index(grid, folder, report)
        raise
    finally:
        launcher.close()
    index = write_index(grid, folder, report)
    print(closing_table(index))
    print(f"index: {index_path(grid, folder)}")
    failed = [report.failed[entry["cell"]] for entry in index if entry["status"] == "failed"]
    for failure in failed:
        print(f"failed: {failure.cell.id}, see {failure.log}", file=sys.stderr)
    return not failed


def chosen(grid: Grid, only: Sequence[str]) -> Grid:
    """The cells whose name, or the beginning of it, fits one of the patterns; all without any."""
    if not only:
        return grid

    def fits(cell: Cell, place: Any) -> bool:
        return any(fnmatch.fnmatchcase(cell.id, p) or cell.id.startswith(f"{p}/") for p in only)

    asked = select(grid, fits)
    if not asked.cells:
        known = [cell.id for cell in grid.cells]
        raise ConfigError(
            f"--only {' '.join(only)}: no cell of {grid.path} has such a name."
            f"{nearest(only[0], known)} --list shows them all"
        )
    return asked


# --------------------------------------------------------------------------------------------------
# The index


def status(folder: Path, cell: Cell, report: GridReport) -> str:
    words = "started" if (folder / cell.id).exists() else "not started"
    try:
        if read_result(folder, cell) is not None:
            return "finished"  # be it by another grid, after it failed here
    except UserError:
        words = "of another configuration"
    return "failed" if cell.id in report.failed else words


def index_path(grid: Grid, folder: Path) -> Path:
    return folder / f"grid_{grid.name}.json"


def write_index(grid: Grid, folder: Path, report: GridReport) -> list[dict[str, Any]]:
    """`grid_{name}.json` beside the runs: every cell of the grid, how it stands, what came out."""
    index = []
    for cell in grid.cells:
        entry = {"cell": cell.id, "status": status(folder, cell, report)}
        entry |= {"command": public_command(cell.arguments())}
        if entry["status"] == "failed":
            entry |= {"error": report.failed[cell.id].words}
        elif entry["status"] == "finished":
            result = read_result(folder, cell)
            entry |= {
                "final": result.final,
                "updates": result.updates,
                "t_env": result.t_env,
                "minutes": round(60 * result.hours, 2),
                "git_commit": result.commit,
                "record": str(result.run_folder.relative_to(folder)),
            }
        index.append(entry)
    write_json(index_path(grid, folder), {"grid": grid.path.name, "cells": index})
    return index


def closing_table(index: Sequence[dict[str, Any]]) -> str:
    metrics = {k: v for k, v in SHOWN.items() if any(k in e.get("final", {}) for e in index)}
    rows = []
    for entry in index:
        final = entry.get("final", {})
        numbers = [fixed(final[key], 3) if key in final else "" for key in metrics]
        rows.append([entry["cell"], entry["status"], *numbers, str(entry.get("minutes", ""))])
    return text_table(["cell", "status", *metrics.values(), "minutes"], rows)


# --------------------------------------------------------------------------------------------------
# The command line

HELP = """\
Run what is missing of a grid: algorithms x environments x maps x qualities x seeds x overrides.

Each cell is one run of main.py in results/runs/FOLDER/MAP_QUALITY/METHOD/seedN, with log.txt,
Sacred's record and checkpoints. What is finished is not run again, what was interrupted resumes
from its newest checkpoint, what failed is tried again; a failed cell stops no other one. Ctrl-C
and SIGTERM save what runs, and leave. At the end grid_NAME.json lies beside the runs: every cell,
how it stands, and the numbers of its final test. Cells that another process runs are waited for.

Every unknown key, name and dataset is an error before anything runs.
"""

EPILOG = f"""\
a grid file:

{"".join(f"  {line}" for line in FORMAT.splitlines(keepends=True))}
beyond one machine, on Ray (pip install -r requirements-dev.txt):
  --backend ray --address HOST:PORT uses the cluster that stands there (`ray start --head` prints
  the address; auto finds it on one of its nodes). Each cell takes one CPU, and --gpus G of a GPU.
  The project, its Python environment, datasets and --results must lie on a file system that all
  nodes share, at the same paths. A cluster that asks for a token needs RAY_AUTH_MODE=token and the
  token here too. Without --address a Ray of this machine is made for the occasion.

examples:
  python src/sweep.py sweeps/smax.yaml --list
  python src/sweep.py sweeps/smax.yaml --only 2s3z_medium '*/bc/seed0' --jobs 2
  python src/sweep.py sweeps/smax.yaml --backend ray --address auto

exit status: 0; 1 if runs failed; 2 for an error in what was asked; 130, 143 if stopped
"""


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="sweep.py",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="the grid; see below")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: 2; ray: the cluster's CPUs)"
    )
    parser.add_argument(
        "--backend", default="local", metavar="|".join(BACKENDS), help="default: local"
    )
    parser.add_argument("--address", metavar="A", help="ray: the cluster to run on")
    parser.add_argument(
        "--gpus", type=float, metavar="G", default=0.0, help="ray: a cell's share of a GPU"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[],
        help="cells of these names alone: 2s3z_medium, 2s3z_medium/bc, '*/seed0'",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, metavar="DIR", default=PROJECT_ROOT / "results",
        help="where runs go: DIR/runs/FOLDER (default: results/)",
    )  # fmt: skip
    show = parser.add_mutually_exclusive_group()
    show.add_argument(
        "--list", action="store_const", dest="show", const="list",
        help="name the cells and say how each stands; run nothing",
    )  # fmt: skip
    show.add_argument(
        "--dry-run", action="store_const", dest="show", const="dry_run",
        help="print the command of each cell; run nothing",
    )  # fmt: skip
    given = parser.parse_args(argv)
    check_options(given.backend, given.jobs, given.address, given.gpus)
    return Options(
        grid=read_grid(given.grid),
        only=given.only,
        results=expand_user(given.results, "--results").resolve(),
        show=given.show,
        backend=given.backend,
        jobs=given.jobs,
        address=given.address,
        gpus=given.gpus,
    )


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0; 1 if runs failed; 2: the user's error; 130, 143: stopped."""
    return exit_status(lambda: 0 if sweep(parse(argv)) else 1)


def command() -> int:
    """The console command."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
