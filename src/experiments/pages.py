"""A report's files: Markdown, CSV, figures (PNG, PDF), and marl-eval's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inspo.experiments.aggregates import Aggregates, Band, Interval
from inspo.experiments.entries import Entry
from inspo.experiments.plots import INK, MUTED, STYLE, Figure, colour, picture, plt
from inspo.experiments.records import Run
from inspo.experiments.selection import Selection, episodes_of, short_name, untested
from inspo.experiments.statistics import bootstrap
from inspo.experiments.tables import (
    NONE,
    fixed,
    interval,
    markdown_table,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)

Bands = Mapping[str, Mapping[str, Band]]  # task -> method -> learning curve
# What only some reports have.
OPTIONAL_FILES = (
    "aggregates.csv", "marl_eval.json",
    "learning_curves.png", "learning_curves.pdf",
    "performance_profiles.png", "performance_profiles.pdf",
)  # fmt: skip
TEXT_AS_IT_IS = {"text.parse_math": False}  # titles and methods may hold dollars


def write(
    out: Path, title: str, selection: Selection, aggregates: Aggregates, bands: Bands
) -> list[Path]:
    """All files of a report into the folder `out`; returns them, the Markdown first."""
    paths = [
        write_csv(out / "runs.csv", run_rows(selection)),
        write_csv(out / "cells.csv", cell_rows(selection)),
        write_csv(out / "curves.csv", curve_rows(bands)),
    ]
    pictures = draw_curves(out / "learning_curves", title, selection, bands)
    if aggregates.scores:
        paths.append(write_csv(out / "aggregates.csv", aggregate_rows(aggregates)))
        paths.append(write_json(out / "marl_eval.json", marl_eval(selection, aggregates)))
        pictures += draw_profiles(out / "performance_profiles", title, selection, aggregates)
    for path in {out / name for name in OPTIONAL_FILES} - {*paths, *pictures}:
        path.unlink(missing_ok=True)  # what an earlier report of other runs left in the folder
    page = write_text(out / "report.md", markdown(title, selection, aggregates, pictures))
    return [page, *paths, *pictures]


def markdown(
    title: str, selection: Selection, aggregates: Aggregates, pictures: Sequence[Path]
) -> str:
    runs = selection.runs
    counted = runs[runs.reason == ""]
    names = ", ".join(f"`{name}`" for name in sorted({str(c)[:10] for c in counted.commit}))
    parts = [
        f"# {title}",
        f"`{selection.metric}` of the final test: {len(counted)} of {len(runs)} training "
        f"runs under {', '.join(f'`{root.name}`' for root in selection.records.roots)} count, the "
        f"last checkpoint of each, never the best. {f'Commits: {names}.' if names else ''}",
        main_table(selection),
        LEGEND,
        attention(selection),
        "## Aggregates over tasks",
        *aggregate_parts(aggregates),
        "## Figures",
        "\n\n".join(f"![{p.stem}]({p.name})" for p in pictures if p.suffix == ".png"),
        SHADED,
        "## Files",
        FILES + (AGGREGATED_FILES if aggregates.scores else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


LEGEND = """\
Mean ± standard deviation (n − 1) over seeds. Bold: the best mean of the task. An asterisk: \
Welch's t-test at 5 % finds no difference from the best. Compared are cells with all of their \
task's seeds, or as many as --min-seeds asks for, and at least two: one seed cannot be tested, and \
where a cell has only one, bold is the best of the others."""
SHADED = """\
Shaded, at 95 %: the bootstrap interval of the mean over seeds (learning curves; for one seed the \
interval of its tests' episodes, if their number is recorded), of the share of runs (performance \
profiles)."""
FILES = """\
[runs.csv](runs.csv): every run, and whether it counts. [cells.csv](cells.csv): every mean. \
[curves.csv](curves.csv): the learning curves."""
AGGREGATED_FILES = """ \
[aggregates.csv](aggregates.csv): the tables above and the profiles. \
[marl_eval.json](marl_eval.json): the aggregated runs in marl-eval's format; as it wants equally \
many tests of every run, the surplus ones are left out there, evenly."""


def main_table(selection: Selection) -> str:
    """Methods down, tasks across."""
    tasks = [data.key for data in selection.tasks]
    lines = [
        [m.key, *(cell_text(selection.entries.get((m.key, t)), selection.digits) for t in tasks)]
        for m in selection.methods
    ]
    return markdown_table(["", *tasks], lines)


def cell_text(entry: Entry | None, digits: int) -> str:
    if entry is None:
        return NONE
    if entry.unequal:
        return "unequal runs"
    if not entry.values:
        return "no result"
    remarks = []
    if entry.missing or not entry.complete:
        n = len(entry.values)
        remarks.append(f"{n} of {n + len(entry.missing)} seeds")
    if untested(entry):
        remarks.append("not tested: one seed")
    return entry.text(digits) + (f" ({'; '.join(remarks)})" if remarks else "")


def attention(selection: Selection) -> str:
    """All that is incomplete or unequal."""
    notes = list(selection.notes)
    if others := selection.records.others:
        notes.append(f"{others} records are evaluations or collections, not training")
    if not notes:
        return "All runs are finished, of one configuration a cell, and with the same seeds."
    return "## Incomplete or unequal\n\n" + "\n".join(f"- {note}" for note in notes)


def aggregate_parts(aggregates: Aggregates) -> list[str]:
    parts = ["\n".join(f"- {note}" for note in aggregates.notes)]
    if not aggregates.scores:
        return parts
    methods = list(aggregates.scores)
    scale = "as they are"
    if aggregates.limits:
        limits = ", ".join(f"{task} {interval(*ends)}" for task, ends in aggregates.limits.items())
        scale = f"scaled to 0 and 1 between the worst and the best run of each task ({limits})"
    names = list(aggregates.table[methods[0]])
    lines = [[m, *map(estimate, aggregates.table[m].values())] for m in methods]
    parts += [
        f"{len(aggregates.scores[methods[0]])} runs a task on {', '.join(aggregates.tasks)}; "
        f"scores {scale}. In brackets 95 % stratified bootstrap intervals (rliable).",
        markdown_table(["", *names], lines),
    ]
    if pairs := aggregates.improvement:
        lines = [
            [a, *(NONE if a == b else estimate(pairs[a, b]) for b in methods)] for a in methods
        ]
        parts += [
            "Probability of improvement: that a run of the row is better than one of the column, "
            "on the same task.",
            markdown_table(["", *methods], lines),
        ]
    return parts


def estimate(values: Interval) -> str:
    return f"{fixed(values[0], 3)} {interval(*values[1:], 3)}"


def run_rows(selection: Selection) -> list[dict[str, Any]]:
    table, metric = selection.runs, selection.metric
    return [
        {
            "method": method,
            "task": task,
            "seed": run.seed,
            "counts": reason or "yes",
            metric: run.final.get(metric),
            "test_episodes": len(run.raw.get("returns", [])) or None,
            "status": run.status,
            "updates": run.updates if run.finished else None,
            "t_env": run.t_env if run.finished else None,
            "t_max": run.config["t_max"],
            "commit": run.commit,
            "dataset_hash": run.dataset.get("hash"),
            "record": selection.records.place(run),
        }
        for run, method, task, reason in zip(table.run, table.method, table.task, table.reason)
    ]


def cell_rows(selection: Selection) -> list[dict[str, Any]]:
    lines = []
    for entry in (entry for data in selection.tasks for entry in selection.column(data)):
        known = entry.averaged and len(entry.values) > 1
        low, high = bootstrap([*entry.values.values()]) if known else (None, None)
        lines.append(
            {
                "task": entry.data.key,
                "method": entry.method.key,
                "metric": selection.metric,
                "seeds": " ".join(map(str, entry.values)),
                "missing_seeds": " ".join(map(str, entry.missing)),
                "mean": entry.mean,
                "std": entry.std,
                "low": low,
                "high": high,
                "best": entry.best,
                "welch_p": entry.p,
                "unequal": entry.unequal,
            }
        )
    return lines


def curve_rows(bands: Bands) -> list[dict[str, Any]]:
    return [
        {"task": task, "method": method, "updates": round(u, 1), "mean": m, "low": a, "high": b}
        for task, of_task in bands.items()
        for method, band in of_task.items()
        for u, m, a, b in zip(*(values.tolist() for values in band))
    ]  # fmt: skip


def aggregate_rows(aggregates: Aggregates) -> list[dict[str, Any]]:
    keys = ("what", "method", "against", "threshold", "estimate", "low", "high")
    lines: list[tuple[Any, ...]] = []
    for method, statistics in aggregates.table.items():
        lines += [(name, method, None, None, *values) for name, values in statistics.items()]
    for (first, second), values in aggregates.improvement.items():
        lines.append(("probability of improvement", first, second, None, *values))
    for method, (profile, band) in aggregates.profiles.items():
        columns = np.stack([aggregates.thresholds, profile, *band], axis=1).tolist()
        lines += [("performance profile", method, None, round(t, 6), *rest) for t, *rest in columns]
    return [dict(zip(keys, line)) for line in lines]


def marl_eval(selection: Selection, aggregates: Aggregates) -> dict[str, Any]:
    """environment -> task -> method -> seed -> steps, of the methods and tasks aggregated.

    Its tools refuse runs with different numbers of tests, so every run of an environment has as
    many as the one with the fewest: evenly chosen, first and last among them.
    """
    count = len(next(iter(aggregates.scores.values())))
    chosen = {
        (task, method): list(selection.entries[method, task].runs.values())[:count]
        for task in aggregates.tasks
        for method in aggregates.scores
    }
    lengths = [(run.environment, len(run.tests)) for runs in chosen.values() for run in runs]
    fewest = dict(sorted(lengths, reverse=True))
    content: dict[str, Any] = {}
    for (task, method), runs in chosen.items():
        n_steps = fewest[runs[0].environment]
        of_task = content.setdefault(runs[0].environment, {}).setdefault(task, {})
        of_task[method] = {f"seed_{run.seed}": marl_eval_run(run, n_steps) for run in runs}
    return content


def marl_eval_run(run: Run, n_steps: int) -> dict[str, Any]:
    """`step_K` with the means of a test, then `absolute_metrics` with the final one's episodes."""
    shared = set.intersection(set(run.final), *map(set, run.tests))  # what every test has
    metrics = [k for k in run.final if k in shared and k[:5] == "test_" and k[-4:] != "_std"]
    places = np.linspace(0, len(run.tests) - 1, n_steps).round().astype(int)
    steps: dict[str, Any] = {}
    for number, test in enumerate(run.tests[place] for place in places):
        steps[f"step_{number}"] = {"step_count": int(test["t_env"])} | {
            short_name(key): [test[key]] for key in metrics
        }
    steps["absolute_metrics"] = {
        short_name(key): episodes_of(run, key) or [run.final[key]] for key in metrics
    }
    return steps


def draw_curves(stem: Path, title: str, selection: Selection, bands: Bands) -> list[Path]:
    """A panel for each task, three in a row."""
    if not bands:
        return []
    scale, unit = (100.0, "%") if selection.share else (1.0, "")
    name = short_name(selection.metric).replace("_", " ")
    across = min(3, len(bands))
    down = math.ceil(len(bands) / across)
    with plt.rc_context(STYLE | TEXT_AS_IT_IS):
        size = (4.6 * across + 1, 3.5 * down + 0.8)
        figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
        handles: dict[str, Any] = {}
        for ax in axes.flat[len(bands) :]:
            ax.set_axis_off()
        for ax, (task, of_task) in zip(axes.flat, bands.items()):
            for method, band in of_task.items():
                ink = shade(selection, method)
                (line,) = ax.plot(band.updates, band.mean * scale, **ink)
                ends = band.low * scale, band.high * scale
                ax.fill_between(band.updates, *ends, color=ink["color"], alpha=0.18, lw=0)
                handles.setdefault(method, line)
            ax.set(title=task, xlabel="gradient updates", ylabel=f"{name} {unit}".strip())
            ax.set_xlim(left=0)
            if selection.share:
                ax.set_ylim(-2, 102)
        return finish(figure, stem, title, handles)


def draw_profiles(
    stem: Path, title: str, selection: Selection, aggregates: Aggregates
) -> list[Path]:
    with plt.rc_context(STYLE | TEXT_AS_IT_IS):
        figure, ax = plt.subplots(figsize=(6.6, 4.4))
        handles = {}
        x = aggregates.thresholds
        for method, (profile, (low, high)) in aggregates.profiles.items():
            ink = shade(selection, method)
            (handles[method],) = ax.plot(x, profile, drawstyle="steps", **ink)
            ax.fill_between(x, low, high, color=ink["color"], alpha=0.18, lw=0, step="pre")
        scaled = " (scaled by task)" if aggregates.limits else ""
        ax.set(xlabel=f"score{scaled}", ylabel="share of runs above it", ylim=(-0.02, 1.02))
        return finish(figure, stem, f"{title}: performance profiles", handles)


def shade(selection: Selection, method: str) -> dict[str, Any]:
    """A method's colour is its algorithm's; several of one algorithm differ by their dashes."""
    algorithms = {m.key: m.algorithm for m in selection.methods}
    siblings = [key for key, name in algorithms.items() if name == algorithms[method]]
    dashes = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2))]
    return {
        "color": colour(algorithms[method]),
        "ls": dashes[siblings.index(method) % len(dashes)],
        "zorder": 3 if algorithms[method] == "inspo" else 2,
    }


def finish(figure: Figure, stem: Path, title: str, handles: Mapping[str, Any]) -> list[Path]:
    """Title and legend, then the figure as PNG and PDF, each in one move."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower left", ncols=4, labelcolor=MUTED
    )
    kinds = ("png", "pdf")
    paths = [write_bytes(stem.with_suffix(f".{kind}"), picture(figure, kind)) for kind in kinds]
    plt.close(figure)
    return paths
