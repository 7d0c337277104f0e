"""Methods on datasets, several seeds each: the cells to run, the comparison, and its four files.

A comparison may be written at any time: what is missing is named and never averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from inspo.evaluation.grid import Cell, Result
from inspo.evaluation.statistics import bootstrap, mean_std, welch_p, wilson
from inspo.evaluation.tables import (
    commits,
    fixed,
    interval,
    machine,
    markdown_table,
    mean_pm_std,
    provenance,
    write_csv,
    write_json,
    write_text,
)
from inspo.utils.errors import UserError

LEVEL = 0.05  # of Welch's test
NONE = "–"


@dataclass(frozen=True)
class Method:
    """A row: an algorithm, or a variant of one.

    deviation: what it does otherwise than the paper, for a footnote. only: the datasets it is run
    on (all).
    """

    key: str
    algorithm: str
    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    deviation: str = ""
    only: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Data:
    """A column: a dataset. published: method -> (mean, std) as the paper prints it."""

    key: str
    label: str
    environment: str
    overrides: Mapping[str, Any]
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    published_data: float | None = None  # the data's own mean, as printed


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how it is written. metric: a key of the final test."""

    name: str
    title: str
    caption: str
    datasets: Sequence[Data]
    methods: Sequence[Method]
    seeds: Sequence[int]
    metric: str
    unit: str
    further: Sequence[tuple[str, str]] = ()  # (metric, title) of further tables
    digits: int = 2
    data_row: bool = False
    share: bool = False  # the metric is a share of episodes: Wilson's intervals, percent in the PNG
    with_paper: bool = True
    limits: tuple[float, float] | None = None
    datasets_down: bool = False  # many datasets: they stand in the rows, the methods across
    published_average: Mapping[str, float] | None = None  # method -> over all datasets, as printed
    picture: Callable[[Sequence[Entry], Path], Path] | None = None  # draws it; None: bars


Key = tuple[str, str, int]  # dataset, method, seed


def cells_of(comparison: Comparison) -> dict[Key, Cell]:
    """Every run of a comparison, seed by seed, so that a stop leaves whole seeds."""
    return {
        (data.key, method.key, seed): Cell(
            f"{data.key}/{method.key}/seed{seed}",
            method.algorithm,
            data.environment,
            {**data.overrides, **method.overrides, "seed": seed},
        )
        for seed in comparison.seeds
        for data in comparison.datasets
        for method in comparison.methods
        if method.only is None or data.key in method.only
    }


# --------------------------------------------------------------------------------------------------
# The numbers


@dataclass
class Entry:
    """A method on a dataset. runs: seed -> result, of the seeds that are finished."""

    data: Data
    method: Method
    runs: dict[int, Result]
    missing: list[int]
    values: list[float]
    mean: float = math.nan
    std: float = math.nan
    best: bool = False
    p: float = math.nan  # of Welch's test against the best one

    @property
    def complete(self) -> bool:
        return not self.missing and bool(self.values)

    @property
    def published(self) -> tuple[float, float] | None:
        return self.data.published.get(self.method.key)

    @property
    def as_good(self) -> bool:
        """Not the best, and no difference from it found."""
        return not self.best and self.p >= LEVEL


def compare(
    comparison: Comparison, results: Mapping[Key, Result], metric: str | None = None
) -> list[Entry]:
    """All entries; the best of a dataset is chosen among those with all of their seeds."""
    metric = metric or comparison.metric
    entries = []
    for data in comparison.datasets:
        column = []
        for method in comparison.methods:
            if method.only is not None and data.key not in method.only:
                continue
            runs = {
                seed: results[data.key, method.key, seed]
                for seed in comparison.seeds
                if (data.key, method.key, seed) in results
            }
            missing = [seed for seed in comparison.seeds if seed not in runs]
            values = [run.final[metric] for run in runs.values()]
            entry = Entry(data, method, runs, missing, values)
            if values:
                entry.mean, entry.std = mean_std(values)
            column.append(entry)
        _judge(column, comparison.digits)
        entries += column
    return entries


def _judge(column: Sequence[Entry], digits: int) -> None:
    """Mark the best of a column (all that print the same mean) and test the others against it."""
    complete = [entry for entry in column if entry.complete]
    if not complete:
        return
    top = max(complete, key=lambda entry: entry.mean)
    for entry in complete:
        entry.best = fixed(entry.mean, digits) == fixed(top.mean, digits)
        entry.p = 1.0 if entry is top else welch_p(entry.values, top.values)


