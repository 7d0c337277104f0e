"""Grids of runs: `python src/sweep.py GRID.yaml`. `--help` says more, with an example of a grid."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.experiments import tuning
from inspo.experiments.campaign import CampaignReport, run_cells
from inspo.experiments.cells import Cell, check_algorithms, check_data, check_game, finished_run_of
from inspo.experiments.gridfile import FORMAT, Grid, read_grid, select_names
from inspo.experiments.pool import add_options, check_options, make_pool, pool_options
from inspo.experiments.records import public_command
from inspo.experiments.tables import fixed, write_json
from inspo.experiments.tuning import final_scores, fqe_scores
from inspo.utils.command_line import Parser, text_table
from inspo.utils.config import expand_user
from inspo.utils.errors import ConfigError, UserError
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT

HELP = """\
Run what is missing of a grid: algorithms x environments x maps x qualities x seeds x overrides.

Each cell is one run of main.py in results/runs/FOLDER/MAP_QUALITY/METHOD/seedN, with log.txt,
Sacred's record and checkpoints. What is finished is not run again, what was interrupted resumes
from its newest checkpoint, what failed is tried again; a failed cell stops no other one. Ctrl-C
and SIGTERM save what runs, and leave. At the end grid_NAME.json lies beside the runs: every cell,
how it stands, and the numbers of its final test. Cells that another process runs are waited for.

Every unknown key, name and dataset is an error before anything runs.
"""


def indented(text: str) -> str:
    return "".join(f"  {line}" for line in text.splitlines(keepends=True))


EPILOG = f"""\
a grid file:

{indented(FORMAT)}
equal budgets, and a tuning stage, in the same file:

{indented(tuning.FORMAT)}
  `--tune` runs the configurations, as many for each algorithm, and writes the best of each into
  GRID_tuned.yaml. Without it the grid itself runs, with these: on other seeds, and only after that
  file is committed. A score of fqe estimates the return from the tuning data (docs/selection.md),
  so that nothing has to be played.

beyond one machine, on Ray (pip install -r requirements-dev.txt):
  --backend ray --address HOST:PORT uses the cluster that stands there (`ray start --head` prints
  the address; auto finds it on one of its nodes). Each cell takes one CPU, and --gpus G of a GPU.
  The project, its Python environment, datasets and --results must lie on a file system that all
  nodes share, at the same paths. A cluster that asks for a token needs RAY_AUTH_MODE=token and the
  token here too. Without --address a Ray of this machine is made for the occasion.

examples:
  python src/sweep.py sweeps/smax.yaml --plan
  python src/sweep.py sweeps/smax.yaml --only 2s3z_medium '*/bc/seed0' --jobs 2
  python src/sweep.py sweeps/smax.yaml --backend ray --address auto

exit status: 0; 1 if runs failed; 2 for an error in what was asked; 130, 143 if stopped
"""


# Of the final test, in the closing table; what a simulator does not have is left out.
SHOWN = {
    "test_battle_won_mean": "win rate",
    "test_return_mean": "return",
    "test_expected_return": "expected return",
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="sweep.py",
        description=HELP,
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("grid", type=Path, metavar="GRID.yaml", help="the grid; see below")
    add_options(parser)
    add(
        "--only", nargs="+", metavar="NAME", default=[],
        help="cells of these names alone: 2s3z_medium, 2s3z_medium/bc, '*/seed0'",
    )  # fmt: skip
    add(
        "--results", type=Path, metavar="DIR", default=PROJECT_ROOT / "results",
        help="where runs go: DIR/runs/FOLDER (default: results/)",
    )  # fmt: skip
    add("--tune", action="store_true", help="the grid's tuning stage; see below")
    show = parser.add_mutually_exclusive_group()
    show.add_argument(
        "--plan", action="store_true",
        help="name the cells, how each stands and the hours that are left; run nothing",
    )  # fmt: skip
    show.add_argument(
        "--dry-run", action="store_true", help="print the command of each cell; run nothing"
    )
    options = parser.parse_args(argv)
    check_options(*pool_options(options))
    options.grid = read_grid(options.grid)
    return options


def sweep(options: argparse.Namespace) -> bool:
    """Run what is missing of the grid, or of its tuning stage; whether all of it is finished."""
    grid = options.grid
    if options.tune:
        grid = tuning_stage(grid)
    folder = expand_user(options.results, "--results").resolve() / "runs" / grid.folder
    cells = select_names(grid, options.only)
    try:
        check_algorithms(cells)
    except ConfigError as error:
        raise ConfigError(f"{grid.path}: {error}") from None
    if options.dry_run:
        for cell in cells:
            print(public_command(cell.arguments()))
        return True
    if options.plan:
        print(plan(folder, cells))
        return True
    if options.backend == "local":  # the nodes of a cluster are not ours to look at
        check_game(cells)
    try:
        check_data(cells)
        if grid.tuning and not options.tune:
            grid.tuning.require_frozen(grid.cells)
    except UserError as error:
        raise type(error)(f"{grid.path}: {error}") from None
    finished = run(grid, cells, folder, options)
    if finished and options.tune and len(cells) == len(grid.cells):
        freeze(grid, folder)
    return finished


def tuning_stage(grid: Grid) -> Grid:
    """The grid's tuning cells as a grid; ConfigError if it has none."""
    if grid.tuning is None:
        raise ConfigError(f"{grid.path}: --tune: there is no section `tuning` (--help shows one)")
    return replace(grid, folder=f"{grid.folder}_tuning", cells=grid.tuning.all_cells)


