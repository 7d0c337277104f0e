"""The runs that a comparison's JSON file holds already, so that no table loses what it shows.

The files of a table are kept under version control, the runs' folders are not: in a fresh checkout
the file is all that is left of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inspo.evaluation.comparison import Comparison, Key
from inspo.evaluation.grid import Cell, Result, differences, read_result
from inspo.utils.errors import UserError


def read_recorded(
    comparison: Comparison, cells: Mapping[Key, Cell], target: Path, folder: Path
) -> dict[Key, Result]:
    """Results of `cells` from `{target}/{comparison.name}.json`, of those without a finished run.

    target: where the comparison's files are. folder: where its runs are. UserError if the file
    holds a run that the comparison would lose: of a cell that it does not have, or of another
    configuration, and not in `folder` either.
    """
    path = target / f"{comparison.name}.json"
    kept, lost = {}, []
    for key, run in _runs(path).items():
        cell = cells.get(key)
        if cell is None:
            data, method, seed = key
            name = f"{data}/{method}/seed{seed}"
            if not (folder / name).is_dir():
                lost.append(f"{name}, which is not among this command's runs")
        elif read_result(folder, cell) is None:
            differing = differences(run["config"], cell.config().values, set(cell.overrides))
            if differing:
                lost.append(f"{cell.id}, of another configuration ({'; '.join(differing)})")
            else:
                kept[key] = _result(cell, run, path)
    if lost:
        raise UserError(
            f"{path} holds {len(lost)} runs that would be lost by writing it anew, such as "
            f"{lost[0]}. Write elsewhere with --results DIR, or move that file away"
        )
    return kept


def _runs(path: Path) -> dict[Key, dict[str, Any]]:
    """The records of a file's runs; none if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            (entry["dataset"], entry["method"], run["seed"]): run
            for entry in content["entries"]
            for run in entry["runs"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} would be written anew, and cannot be read ({type(error).__name__}: {error}): "
            "expected a table's record, with `entries` and their `runs`. Move it away"
        ) from error


def _result(cell: Cell, run: Mapping[str, Any], path: Path) -> Result:
    try:
        return Result(
            cell_id=cell.id,
            config=run["config"],
            commit=run["git_commit"],
            command=run["command"].split()[1:],
            seed=run["seed"],
            tests=[],
            final=run["final"],
            raw=run["raw"],
            dataset=run["dataset"],
            simulator=None,
            updates=run["updates"],
            t_env=run["t_env"],
            hours=run["hours"],
            sessions=run["sessions"],
            host={"machine": run["machine"]},
            versions=run["versions"],
            run_folder=path,
            model_folder=None,
        )
    except (KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: the record of {cell.id} lacks {error}: it was written by another version. "
            "Move the file away, or write elsewhere with --results DIR"
        ) from error
