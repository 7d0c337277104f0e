"""Runs what is missing of a table, and writes it after every run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from inspo.experiments.campaign import CampaignReport, OnFinished, run_cells
from inspo.experiments.cells import Cell
from inspo.experiments.comparison import (
    cells_of,
    check_measured,
    finished_runs,
    recorded_runs,
    to_markdown,
    write,
)
from inspo.experiments.entries import Comparison, Method
from inspo.experiments.pool import make_pool, pool_options
from inspo.experiments.records import Run
from inspo.utils.config import offline_algorithms
from paper.options import Options, changed, check_algorithms
from paper.reader import Table, label, read_table

Check = Callable[[Iterable[Run]], None]


def reproduce(options: Options) -> bool:
    """Run what is missing of Table 1, 2 or 3, and write it; whether nothing failed."""
    return run_table(with_further(read_table(options.command, options.seeds), options), options)


def with_further(table: Table, options: Options) -> Table:
    """The table with the algorithms that are requested, or have runs already, beside its own."""
    methods = list(table.comparison.methods)
    known = {method.key for method in methods}
    requested = check_algorithms(options.algorithms or [], known)
    folders = (options.results / "runs" / table.runs).glob("*/*")
    present = {path.name for path in folders if path.is_dir()}
    further = [
        Method(name, name, label(name, name))
        for name in offline_algorithms()
        if name not in known and name in {*requested, *present}
    ]
    if not further:
        return table
    place = max(i for i, method in enumerate(methods) if method.key == method.algorithm) + 1
    comparison = replace(table.comparison, methods=[*methods[:place], *further, *methods[place:]])
    return replace(table, comparison=comparison, cells=cells_of(comparison))


def run_table(
    table: Table,
    options: Options,
    datasets: set[str] | None = None,
    prepare: Callable[[Sequence[Cell]], None] | None = None,
    accept: Check | None = None,
) -> bool:
    """Run what is missing, of the algorithms and datasets requested; whether nothing failed.

    The files always show the whole comparison; what is not there is named as missing. Runs that
    the files hold already stay in them until they are run anew.
    prepare: called with the cells that are to be run, before the first. accept: called with runs
    before they are written; UserError for one that has no place in the table, which then counts as
    failed. A run without the table's metric has none either.
    """
    comparison = table.comparison
    folder, target = options.results / "runs" / table.runs, options.results / table.files

    def check(new: Iterable[Run]) -> None:
        new = list(new)
        check_measured(comparison, new)
        if accept:
            accept(new)

    check_algorithms(options.algorithms or [], (method.key for method in comparison.methods))
    cells = changed(table.cells, options.changes)
    finished = finished_runs(cells, folder)
    recorded = recorded_runs(comparison, cells, target, folder)
    runs = recorded | finished
    requested = [
        cell
        for key, cell in cells.items()
        if (datasets is None or key[0] in datasets)
        and is_requested(key[1], options, comparison)
        and not (options.fill and key in recorded)
    ]
    check(finished.values())
    if prepare and (missing := [c for c in requested if c.key not in finished]):
        prepare(missing)

    def on_finished(cell: Cell, run: Run) -> None:
        check([run])
        runs[cell.key] = run
        write(comparison, runs, target)

    write(comparison, runs, target)
    report = run_missing(requested, options, folder, comparison.name, on_finished)
    paths = write(comparison, runs, target)
    print(to_markdown(comparison, runs).split("\n## Every seed")[0])
    print("written:", *paths, sep="\n  ")
    print(f"runs, with their logs: {folder}")
    return not failures(report)


def is_requested(method: str, options: Options, comparison: Comparison) -> bool:
    """Whether --algs names a method: by its own name, or by that of its algorithm.

    The control on SMAX is named by its own name alone: it is no row of InSPO's.
    """
    if options.algorithms is None or method in options.algorithms:
        return True
    algorithm = next(m.algorithm for m in comparison.methods if m.key == method)
    return algorithm in options.algorithms and method != "control"


def run_missing(
    cells: Sequence[Cell],
    options: Options,
    folder: Path,
    title: str,
    on_finished: OnFinished | None = None,
) -> CampaignReport:
    """Run the cells that are not finished, where the options say."""
    pool = make_pool(*pool_options(options))
    return run_cells(cells, pool, folder, on_finished, title=title)


def failures(report: CampaignReport) -> bool:
    """Name once more, at the end, what failed; whether anything did."""
    for failure in report.failed.values():
        print(f"failed: {failure.cell.id}, see {failure.log}", file=sys.stderr)
    return bool(report.failed)
