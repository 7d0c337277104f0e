"""A report's files: Markdown, CSV, figures (PNG, PDF), and marl-eval's JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inspo.evaluation.plots import INK, MUTED, STYLE, colour, plt
from inspo.evaluation.report_records import Records, Run, Sorted
from inspo.evaluation.report_statistics import STATISTICS, Aggregates, Band
from inspo.evaluation.statistics import bootstrap
from inspo.evaluation.tables import (
    fixed,
    interval,
    markdown_table,
    mean_pm_std,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)
from inspo.utils.errors import UserError

NONE = "–"
# What only some reports have.
OPTIONAL_FILES = (
    "aggregates.csv", "marl_eval.json",
    "learning_curves.png", "learning_curves.pdf",
    "performance_profiles.png", "performance_profiles.pdf",
)  # fmt: skip
TEXT_AS_IT_IS = {"text.parse_math": False}  # titles and methods may hold dollars


def write_report(
    out: Path,
    title: str,
    roots: Sequence[Path],
    records: Records,
    found: Sorted,
    aggregates: Aggregates,
    bands: Mapping[str, Mapping[str, Band]],
    digits: int,
) -> list[Path]:
    """All files of a report into the folder `out`; returns them, the Markdown first."""
    paths = [
        write_csv(out / "runs.csv", run_rows(records, found)),
        write_csv(out / "cells.csv", cell_rows(found)),
        write_csv(out / "curves.csv", curve_rows(bands)),
    ]
    pictures = draw_curves(out / "learning_curves", title, found, bands)
    if aggregates.scores:
        paths.append(write_csv(out / "aggregates.csv", aggregate_rows(aggregates)))
        paths.append(write_json(out / "marl_eval.json", marl_eval(found, aggregates)))
        pictures += draw_profiles(out / "performance_profiles", title, found, aggregates)
    remove_others(out, {*paths, *pictures})
    page = markdown(title, roots, records, found, aggregates, digits, pictures)
    return [write_text(out / "report.md", page), *paths, *pictures]


def remove_others(out: Path, written: Container[Path]) -> None:
    """Remove what an earlier report of other runs left in the folder and this one does not have."""
    for name in OPTIONAL_FILES:
        path = out / name
        try:
            if path not in written:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot remove {path}, which is not of this report's runs: {error.strerror}. "
                "Remove it yourself, or name another folder with --out"
            ) from error


# --------------------------------------------------------------------------------------------------
# Markdown


def markdown(title, roots, records, found, aggregates, digits, pictures) -> str:
    counted = sum(1 for why in found.used.values() if not why)
    parts = [
        f"# {title}",
        f"`{found.metric}` of the final test: {counted} of {len(records.runs)} training runs "
        f"under {', '.join(f'`{root.name}`' for root in roots)} count, the last checkpoint of "
        "each, never the best. " + commits(records, found),
        main_table(found, digits),
        "Mean ± standard deviation (n − 1) over seeds. Bold: the best mean of the task. An "
        "asterisk: Welch's t-test at 5 % finds no difference from the best. Compared are cells "
        "with all of their task's seeds, or as many as --min-seeds asks for, and at least two: one "
        "seed cannot be tested, and where a cell has only one, bold is the best of the others.",
        attention(found, records),
        "## Aggregates over tasks",
        *aggregate_parts(found, aggregates),
        "## Figures",
        "\n\n".join(f"![{p.stem}]({p.name})" for p in pictures if p.suffix == ".png"),
        "Shaded: the 95 % bootstrap interval of the mean over seeds (learning curves; none for one "
        "seed), of the share of runs (performance profiles).",
        "## Files",
        "[runs.csv](runs.csv): every run, and whether it counts. [cells.csv](cells.csv): every "
        "mean. [curves.csv](curves.csv): the learning curves."
        + (
            " [aggregates.csv](aggregates.csv): the tables above and the profiles. "
            "[marl_eval.json](marl_eval.json): the aggregated runs in marl-eval's format; as it "
            "wants equally many tests of every run, the surplus ones are left out there, evenly."
            if aggregates.scores
            else ""
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main_table(found: Sorted, digits: int) -> str:
    """Methods down, tasks across."""
    rows = []
    for method in found.methods:
        row = [method]
        for task in found.tasks:
            row.append(cell_text(found.cells.get((method, task)), digits))
        rows.append(row)
    return markdown_table(["", *found.tasks], rows)


def cell_text(cell, digits: int) -> str:
    if cell is None:
        return NONE
    if cell.unequal:
        return "unequal runs"
    if not cell.values:
        return "no result"
    text = mean_pm_std(cell.mean, cell.std, digits)
    if cell.best:
        text = f"**{text}**"
    elif cell.as_good:
        text += "\\*"
    remarks = []
    if cell.missing or not cell.enough:
        remarks.append(f"{len(cell.values)} of {len(cell.values) + len(cell.missing)} seeds")
    if cell.untested:
        remarks.append("not tested: one seed")
    return text + (f" ({'; '.join(remarks)})" if remarks else "")


def attention(found: Sorted, records: Records) -> str:
    notes = list(found.notes)
    if records.others:
        notes.append(f"{records.others} records are evaluations or collections, not training")
    if not notes:
        return "All runs are finished, of one configuration a cell, and with the same seeds."
    return "## Incomplete or unequal\n\n" + "\n".join(f"- {note}" for note in notes)


def aggregate_parts(found: Sorted, aggregates: Aggregates) -> list[str]:
    parts = ["\n".join(f"- {note}" for note in aggregates.notes)]
    if not aggregates.scores:
        return parts
    runs = len(next(iter(aggregates.scores.values())))
    scale = "as they are"
    if aggregates.limits:
        limits = ", ".join(f"{task} {interval(*ends)}" for task, ends in aggregates.limits.items())
        scale = f"scaled to 0 and 1 between the worst and the best run of each task ({limits})"
    parts.append(
        f"{runs} runs a task on {', '.join(aggregates.tasks)}; scores {scale}. In brackets 95 % "
        "stratified bootstrap intervals (rliable)."
    )
    names = [name for name in STATISTICS if name in next(iter(aggregates.table.values()))]
    rows = [
        [method, *(estimate(values[name]) for name in names)]
        for method, values in aggregates.table.items()
    ]
    parts.append(markdown_table(["", *names], rows))
    if aggregates.improvement:
        methods = list(aggregates.scores)
        rows = [
            [
                a,
                *(NONE if a == b else estimate(aggregates.improvement[a, b]) for b in methods),
            ]
            for a in methods
        ]
        parts.append("Probability of improvement: that a run of the row is better than one of "
                     "the column, on the same task.")  # fmt: skip
        parts.append(markdown_table(["", *methods], rows))
    return parts


def estimate(values: tuple[float, float, float], digits: int = 3) -> str:
    return f"{fixed(values[0], digits)} {interval(*values[1:], digits)}"


def commits(records: Records, found: Sorted) -> str:
    names = {
        str(run.info.get("git_commit"))[:10] for run in records.runs if not found.used[run.folder]
    }
    return f"Commits: {', '.join(f'`{name}`' for name in sorted(names))}." if names else ""


# --------------------------------------------------------------------------------------------------
# CSV


def run_rows(records: Records, found: Sorted) -> list[dict[str, Any]]:
    place = {
        run.folder: (cell.method, cell.task)
        for cell in found.cells.values()
        for run in cell.runs.values()
    }
    rows = []
    for run in records.runs:
        method, task = place.get(run.folder, (run.config["name"], ""))
        rows.append(
            {
                "method": method,
                "task": task,
                "seed": run.seed,
                "counts": "yes" if not found.used[run.folder] else found.used[run.folder],
                found.metric: run.final.get(found.metric, ""),
                "test_episodes": len(run.raw("test_return_mean") or []) or "",
                "status": run.status,
                "updates": run.result.get("updates", ""),
                "t_env": run.result.get("t_env", ""),
                "t_max": run.config["t_max"],
                "commit": run.info.get("git_commit"),
                "dataset_hash": run.dataset_hash,
                "record": records.place(run),
            }
        )
    return rows


def cell_rows(found: Sorted) -> list[dict[str, Any]]:
    rows = []
    for task in found.tasks:
        for cell in found.column(task):
            known = cell.averaged and len(cell.values) > 1
            low, high = bootstrap(cell.sorted_values()) if known else ("", "")
            rows.append(
                {
                    "task": task,
                    "method": cell.method,
                    "metric": found.metric,
                    "seeds": " ".join(map(str, sorted(cell.values))),
                    "missing_seeds": " ".join(map(str, cell.missing)),
                    "mean": cell.mean if cell.averaged else "",
                    "std": "" if math.isnan(cell.std) else cell.std,
                    "low": low,
                    "high": high,
                    "best": cell.best,
                    "welch_p": "" if math.isnan(cell.p) else cell.p,
                    "unequal": cell.unequal,
                }
            )
    return rows


def curve_rows(bands: Mapping[str, Mapping[str, Band]]) -> list[dict[str, Any]]:
    return [
        {"task": task, "method": method, "updates": round(float(u), 1), "mean": float(m),
         "low": "" if math.isnan(low) else float(low),
         "high": "" if math.isnan(high) else float(high)}
        for task, of_task in bands.items()
        for method, band in of_task.items()
        for u, m, low, high in zip(band.updates, band.mean, band.low, band.high)
    ]  # fmt: skip


def aggregate_rows(aggregates: Aggregates) -> list[dict[str, Any]]:
    rows = [
        {"what": name, "method": method, "against": "", "threshold": "", "estimate": p,
         "low": low, "high": high}
        for method, values in aggregates.table.items()
        for name, (p, low, high) in values.items()
    ]  # fmt: skip
    rows += [
        {"what": "probability of improvement", "method": a, "against": b, "threshold": "",
         "estimate": p, "low": low, "high": high}
        for (a, b), (p, low, high) in aggregates.improvement.items()
    ]  # fmt: skip
    rows += [
        {"what": "performance profile", "method": method, "against": "",
         "threshold": round(float(t), 6), "estimate": float(p), "low": float(low),
         "high": float(high)}
        for method, (profile, band) in aggregates.profiles.items()
        for t, p, low, high in zip(aggregates.thresholds, profile, *band)
    ]  # fmt: skip
    return rows


# --------------------------------------------------------------------------------------------------
# marl-eval


def marl_eval(found: Sorted, aggregates: Aggregates) -> dict[str, Any]:
    """environment -> task -> method -> seed -> steps, of the methods and tasks aggregated.

    Its tools refuse runs with different numbers of tests, so every run of an environment has as
    many as the one with the fewest: evenly chosen, first and last among them.
    """
    count = len(next(iter(aggregates.scores.values())))
    chosen = {
        (method, task): [cell.runs[seed] for seed in sorted(cell.runs)[:count]]
        for task in aggregates.tasks
        for method in aggregates.scores
        for cell in [found.cells[method, task]]
    }
    fewest: dict[str, int] = {}
    for (_, task), runs in chosen.items():
        environment = found.environment[task]
        known = fewest.get(environment, 10**9)
        fewest[environment] = min(known, *(len(run.tests) for run in runs))
    content: dict[str, Any] = {}
    for (method, task), runs in chosen.items():
        environment = found.environment[task]
        of_task = content.setdefault(environment, {}).setdefault(task, {})
        of_task[method] = {
            f"seed_{run.seed}": marl_eval_run(run, fewest[environment]) for run in runs
        }
    return content


def marl_eval_run(run: Run, n_steps: int) -> dict[str, Any]:
    """`step_K` with the means of a test, then `absolute_metrics` with the final one's episodes."""
    places = np.linspace(0, len(run.tests) - 1, n_steps).round().astype(int)
    steps: dict[str, Any] = {}
    for number, place in enumerate(places):
        test = run.tests[place]
        steps[f"step_{number}"] = {"step_count": int(test["t_env"])} | {
            marl_eval_name(key): [test[key]] for key in metrics_of(run)
        }
    steps["absolute_metrics"] = {
        marl_eval_name(key): run.raw(key) or [run.final[key]] for key in metrics_of(run)
    }
    return steps