def freeze(grid: Grid, folder: Path) -> None:
    """Choose, write the file of choices, and show what was chosen."""
    assert grid.tuning is not None
    scores = fqe_scores if grid.tuning.score == tuning.FQE else final_scores(grid.tuning.score)
    rows = [
        [name, str(one["overrides"]), fixed(one["score"], 3), fixed(one["minutes"], 1),
         "chosen" if one["overrides"] == entry["chosen"] else ""]
        for name, entry in grid.tuning.freeze(folder, scores).items()
        for one in entry["configurations"]
    ]  # fmt: skip
    print(text_table(["algorithm", "configuration", grid.tuning.score, "minutes", ""], rows))
    print(f"choices: {grid.tuning.file}; commit it, then run the grid without --tune")


def run(grid: Grid, cells: Sequence[Cell], folder: Path, options: argparse.Namespace) -> bool:
    """Run the cells that are not finished; whether none failed."""
    report = CampaignReport()
    print(f"{len(cells)} runs in {folder}; Ctrl-C saves, the same command goes on")
    pool = make_pool(*pool_options(options))
    try:
        run_cells(cells, pool, folder, title=grid.name, report=report)
    except KeyboardInterrupt:
        write_index(grid, folder, report)
        raise
    index = write_index(grid, folder, report)
    print(closing_table(index))
    print(f"index: {folder / f'grid_{grid.name}.json'}")
    failed = [report.failed[entry["cell"]] for entry in index if entry["status"] == "failed"]
    for failure in failed:
        print(f"failed: {failure.cell.id}, see {failure.log}", file=sys.stderr)
    return not failed


def plan(folder: Path, cells: Sequence[Cell]) -> str:
    """Every cell and how it stands, and the core hours that are left, as a text.

    A cell's hours are the mean of the finished ones of its algorithm on its dataset, or on any.
    """
    entries = [entry_of(folder, cell, CampaignReport()) for cell in cells]
    hours: dict[Any, list[float]] = {}
    for cell, entry in zip(cells, entries):
        if "minutes" in entry:
            for key in ((cell.algorithm, cell.key[0]), cell.algorithm):
                hours.setdefault(key, []).append(entry["minutes"] / 60)
    left, unknown = 0.0, 0
    for cell, entry in zip(cells, entries):
        if entry["status"] != "finished":
            known = hours.get((cell.algorithm, cell.key[0])) or hours.get(cell.algorithm)
            left, unknown = left + (fmean(known) if known else 0.0), unknown + (not known)
    rows = [[e["cell"], e["status"], str(e.get("minutes", ""))] for e in entries]
    done = sum(entry["status"] == "finished" for entry in entries)
    text = text_table(["cell", "status", "minutes"], rows)
    text += f"\n{done} of {len(cells)} finished; about {left:.1f} core hours are left"
    if unknown:
        text += f", and {unknown} runs of algorithms of which none is finished yet"
    return text


def entry_of(folder: Path, cell: Cell, report: CampaignReport) -> dict[str, Any]:
    """What the index has of one cell: finished (also by another campaign, after it failed here),
    failed, of another configuration, started, or not started; and what came out."""
    status, run = "started" if (folder / cell.id).exists() else "not started", None
    try:
        run = finished_run_of(folder, cell)
    except UserError:
        status = "of another configuration"
    failure = report.failed.get(cell.id)
    status = "finished" if run else "failed" if failure else status
    entry = {"cell": cell.id, "status": status, "command": public_command(cell.arguments())}
    if run:
        return entry | {
            "final": run.final,
            "updates": run.updates,
            "t_env": run.t_env,
            "minutes": round(60 * run.hours, 2),
            "git_commit": run.commit,
            "record": str(run.folder.relative_to(folder)),
        }
    return entry | ({"error": failure.message} if failure else {})


def write_index(grid: Grid, folder: Path, report: CampaignReport) -> list[dict[str, Any]]:
    """Write `grid_NAME.json`, how all cells of the grid stand, beside the runs; returns it."""
    index = [entry_of(folder, cell, report) for cell in grid.cells]
    write_json(folder / f"grid_{grid.name}.json", {"grid": grid.path.name, "cells": index})
    return index


def closing_table(index: Sequence[Mapping[str, Any]]) -> str:
    """Cells, how they stand, and the numbers of their final tests, for a terminal."""
    metrics = {k: v for k, v in SHOWN.items() if any(k in e.get("final", {}) for e in index)}
    lines = []
    for entry in index:
        final = entry.get("final", {})
        numbers = [fixed(final[key], 3) if key in final else "" for key in metrics]
        lines.append([entry["cell"], entry["status"], *numbers, str(entry.get("minutes", ""))])
    return text_table(["cell", "status", *metrics.values(), "minutes"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if runs failed; 2: the user's error; 130, 143: stopped."""
    return exit_status(lambda: 0 if sweep(parse(argv)) else 1)


if __name__ == "__main__":
    sys.exit(main())
