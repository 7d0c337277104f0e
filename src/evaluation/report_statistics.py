"""Aggregates over tasks as Agarwal et al. (2021) recommend them, by rliable; learning curves.

Scores are matrices `[runs, tasks]`. Intervals are percentile bootstraps at 95 %, stratified by
task: the runs of each task are drawn again among themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from inspo.evaluation.report_records import RETURN_METRICS, Cell, Sorted, is_number
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
    scores: dict[str, np.ndarray]
    limits: dict[str, tuple[float, float]]
    notes: list[str]
    table: dict[str, dict[str, Interval]] = field(default_factory=dict)  # method -> statistic
    improvement: dict[tuple[str, str], Interval] = field(default_factory=dict)  # P(first > second)
    thresholds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    profiles: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    # method -> (share of runs above each threshold `[K]`, its interval `[2, K]`)


def aggregate(found: Sorted, normalise: str, reps: int) -> Aggregates:
    """Interquartile means and the like, performance profiles and probabilities of improvement."""
    result = comparable(found, normalise)
    if not result.scores:
        return result
    silence_third_parties()
    from rliable import library, metrics  # it takes seconds, and the help need not wait for it

    functions = {
        "IQM": metrics.aggregate_iqm,
        "median": metrics.aggregate_median,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    wanted = STATISTICS if result.limits or found.share else STATISTICS[:3]

    def statistics(scores: np.ndarray) -> np.ndarray:
        return np.array([functions[name](scores) for name in wanted])

    with seeded(0):
        points, intervals = library.get_interval_estimates(result.scores, statistics, reps=reps)
        for method in result.scores:
            rows = zip(wanted, points[method], *intervals[method])
            result.table[method] = {
                name: (float(p), float(low), float(high)) for name, p, low, high in rows
            }
        result.thresholds = thresholds(result.scores)
        profiles, bands = library.create_performance_profile(
            result.scores, result.thresholds, reps=reps
        )
        result.profiles = {m: (profiles[m], bands[m]) for m in result.scores}
        pairs = {
            (a, b): [result.scores[a], result.scores[b]]
            for a in result.scores
            for b in result.scores
            if a < b
        }
        if pairs:
            points, intervals = library.get_interval_estimates(
                pairs, lambda x, y: np.array([improvement(x, y)]), reps=reps
            )
        for a, b in pairs:
            point, (low, high) = float(points[a, b][0]), map(float, intervals[a, b][:, 0])
            result.improvement[a, b] = (point, low, high)
            result.improvement[b, a] = (1 - point, 1 - high, 1 - low)
    return result


def comparable(found: Sorted, normalise: str) -> Aggregates:
    """The methods and tasks of which all cells are complete, as matrices; the rest is named."""
    result = Aggregates([], {}, {}, [])
    methods = [m for m in found.methods if all((m, t) in found.cells for t in found.tasks)]
    partial = [m for m in found.methods if m not in methods]
    if partial:
        result.notes.append(f"left out, as they have no runs on some task: {', '.join(partial)}")

    def whole(task: str) -> bool:
        return all(found.cells[m, task].complete for m in methods)

    differing = [f"{task}, {keys}" for task, keys in found.incomparable.items()]
    if differing:
        result.notes.append(f"left out, as the methods' runs differ there: {' | '.join(differing)}")
    alike = [task for task in found.tasks if task not in found.incomparable]
    result.tasks = [task for task in alike if methods and whole(task)]
    unfinished = [task for task in alike if task not in result.tasks]
    if unfinished:
        result.notes.append(
            "left out, as not every method has averaged values of all seeds there: "
            + ", ".join(unfinished)
        )
    cells = {m: [found.cells[m, task] for task in result.tasks] for m in methods}
    if not result.tasks or not methods:
        result.notes.append("no task is complete for all methods: no aggregates")
        return result
    count = min(len(cell.values) for row in cells.values() for cell in row)
    if count < 2:
        result.notes.append("a single seed has no spread: no aggregates")
        return result
    cut = [c for row in cells.values() for c in row if len(c.values) > count]
    if cut:
        where = ", ".join(f"{c.method} on {c.task} ({len(c.values)})" for c in cut)
        result.notes.append(f"of these, which have more seeds, the first {count} alone: {where}")
    scores = {m: np.array([c.sorted_values()[:count] for c in row]).T for m, row in cells.items()}
    scale = normalise == "min-max" or (normalise == "auto" and found.metric in RETURN_METRICS)
    if scale:
        everything = np.concatenate(list(scores.values()))
        low, high = everything.min(axis=0), everything.max(axis=0)
        flat = high - low < 1e-9
        if flat.any():
            same = [task for task, is_flat in zip(result.tasks, flat) if is_flat]
            result.notes.append(f"left out, as all runs have the same value: {', '.join(same)}")
            if flat.all():
                return result
        keep = ~flat
        result.tasks = [task for task, kept in zip(result.tasks, keep) if kept]
        low, high = low[keep], high[keep]
        scores = {m: (x[:, keep] - low) / (high - low) for m, x in scores.items()}
        limits = zip(result.tasks, low.tolist(), high.tolist())
        result.limits = {task: (bottom, top) for task, bottom, top in limits}
    result.scores = scores
    return result


def improvement(first: np.ndarray, second: np.ndarray) -> float:
    """P(first > second) of runs of the same task, ties by half, mean over tasks.

    Both `[runs, tasks]`. The Mann-Whitney statistic of every task at once: rliable's own asks scipy
    task by task, far too slowly for a bootstrap.
    """
    return float(np.sign(first[:, None] - second[None]).mean() / 2 + 0.5)


def thresholds(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """101 thresholds from the smallest to the largest score."""
    everything = np.concatenate([matrix.ravel() for matrix in scores.values()])
    return np.linspace(everything.min(), everything.max(), 101)


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


# --------------------------------------------------------------------------------------------------
# Learning curves


@dataclass(frozen=True)
class Band:
    """A learning curve: mean over seeds with its 95 % bootstrap interval, all `[K]`.

    The interval of one seed is not known: nan.
    """

    updates: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_curve(cell: Cell, metric: str, reps: int) -> Band:
    """Over gradient updates, at the tests of the run with the fewest; others are interpolated.

    Tests in which the metric is no number are left out (the report names them).
    """
    curves = []
    for seed in sorted(cell.runs):
        run = cell.runs[seed]
        tests = [test for test in run.tests if is_number(test.get(metric))]
        per_step = run.result["updates"] / max(run.result["t_env"], 1)
        updates = np.array([test["t_env"] * per_step for test in tests])
        curves.append((updates, np.array([test[metric] for test in tests], dtype=float)))
    grid = min((updates for updates, _ in curves), key=len)
    values = np.stack([np.interp(grid, updates, values) for updates, values in curves])  # [n, K]
    if len(values) < 2:
        unknown = np.full(len(grid), np.nan)
        return Band(grid, values[0], unknown, unknown)
    drawn = np.random.default_rng(0).integers(len(values), size=(reps, len(values)))
    means = values[drawn].mean(axis=1)  # [reps, K]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return Band(grid, values.mean(axis=0), low, high)


def curves(found: Sorted, reps: int) -> dict[str, dict[str, Band]]:
    """task -> method -> curve, of the cells that may be averaged."""
    return {
        task: {c.method: learning_curve(c, found.metric, reps) for c in averaged(found, task)}
        for task in found.tasks
        if averaged(found, task)
    }


def averaged(found: Sorted, task: str) -> Sequence[Cell]:
    return [cell for cell in found.column(task) if cell.averaged]