def metrics_of(run: Run) -> list[str]:
    """What every test of the run has, deviations left out."""
    return [
        key
        for key in run.final
        if key.startswith("test_")
        and not key.endswith("_std")
        and all(key in test for test in run.tests)
    ]


def marl_eval_name(key: str) -> str:
    return key.removeprefix("test_").removesuffix("_mean")


# --------------------------------------------------------------------------------------------------
# Figures


def draw_curves(
    stem: Path, title: str, found: Sorted, bands: Mapping[str, Mapping[str, Band]]
) -> list[Path]:
    """A panel for each task, three in a row."""
    if not bands:
        return []
    scale, unit = (100.0, "%") if found.share else (1.0, "")
    name = found.metric.removeprefix("test_").removesuffix("_mean").replace("_", " ")
    across = min(3, len(bands))
    down = math.ceil(len(bands) / across)
    with plt.rc_context(STYLE | TEXT_AS_IT_IS):
        figure, axes = plt.subplots(
            down, across, figsize=(4.6 * across + 1, 3.5 * down + 0.8), squeeze=False
        )
        handles: dict[str, Any] = {}
        for ax in axes.flat[len(bands) :]:
            ax.set_axis_off()
        for ax, (task, of_task) in zip(axes.flat, bands.items()):
            for method, band in of_task.items():
                ink = shade(found, method)
                (line,) = ax.plot(band.updates, band.mean * scale, **ink)
                ax.fill_between(
                    band.updates, band.low * scale, band.high * scale, color=ink["color"],
                    alpha=0.18, lw=0,
                )  # fmt: skip
                handles.setdefault(method, line)
            ax.set_title(task)
            ax.set_xlabel("gradient updates")
            ax.set_ylabel(f"{name} {unit}".strip())
            ax.set_xlim(left=0)
            if found.share:
                ax.set_ylim(-2, 102)
        return finish(figure, stem, title, handles)