def check_measured(comparison: Comparison, results: Iterable[Result]) -> None:
    """UserError for a result without a number under one of the metrics of the comparison."""
    for metric in (comparison.metric, *(metric for metric, _ in comparison.further)):
        for result in results:
            value = result.final.get(metric)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(
                    f"{result.run_folder}: expected a number under {metric} in the final test of "
                    f"{result.cell_id}, found {value}. Was it run without tests "
                    "(final_test_nepisode=0)? Move its folder away to run it anew"
                )


def data_mean(comparison: Comparison, entries: Sequence[Entry], key: str, metric: str):
    """The data's own mean (win rate or return) by the record of a run on them; None if unknown."""
    fact = "win_rate" if metric == "test_battle_won_mean" else "return_mean"
    for entry in entries:
        for run in entry.runs.values():
            if entry.data.key == key:
                return run.dataset.get(fact)
    return None


# --------------------------------------------------------------------------------------------------
# The files


def write(comparison: Comparison, results: Mapping[Key, Result], folder: Path) -> list[Path]:
    """`{folder}/{name}.md`, `.csv`, `.json` and `.png`, of what is finished."""
    entries = compare(comparison, results)
    stem = folder / comparison.name
    paths = [
        write_text(f"{stem}.md", to_markdown(comparison, results)),
        write_csv(f"{stem}.csv", to_rows(comparison, entries)),
        write_json(f"{stem}.json", to_record(comparison, entries)),
    ]
    if any(entry.values for entry in entries):
        picture = comparison.picture or partial(draw, comparison)
        paths.append(picture(entries, Path(f"{stem}.png")))
    return paths


def to_markdown(comparison: Comparison, results: Mapping[Key, Result]) -> str:
    entries = compare(comparison, results)
    parts = [f"# {comparison.title}", comparison.caption]
    parts.append(main_table(comparison, entries, comparison.metric))
    parts.append(legend(comparison, entries))
    for metric, title in comparison.further:
        parts += [
            f"## {title}",
            main_table(comparison, compare(comparison, results, metric), metric),
        ]
    parts += ["## Every seed", seed_table(comparison, entries)]
    parts.append(origin(comparison, entries))
    return "\n\n".join(part for part in parts if part) + "\n"


def main_table(comparison: Comparison, entries: Sequence[Entry], metric: str) -> str:
    """Methods down, datasets across; where the paper has numbers, its value beside ours."""
    if comparison.datasets_down:
        return _table_of_datasets(comparison, entries, metric)
    by_key = {(entry.data.key, entry.method.key): entry for entry in entries}
    share = metric == comparison.metric and comparison.share
    header = [""]
    for data in comparison.datasets:
        header += [f"{data.label}, paper", "ours"] if comparison.with_paper else [data.label]
    rows = []
    if comparison.data_row:
        row = ["the data"]
        for data in comparison.datasets:
            mean = data_mean(comparison, entries, data.key, metric)
            printed = data.published_data
            row += [NONE if printed is None else fixed(printed)] if comparison.with_paper else []
            row += [NONE if mean is None else fixed(mean, comparison.digits)]
        rows.append(row)
    for method in comparison.methods:
        row = [method.label + (" †" if method.deviation else "")]
        for data in comparison.datasets:
            entry = by_key.get((data.key, method.key))
            if comparison.with_paper:
                published = entry.published if entry else None
                row.append(mean_pm_std(*published) if published else NONE)
            row.append(_cell_text(entry, comparison.digits, share) if entry else NONE)
        rows.append(row)
    return markdown_table(header, rows)


