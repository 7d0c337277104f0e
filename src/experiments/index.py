"""How the cells of a grid stand, and the file that says so: `grid_NAME.json` beside the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inspo.experiments.campaign import CampaignReport
from inspo.experiments.cells import Cell, finished_run_of
from inspo.experiments.gridfile import Grid
from inspo.experiments.records import public_command
from inspo.experiments.tables import fixed, text_table, write_json
from inspo.utils.errors import UserError

# Of the final test, in the closing table; what a simulator does not have is left out.
SHOWN = {
    "test_battle_won_mean": "win rate",
    "test_return_mean": "return",
    "test_expected_return": "expected return",
}


def entry_of(folder: Path, cell: Cell, report: CampaignReport) -> dict[str, Any]:
    """What the index has of one cell: finished (also by another campaign, after it failed here),
    failed, of another configuration, started, or not started; and what came out."""
    status, run = "started" if (folder / cell.id).exists() else "not started", None
    try:
        run = finished_run_of(folder, cell)
    except UserError:
        status = "of another configuration"
    failure = report.failed.get(cell.id)
    entry = {"cell": cell.id, "status": "finished" if run else "failed" if failure else status}
    entry["command"] = public_command(cell.arguments())
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
    """Write the index of all cells of the grid; returns it."""
    index = [entry_of(folder, cell, report) for cell in grid.cells]
    write_json(index_path(grid, folder), {"grid": grid.path.name, "cells": index})
    return index


def index_path(grid: Grid, folder: Path) -> Path:
    return folder / f"grid_{grid.name}.json"


def closing_table(index: Sequence[Mapping[str, Any]]) -> str:
    """Cells, how they stand, and the numbers of their final tests, for a terminal."""
    metrics = {k: v for k, v in SHOWN.items() if any(k in e.get("final", {}) for e in index)}
    lines = []
    for entry in index:
        final = entry.get("final", {})
        numbers = [fixed(final[key], 3) if key in final else "" for key in metrics]
        lines.append([entry["cell"], entry["status"], *numbers, str(entry.get("minutes", ""))])
    return text_table(["cell", "status", *metrics.values(), "minutes"], lines)
