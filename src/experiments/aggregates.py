"""Aggregates over tasks as Agarwal et al. (2021) recommend them, by rliable; learning curves.

Scores are matrices `[runs, tasks]`. Intervals are percentile bootstraps at 95 %, stratified by
task: the runs of each task are drawn again among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from inspo.experiments.entries import Entry
from inspo.experiments.records import is_number
from inspo.experiments.selection import RETURN_METRICS, Selection
from inspo.experiments.statistics import sampling_interval
from inspo.utils.quiet import silence_third_parties

STATISTICS = ("IQM", "median", "mean", "optimality gap")
Interval = tuple[float, float, float]  # estimate, lower and upper end


@dataclass
class Aggregates:
    """Over `tasks`, of `scores`: method -> `[runs, tasks]`, between 0 and 1 if normalised.

    notes: what was left out, and why. limits: task -> what counted as 0 and as 1; empty if the
    scores are the values themselves.
    """

    tasks: list[str]
    notes: list[str]
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    table: dict[str, dict[str, Interval]] = field(default_factory=dict)  # method -> statistic
    improvement: dict[tuple[str, str], Interval] = field(default_factory=dict)  # P(first > second)
    thresholds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    profiles: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    # method -> (share of runs above each threshold `[K]`, its interval `[2, K]`)


def aggregate(selection: Selection, normalise: str, reps: int) -> Aggregates:
    """Interquartile means and the like, performance profiles and probabilities of improvement.

    normalise: none, min-max, or auto (min-max for returns). reps: resamples of the bootstraps.
    """
    result = comparable(selection)
    returns = selection.metric in RETURN_METRICS
    if result.scores and (normalise == "min-max" or (normalise == "auto" and returns)):
        _scale(result)
    scores = result.scores
    if not scores:
        return result
    silence_third_parties()
    from rliable import library, metrics  # it takes seconds, and the help need not wait for it

    functions = [
        metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean,
        metrics.aggregate_optimality_gap,
    ]  # fmt: skip
    n = len(STATISTICS) if result.limits or selection.share else 3  # the gap is one of shares

    with seeded(0):
        points, intervals = library.get_interval_estimates(
            scores, lambda x: np.array([function(x) for function in functions[:n]]), reps=reps
        )
        for method in scores:
            triples = np.stack([points[method], *intervals[method]]).T.tolist()
            result.table[method] = dict(zip(STATISTICS, map(tuple, triples)))
        everything = np.concatenate([matrix.ravel() for matrix in scores.values()])
        result.thresholds = np.linspace(everything.min(), everything.max(), 101)
        profiles, bands = library.create_performance_profile(scores, result.thresholds, reps=reps)
        result.profiles = {method: (profiles[method], bands[method]) for method in scores}
        pairs = {(a, b): [scores[a], scores[b]] for a in scores for b in scores if a < b}
        if pairs:
            points, intervals = library.get_interval_estimates(
                pairs, lambda x, y: np.array([improvement(x, y)]), reps=reps
            )
        for a, b in pairs:
            point, (low, high) = float(points[a, b][0]), map(float, intervals[a, b][:, 0])
            result.improvement[a, b] = (point, low, high)
            result.improvement[b, a] = (1 - point, 1 - high, 1 - low)
    return result


def comparable(selection: Selection) -> Aggregates:
    """The methods and tasks of which all cells are complete, as matrices; the rest is named."""
    entries, tasks = selection.entries, [data.key for data in selection.tasks]
    everyone = [method.key for method in selection.methods]
    methods = [m for m in everyone if all((m, task) in entries for task in tasks)]
    alike = [task for task in tasks if task not in selection.incomparable]
    whole = [t for t in alike if methods and all(entries[m, t].complete for m in methods)]
    differing = [f"{task}, {keys}" for task, keys in selection.incomparable.items()]
    reasons = {
        "as they have no runs on some task: ": ", ".join(m for m in everyone if m not in methods),
        "as the methods' runs differ there: ": " | ".join(differing),
        "as not every method has averaged values of all seeds there: ": ", ".join(
            task for task in alike if task not in whole
        ),
    }
    result = Aggregates(whole, [f"left out, {r}{names}" for r, names in reasons.items() if names])
    if not whole:
        result.notes.append("no task is complete for all methods: no aggregates")
        return result
    cells = {m: [entries[m, task] for task in whole] for m in methods}
    count = min(len(entry.values) for row in cells.values() for entry in row)
    if count < 2:
        result.notes.append("a single seed has no spread: no aggregates")
        return result
    cut = [
        f"{e.method.key} on {e.data.key} ({len(e.values)})"
        for row in cells.values() for e in row if len(e.values) > count
    ]  # fmt: skip
    if cut:
        result.notes.append(
            f"of these, which have more seeds, the first {count} alone: {', '.join(cut)}"
        )
    for method, row in cells.items():
        result.scores[method] = np.array([list(e.values.values())[:count] for e in row]).T
    return result


def _scale(result: Aggregates) -> None:
    """Scale each task between its worst and its best run; tasks without a difference go."""
    everything = np.concatenate(list(result.scores.values()))
    low, high = everything.min(axis=0), everything.max(axis=0)
    keep = high - low >= 1e-9
    if not keep.all():
        same = [task for task, kept in zip(result.tasks, keep) if not kept]
        result.notes.append(f"left out, as all runs have the same value: {', '.join(same)}")
    if not keep.any():
        result.scores = {}
        return
    result.tasks = [task for task, kept in zip(result.tasks, keep) if kept]
    low, high = low[keep], high[keep]
    result.scores = {m: (x[:, keep] - low) / (high - low) for m, x in result.scores.items()}
    result.limits = dict(zip(result.tasks, zip(low.tolist(), high.tolist())))


def improvement(first: np.ndarray, second: np.ndarray) -> float:
    """P(first > second) of runs of the same task, ties by half, mean over tasks.

    Both `[runs, tasks]`. The Mann-Whitney statistic of every task at once: rliable's own asks scipy
    task by task, far too slowly for a bootstrap.
    """
    return float(np.sign(first[:, None] - second[None]).mean() / 2 + 0.5)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same intervals every time. rliable 1.2.0 draws from numpy's global stream, whatever
    `random_state` it is given; the stream is put back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


class Band(NamedTuple):
    """A learning curve: mean over seeds with its 95 % bootstrap interval, all `[K]`.

    The interval of one seed is that of its tests' episodes; nan where it is not known.
    """

    updates: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_curve(entry: Entry, metric: str, share: bool, reps: int) -> Band:
    """Over gradient updates, at the tests of the run with the fewest; others are interpolated.

    Tests in which the metric is no number are left out (the report names them).
    """
    curves, ends = [], []
    for run in entry.runs.values():
        tests = [test for test in run.tests if is_number(test.get(metric))]
        steps, values = np.array([(test["t_env"], test[metric]) for test in tests], dtype=float).T
        curves.append((run.updates_at(steps), values))
        ends.append(np.array([sampling_interval(test, metric, share) for test in tests]).T)
    grid = min((updates for updates, _ in curves), key=len)
    values = np.stack([np.interp(grid, *curve) for curve in curves])  # [n, K]
    if len(values) == 1:
        return Band(grid, values[0], *ends[0])
    drawn = np.random.default_rng(0).integers(len(values), size=(reps, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    return Band(grid, values.mean(axis=0), low, high)


def curves_of(selection: Selection, reps: int) -> dict[str, dict[str, Band]]:
    """task -> method -> curve, of the cells that may be averaged."""
    curves: dict[str, dict[str, Band]] = {}
    for data in selection.tasks:
        for entry in filter(lambda entry: entry.averaged, selection.column(data)):
            band = learning_curve(entry, selection.metric, selection.share, reps)
            curves.setdefault(data.key, {})[entry.method.key] = band
    return curves