def _table_of_datasets(comparison: Comparison, entries: Sequence[Entry], metric: str) -> str:
    """Datasets down, methods across, the paper's value left of ours where it has one."""
    by_key = {(entry.data.key, entry.method.key): entry for entry in entries}
    main = metric == comparison.metric
    with_paper = {
        method.key: main
        and comparison.with_paper
        and any(method.key in data.published for data in comparison.datasets)
        for method in comparison.methods
    }
    header = ["", *(["the data"] if comparison.data_row else [])]
    for method in comparison.methods:
        name = method.label + (" †" if method.deviation else "")
        header += [f"{name}, paper", "ours"] if with_paper[method.key] else [name]
    rows = []
    for data in comparison.datasets:
        row = [data.label]
        if comparison.data_row:
            mean = data_mean(comparison, entries, data.key, metric)
            row.append(NONE if mean is None else fixed(mean, comparison.digits))
        for method in comparison.methods:
            entry = by_key.get((data.key, method.key))
            if with_paper[method.key]:
                published = data.published.get(method.key)
                row.append(mean_pm_std(*published) if published else NONE)
            row.append(_cell_text(entry, comparison.digits, share=False) if entry else NONE)
        rows.append(row)
    if main and comparison.published_average is not None:
        rows.append(_average_row(comparison, entries, with_paper))
    return markdown_table(header, rows)


def _average_row(
    comparison: Comparison, entries: Sequence[Entry], with_paper: Mapping[str, bool]
) -> list[str]:
    """Over all datasets, of the methods that have all seeds of all of them."""
    row = ["average", *([""] if comparison.data_row else [])]
    for method in comparison.methods:
        own = [entry for entry in entries if entry.method is method]
        whole = len(own) == len(comparison.datasets) and all(entry.complete for entry in own)
        if with_paper[method.key]:
            printed = comparison.published_average.get(method.key)
            row.append(NONE if printed is None else fixed(printed, comparison.digits))
        mean = sum(entry.mean for entry in own) / len(own)
        row.append(fixed(mean, comparison.digits) if whole else NONE)
    return row


def _cell_text(entry: Entry, digits: int, share: bool) -> str:
    if not entry.values:
        return "missing"
    text = mean_pm_std(entry.mean, entry.std, digits)
    if entry.missing:
        total = len(entry.values) + len(entry.missing)
        return f"{text} (only {len(entry.values)} of {total} seeds)"
    if entry.best:
        text = f"**{text}**"
    elif entry.as_good:
        text += "\\*"
    return f"{text} {interval(*_pooled(entry), digits)}" if share else text


def _pooled(entry: Entry) -> tuple[float, float]:
    """Wilson's interval over the final test episodes of all seeds together."""
    won = [value for run in entry.runs.values() for value in run.raw["battle_won"]]
    return wilson(sum(won), len(won))


def legend(comparison: Comparison, entries: Sequence[Entry]) -> str:
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
    missing = _missing(comparison, entries)
    if missing:
        lines.append(
            "**Not finished, and so not compared**: " + "; ".join(missing)
            + ". The same command runs what is missing."
        )  # fmt: skip
    return "\n\n".join(lines)


def _missing(comparison: Comparison, entries: Sequence[Entry]) -> list[str]:
    """What is not finished, in words: methods of which a dataset lacks all seeds, or some."""
    words = []
    for method in comparison.methods:
        of_method = [e for e in entries if e.method is method]
        nothing = [e.data.label for e in of_method if not e.values]
        if nothing:
            words.append(f"{method.label} on {', '.join(nothing)} (all seeds)")
        words += [
            f"{method.label} on {e.data.label} (seeds {', '.join(map(str, e.missing))})"
            for e in of_method
            if e.values and e.missing
        ]
    return words


def seed_table(comparison: Comparison, entries: Sequence[Entry]) -> str:
    header = ["dataset", "method", *(f"seed {seed}" for seed in comparison.seeds)]
    header += ["updates", "minutes a run", "commit"]
    digits = max(3, comparison.digits)
    rows = []
    for entry in entries:
        runs = list(entry.runs.values())
        if not runs:
            continue
        of_seed = dict(zip(entry.runs, entry.values))
        rows.append(
            [
                entry.data.label,
                entry.method.label,
                *(fixed(of_seed[s], digits) if s in of_seed else NONE for s in comparison.seeds),
                ", ".join(dict.fromkeys(f"{run.updates:,}" for run in runs)),
                fixed(60 * sum(run.hours for run in runs) / len(runs), 1),
                commits(runs),
            ]
        )
    return markdown_table(header, rows, numbers=2) if rows else "No run is finished yet."


