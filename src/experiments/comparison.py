"""Methods on datasets, several seeds each: the cells to run, the comparison, and its four files.

    cells = cells_of(comparison)                      # (task, method, seed) -> Cell
    runs = recorded_runs(comparison, cells, target, folder) | finished_runs(cells, folder)
    write(comparison, runs, target)                   # NAME.md, .csv, .json, .png

A comparison may be written at any time: what is missing is named and never averaged away. Its JSON
file holds every run with all of its tests and the values of every final test episode, so that the
table can be written anew from that file alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from inspo.experiments.cells import Cell, Key, finished_run_of
from inspo.experiments.entries import Comparison, Entry, data_mean, judge
from inspo.experiments.records import (
    Run,
    commits,
    differences,
    from_provenance,
    is_number,
    provenance,
)
from inspo.experiments.statistics import bootstrap, wilson
from inspo.experiments.tables import (
    NONE,
    fixed,
    interval,
    markdown_table,
    mean_pm_std,
    write_csv,
    write_json,
    write_text,
)
from inspo.utils.errors import UserError


def cells_of(comparison: Comparison) -> dict[Key, Cell]:
    """Every run of a comparison, seed by seed, so that a stop leaves whole seeds."""
    cells = (
        Cell(
            f"{data.key}/{method.key}/seed{seed}",
            method.algorithm,
            data.environment,
            {**data.overrides, **method.overrides, "seed": seed},
        )
        for seed in comparison.seeds
        for data in comparison.datasets
        for method in comparison.methods
        if method.runs_on(data)
    )
    return {cell.key: cell for cell in cells}


def finished_runs(cells: Mapping[Key, Cell], folder: Path) -> dict[Key, Run]:
    """The runs of the cells that are finished in `folder`; UserError as `finished_run_of`."""
    runs = {key: finished_run_of(folder, cell) for key, cell in cells.items()}
    return {key: run for key, run in runs.items() if run}


def recorded_runs(
    comparison: Comparison, cells: Mapping[Key, Cell], target: Path, folder: Path
) -> dict[Key, Run]:
    """The runs that `{target}/{comparison.name}.json` holds, of cells without a finished run.

    The files of a table are kept under version control, the runs' folders are not: in a fresh
    checkout the file is all that is left of a run. folder: where the runs are. UserError if the
    file cannot be read, or holds a run that the comparison would lose: of a cell that it does not
    have, or of another configuration, and not in `folder` either.
    """
    path = target / f"{comparison.name}.json"
    kept, lost = {}, []
    for key, run in _read_runs(path).items():
        cell = cells.get(key)
        if cell is None:
            data, method, seed = key
            name = f"{data}/{method}/seed{seed}"
            if not (folder / name).is_dir():
                lost.append(f"{name}, which is not among this command's runs")
        elif finished_run_of(folder, cell) is None:
            differing = differences(run.config, cell.config().values, cell.overrides)
            if differing:
                lost.append(f"{cell.id}, of another configuration ({'; '.join(differing)})")
            else:
                kept[key] = run
    if lost:
        raise UserError(
            f"{path} holds {len(lost)} runs that would be lost by writing it anew, such as "
            f"{lost[0]}. Write elsewhere with --results DIR, or move that file away"
        )
    return kept


def _read_runs(path: Path) -> dict[Key, Run]:
    """The runs of a table's file; none if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [content] if "entries" in content else content.values()  # of a figure: several
        return {
            (entry["dataset"], entry["method"], run["seed"]): from_provenance(run, path)
            for part in parts
            if not isinstance(part, str)
            for entry in part["entries"]
            for run in entry["runs"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} would be written anew, and cannot be read ({type(error).__name__}: {error}): "
            "expected a table's record, with `entries` and their `runs`. Move it away, or write "
            "elsewhere with --results DIR"
        ) from error


def check_measured(comparison: Comparison, runs: Iterable[Run]) -> None:
    """UserError for a run without a number under one of the metrics of the comparison."""
    metrics = [comparison.metric, *(metric for metric, _ in comparison.further)]
    for run in runs:
        for metric in metrics:
            if not is_number(run.final.get(metric)):
                raise UserError(
                    f"{run.folder}: expected a number under {metric} in the final test, found "
                    f"{run.final.get(metric)}. Was it run without tests (final_test_nepisode=0)? "
                    "Move its folder away to run it anew"
                )


def compare(
    comparison: Comparison, runs: Mapping[Key, Run], metric: str | None = None
) -> list[Entry]:
    """All entries; the best of a dataset among those with all seeds."""
    entries = []
    for data in comparison.datasets:
        column = []
        for method in filter(lambda method: method.runs_on(data), comparison.methods):
            keys = {seed: (data.key, method.key, seed) for seed in comparison.seeds}
            own = {seed: runs[key] for seed, key in keys.items() if key in runs}
            missing = [seed for seed in comparison.seeds if seed not in own]
            values = {seed: run.final[metric or comparison.metric] for seed, run in own.items()}
            column.append(Entry(data, method, own, values, missing, bool(own) and not missing))
        judge([entry for entry in column if entry.complete], comparison.digits)
        entries += column
    return entries