def draw_profiles(stem: Path, title: str, found: Sorted, aggregates: Aggregates) -> list[Path]:
    with plt.rc_context(STYLE | TEXT_AS_IT_IS):
        figure, ax = plt.subplots(figsize=(6.6, 4.4))
        handles = {}
        for method, (profile, (low, high)) in aggregates.profiles.items():
            ink = shade(found, method)
            (handles[method],) = ax.plot(aggregates.thresholds, profile, drawstyle="steps", **ink)
            ax.fill_between(
                aggregates.thresholds, low, high, color=ink["color"], alpha=0.18, lw=0, step="pre"
            )
        ax.set_xlabel("score" + (" (scaled by task)" if aggregates.limits else ""))
        ax.set_ylabel("share of runs above it")
        ax.set_ylim(-0.02, 1.02)
        return finish(figure, stem, f"{title}: performance profiles", handles)


def shade(found: Sorted, method: str) -> dict[str, Any]:
    """A method's colour is its algorithm's; several of one algorithm differ by their dashes."""
    algorithm = found.algorithm[method]
    siblings = [m for m in found.methods if found.algorithm[m] == algorithm]
    dashes = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2))]
    place = siblings.index(method)
    zorder = 3 if algorithm == "inspo" else 2
    return {"color": colour(algorithm), "ls": dashes[place % len(dashes)], "zorder": zorder}


def finish(figure, stem: Path, title: str, handles: Mapping[str, Any]) -> list[Path]:
    """Title and legend, then the figure as PNG and PDF, each in one move."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower left", ncols=4, labelcolor=MUTED
    )
    paths = []
    # Without programs' names and dates: the same numbers give the same files.
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        out = io.BytesIO()
        figure.savefig(out, format=kind, facecolor="white", metadata=metadata)
        paths.append(write_bytes(stem.with_suffix(f".{kind}"), out.getvalue()))
    plt.close(figure)
    return paths