def origin(comparison: Comparison, entries: Sequence[Entry]) -> str:
    runs = [run for entry in entries for run in entry.runs.values()]
    if not runs:
        return ""
    machines = ", ".join(dict.fromkeys(machine(run.host) for run in runs))
    hours = sum(run.hours for run in runs)
    lines = [
        f"{len(runs)} runs, {hours:.1f} hours of one core in all, on {machines}. Per-episode "
        f"values, configuration and command of every run: [{comparison.name}.json]"
        f"({comparison.name}.json); all values as a flat table: [{comparison.name}.csv]"
        f"({comparison.name}.csv)."
    ]
    for data in comparison.datasets:
        hashes = {
            run.dataset.get("hash")
            for entry in entries
            for run in entry.runs.values()
            if entry.data.key == data.key
        }
        if len(hashes) > 1:
            lines.append(
                f"**{data.label}: the runs were not made on the same data** (content hashes "
                f"{', '.join(str(h)[:12] for h in sorted(map(str, hashes)))})."
            )
    return "\n\n".join(lines)


def to_rows(comparison: Comparison, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row for each run."""
    metrics = [comparison.metric, *(metric for metric, _ in comparison.further)]
    rows = []
    for entry in entries:
        paper_mean, paper_std = entry.published or ("", "")
        for seed, run in entry.runs.items():
            rows.append(
                {
                    "dataset": entry.data.key,
                    "method": entry.method.key,
                    "seed": seed,
                    **{metric: run.final[metric] for metric in metrics},
                    "mean": entry.mean,
                    "std": "" if math.isnan(entry.std) else entry.std,
                    "seeds_missing": len(entry.missing),
                    "best": entry.best,
                    "welch_p": "" if math.isnan(entry.p) else entry.p,
                    "paper_mean": paper_mean,
                    "paper_std": paper_std,
                    "test_episodes": len(run.raw.get("returns", [])),
                    "updates": run.updates,
                    "t_env": run.t_env,
                    "hours": round(run.hours, 4),
                    "commit": run.commit,
                    "dataset_hash": run.dataset.get("hash"),
                }
            )
    return rows


def to_record(comparison: Comparison, entries: Sequence[Entry]) -> dict[str, Any]:
    """Everything, the raw values of every test episode too."""
    return {
        "name": comparison.name,
        "title": comparison.title,
        "caption": comparison.caption,
        "metric": comparison.metric,
        "seeds": list(comparison.seeds),
        "entries": [_entry_record(comparison, entry) for entry in entries],
    }


def _entry_record(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    published = entry.published
    record: dict[str, Any] = {
        "dataset": entry.data.key,
        "method": entry.method.key,
        "label": entry.method.label,
        "deviation": entry.method.deviation or None,
        "paper": None if published is None else {"mean": published[0], "std": published[1]},
        "values": dict(zip(map(str, entry.runs), entry.values)),
        "missing_seeds": entry.missing,
        "mean": entry.mean,
        "std": entry.std,
        "best": entry.best,
        "welch_p_against_best": entry.p,
    }
    if comparison.share and entry.runs:
        record["wilson_95_pooled"] = _pooled(entry)
    if entry.runs:
        record["bootstrap_95_of_mean_over_seeds"] = bootstrap(entry.values)
    record["runs"] = [
        provenance(run) | {"final": run.final, "raw": {k: _compact(v) for k, v in run.raw.items()}}
        for run in entry.runs.values()
    ]
    return record


def _compact(values: Sequence[float]) -> list[float]:
    """Whole numbers as such, others to six digits: half the file, and no information lost."""
    return [int(v) if float(v).is_integer() else round(float(v), 6) for v in values]


def draw(comparison: Comparison, entries: Sequence[Entry], path: Path) -> Path:
    from inspo.evaluation import plots

    groups = {
        data.label: [
            plots.Bar(
                entry.method.label,
                entry.method.key,
                entry.values,
                entry.published[0] if entry.published and comparison.with_paper else None,
            )
            for entry in entries
            if entry.data is data
        ]
        for data in comparison.datasets
    }
    levels = {}
    if comparison.data_row:
        for data in comparison.datasets:
            mean = data_mean(comparison, entries, data.key, comparison.metric)
            if mean is not None:
                levels[data.label] = ("mean of the data", mean)
    return plots.bar_groups(
        path,
        comparison.title,
        groups,
        comparison.unit,
        levels=levels,
        limits=comparison.limits,
        percent=comparison.share,
    )


def _range(seeds: Sequence[int]) -> str:
    seeds = list(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