def write(comparison: Comparison, runs: Mapping[Key, Run], folder: Path) -> list[Path]:
    """`{folder}/{name}.md`, `.csv`, `.json` and `.png`, of what is finished."""
    entries = compare(comparison, runs)
    stem = folder / comparison.name
    paths = [
        write_text(f"{stem}.md", to_markdown(comparison, runs)),
        write_csv(f"{stem}.csv", to_rows(comparison, entries)),
        write_json(f"{stem}.json", to_record(comparison, entries)),
    ]
    if any(entry.values for entry in entries):
        from inspo.experiments.plots import draw_bars  # matplotlib; the rest does without

        draw = comparison.picture or partial(draw_bars, comparison)
        paths.append(draw(entries, Path(f"{stem}.png")))
    return paths


def to_markdown(comparison: Comparison, runs: Mapping[Key, Run]) -> str:
    """The page: the main table, its legend, further metrics, every seed, where it comes from."""
    entries = compare(comparison, runs)
    parts = [f"# {comparison.title}", comparison.caption]
    parts.append(main_table(comparison, entries, comparison.metric))
    parts.append(legend(comparison, entries))
    for metric, title in comparison.further:
        further = compare(comparison, runs, metric)
        parts += [f"## {title}", main_table(comparison, further, metric)]
    parts += ["## Every seed", seed_table(comparison, entries)]
    parts.append(origin(comparison, entries))
    return "\n\n".join(part for part in parts if part) + "\n"


def main_table(comparison: Comparison, entries: Sequence[Entry], metric: str) -> str:
    """Methods by datasets; where the paper has numbers, its value beside ours."""
    c, main, down = comparison, metric == comparison.metric, comparison.datasets_down
    by_key = {(entry.data.key, entry.method.key): entry for entry in entries}
    names = [method.label + (" †" if method.deviation else "") for method in c.methods]
    labels = [data.label for data in c.datasets]
    means = [_known(data_mean(entries, data, metric), c.digits) for data in c.datasets]
    averages = c.published_average if main and down else None
    # Column by column, and two of them where the paper's values stand beside ours.
    first = ["", *(labels if down else names)]
    columns = [first, ["the data", *means]] if c.data_row and down else [first]
    if c.data_row and not down:
        first.insert(1, "the data")
    if averages is not None:
        first.append("average")
        columns[1:] = [[*column, ""] for column in columns[1:]]
    for i, name in enumerate(names if down else labels):
        pairs = (
            [(d, c.methods[i]) for d in c.datasets]
            if down
            else [(c.datasets[i], m) for m in c.methods]
        )
        printed = [data.published.get(method.key) for data, method in pairs]
        paper = [mean_pm_std(*value) if value else NONE for value in printed]
        own = [by_key.get((data.key, method.key)) for data, method in pairs]
        ours = [_cell_text(e, c.digits, main and c.share and not down) if e else NONE for e in own]
        if c.data_row and not down:
            paper.insert(0, _known(c.datasets[i].published_data, 2))
            ours.insert(0, means[i])
        if averages is not None:
            whole = [e.mean for e in own if e and e.complete]
            paper.append(_known(averages.get(c.methods[i].key), c.digits))
            mean = sum(whole) / len(whole) if whole and len(whole) == len(own) else None
            ours.append(_known(mean, c.digits))
        beside = main and c.with_paper and (not down or any(printed))
        columns += [[f"{name}, paper", *paper], ["ours", *ours]] if beside else [[name, *ours]]
    header, *lines = zip(*columns)
    return markdown_table(header, lines)


def _known(value: float | None, digits: int) -> str:
    return NONE if value is None else fixed(value, digits)


def _cell_text(entry: Entry, digits: int, share: bool) -> str:
    if not entry.values:
        return "missing"
    if entry.missing:
        total = len(entry.values) + len(entry.missing)
        return f"{entry.text(digits)} (only {len(entry.values)} of {total} seeds)"
    return entry.text(digits) + (f" {interval(*_pooled(entry), digits)}" if share else "")


def _pooled(entry: Entry) -> tuple[float, float]:
    """Wilson's interval over the final test episodes of all seeds together."""
    won = [value for run in entry.runs.values() for value in run.raw["battle_won"]]
    return wilson(sum(won), len(won))


def legend(comparison: Comparison, entries: Sequence[Entry]) -> str:
    """What bold, asterisks and brackets mean, the footnotes, and what is missing."""
    lines = [
        f"Mean ± standard deviation (n − 1) over seeds {_range(comparison.seeds)}. Bold: the best "
        "mean of ours. An asterisk: Welch's t-test at 5 % finds no difference from the best."
    ]
    if any(len(entry.values) == 1 and entry.complete for entry in entries):
        lines.append("Where there is a single seed nothing is tested, and nothing has an asterisk.")
    if comparison.share and not comparison.datasets_down:
        lines.append(
            "In brackets Wilson's 95 % interval over the final test episodes of all seeds "
            "together; it knows nothing of the spread between seeds."
        )
    lines += [f"† {m.label}: {m.deviation}" for m in comparison.methods if m.deviation]
    missing = []
    for method in comparison.methods:
        own = [entry for entry in entries if entry.method is method]
        if nothing := [entry.data.label for entry in own if not entry.values]:
            missing.append(f"{method.label} on {', '.join(nothing)} (all seeds)")
        for entry in own:
            if entry.values and entry.missing:
                seeds = ", ".join(map(str, entry.missing))
                missing.append(f"{method.label} on {entry.data.label} (seeds {seeds})")
    if missing:
        lines.append(
            f"**Not finished, and so not compared**: {'; '.join(missing)}. The same command runs "
            "what is missing."
        )
    return "\n\n".join(lines)


def seed_table(comparison: Comparison, entries: Sequence[Entry]) -> str:
    header = ["dataset", "method", *(f"seed {seed}" for seed in comparison.seeds)]
    header += ["updates", "minutes a run", "commit"]
    digits = max(3, comparison.digits)
    lines = []
    for entry in entries:
        runs, values = list(entry.runs.values()), entry.values
        if runs:
            line = [entry.data.label, entry.method.label]
            line += [fixed(values[s], digits) if s in values else NONE for s in comparison.seeds]
            line.append(", ".join(dict.fromkeys(f"{run.updates:,}" for run in runs)))
            line.append(fixed(60 * sum(run.hours for run in runs) / len(runs), 1))
            lines.append([*line, commits(runs)])
    return markdown_table(header, lines, numbers=2) if lines else "No run is finished yet."


def origin(comparison: Comparison, entries: Sequence[Entry]) -> str:
    """How many runs, on which machines; and whether the runs of a dataset read the same data."""
    runs = [run for entry in entries for run in entry.runs.values()]
    if not runs:
        return ""
    name, machines = comparison.name, ", ".join(dict.fromkeys(run.machine for run in runs))
    lines = [
        f"{len(runs)} runs, {sum(run.hours for run in runs):.1f} hours of one core in all, on "
        f"{machines}. Per-episode values, configuration and command of every run: [{name}.json]"
        f"({name}.json); all values as a flat table: [{name}.csv]({name}.csv)."
    ]
    for data in comparison.datasets:
        own = [entry for entry in entries if entry.data is data]
        hashes = {str(run.dataset.get("hash")) for entry in own for run in entry.runs.values()}
        if len(hashes) > 1:
            lines.append(
                f"**{data.label}: the runs were not made on the same data** (content hashes "
                f"{', '.join(text[:12] for text in sorted(hashes))})."
            )
    return "\n\n".join(lines)


def _range(seeds: Sequence[int]) -> str:
    seeds = list(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def to_rows(comparison: Comparison, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each run."""
    metrics = [comparison.metric, *(metric for metric, _ in comparison.further)]
    return [
        {
            "dataset": entry.data.key,
            "method": entry.method.key,
            "seed": seed,
            **{metric: run.final[metric] for metric in metrics},
            "mean": entry.mean,
            "std": entry.std,
            "seeds_missing": len(entry.missing),
            "best": entry.best,
            "welch_p": entry.p,
            **dict(zip(("paper_mean", "paper_std"), entry.published or (None, None))),
            "test_episodes": len(run.raw.get("returns", [])),
            "updates": run.updates,
            "t_env": run.t_env,
            "hours": run.hours,
            "commit": run.commit,
            "dataset_hash": run.dataset.get("hash"),
        }
        for entry in entries
        for seed, run in entry.runs.items()
    ]


def to_record(comparison: Comparison, entries: Sequence[Entry]) -> dict[str, Any]:
    """Everything: every test of every run, and the raw values of every final test episode."""
    return {
        "name": comparison.name,
        "title": comparison.title,
        "caption": comparison.caption,
        "metric": comparison.metric,
        "seeds": list(comparison.seeds),
        "entries": [_entry_record(comparison, entry) for entry in entries],
    }


def _entry_record(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    runs = list(entry.runs.values())
    record: dict[str, Any] = {
        "dataset": entry.data.key,
        "method": entry.method.key,
        "label": entry.method.label,
        "deviation": entry.method.deviation or None,
        "paper": dict(zip(("mean", "std"), entry.published)) if entry.published else None,
        "values": entry.values,
        "missing_seeds": entry.missing,
        "mean": entry.mean,
        "std": entry.std,
        "best": entry.best,
        "welch_p_against_best": entry.p,
    }
    if comparison.share and runs:
        record["wilson_95_pooled"] = _pooled(entry)
    if runs:
        record["bootstrap_95_of_mean_over_seeds"] = bootstrap(list(entry.values.values()))
    record["runs"] = [
        provenance(run)
        | {"final": run.final, "raw": _compact(run)}
        | ({"tests": run.tests} if run.tests else {})  # tables of before lack them
        for run in runs
    ]
    return record


def _compact(run: Run) -> dict[str, list[float]]:
    """Whole numbers as such, others to six digits: half the file, and no information lost."""
    if run.folder.suffix == ".json":  # a table's file, in which they are so already
        return run.raw
    return {
        name: [int(v) if float(v).is_integer() else round(float(v), 6) for v in values]
        for name, values in run.raw.items()
    }
