"""The main job: InSPO and BC on SMAX 2s3z, the closing table and the learning curve."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inspo.experiments.cells import Cell
from inspo.experiments.cells import finished_run_of as finished
from inspo.experiments.plots import MUTED, STYLE, colour, plt, save
from inspo.experiments.records import Run
from inspo.experiments.statistics import bootstrap, normal_interval, sampling_interval, wilson
from inspo.experiments.tables import fixed, interval, write_json
from inspo.utils.command_line import text_table
from inspo.utils.errors import UserError
from inspo.utils.settings import Settings
from paper.options import Options, changed, check_algorithms
from paper.reader import label
from paper.tables import run_missing

MAP = "2s3z"


def reproduce(options: Options) -> bool:
    """InSPO and BC on SMAX 2s3z medium, one seed each; whether all runs are finished."""
    folder = options.results / "main_job"
    quality = (options.qualities or ["medium"])[0]
    cells = {
        name: Cell(
            name if quality == "medium" else f"{quality}_{name}",
            name,
            "smax_offline",
            {"map_name": MAP, "quality": quality, "seed": 0},
        )
        for name in check_algorithms(options.algorithms or ["inspo", "bc"])
    }
    cells = changed(cells, options.changes)
    print(f"InSPO and BC on SMAX {MAP}, dataset {quality}, one seed each.")
    for name, cell in cells.items():
        print(f"  {name}: {budget(cell.config().values)}")
    print(
        f"The data are made first if they are missing. {options.jobs or 2} runs at a time; "
        "at most 12 minutes on 2 cores. Ctrl-C saves, the same command goes on."
    )
    report = run_missing(list(cells.values()), options, folder / "runs", "main job")
    runs = {k: run for k, cell in cells.items() if (run := finished(folder / "runs", cell))}
    if runs:
        write_results(folder, runs, quality)
        if report.reused and not report.finished:
            print(f"\nNothing was left to train. To train anew, remove {folder}.")
    for name in cells.keys() - runs.keys():
        print(f"missing: {name}, see the error above", file=sys.stderr)
    return len(runs) == len(cells)


def budget(values: Mapping[str, Any]) -> str:
    return (
        f"trains for {values['t_max']:,} steps of data, {values['batch_size']} episodes an update; "
        f"then {values['final_test_nepisode']} test episodes"
    )


def write_results(folder: Path, runs: Mapping[str, Run], quality: str) -> None:
    """Print the closing table; write it as `table.json`, and the learning curve."""
    facts = dataset_facts(next(iter(runs.values())))
    header, rows = closing_table(runs, quality, facts)
    print(f"\nSMAX {MAP} {quality}, last checkpoint, greedy, final test:\n")
    print(text_table(header, rows))
    write_json(
        folder / "table.json",
        {"rows": [dict(zip(header, row)) for row in rows], "data": facts}
        | {name: {"final": run.final, "raw": run.raw} for name, run in runs.items()},
    )
    curve = draw_curve(folder / "learning_curve.png", runs, quality, facts)
    print(f"\nlearning curve  {curve}\nnumbers         {folder / 'table.json'}")
    for name, run in runs.items():
        print(f"{label(name, name):<15} policy {run.model_folder}")
        print(f"{'':<15} record {run.folder}")


def closing_table(
    runs: Mapping[str, Run], quality: str, facts: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: win rate and return of each algorithm's final test, and of the data."""
    header = ["", "win rate", "95 % interval", "return", "95 % interval ", "episodes"]
    rows = []
    for name, run in runs.items():
        won, returns = run.raw["battle_won"], run.raw["returns"]
        rows.append(
            [
                label(name, name),
                fixed(sum(won) / len(won), 3),
                interval(*wilson(sum(won), len(won)), 3),
                fixed(sum(returns) / len(returns)),
                interval(*bootstrap(returns)),
                str(len(returns)),
            ]
        )
    n, rate = facts["n_episodes"], facts["win_rate"]
    mean, std = facts["return_mean"], facts["return_std"]
    rows.append(
        [
            f"data ({quality})",
            "" if rate is None else fixed(rate, 3),
            "" if rate is None else interval(*wilson(rate * n, n), 3),
            fixed(mean),
            "" if std is None else interval(*normal_interval(mean, std, n)),
            str(n),
        ]
    )
    return header, rows


def dataset_facts(run: Run) -> dict[str, Any]:
    """Mean, spread and win rate of the data that a run was trained on.

    The spread comes from the file; without it (it was removed, or is another one by now) the run's
    own record says the rest.
    """
    from inspo.offline.collect import dataset_path
    from inspo.offline.formats.canonical import open_source, read_metadata

    known = run.dataset
    facts = {
        "n_episodes": known["episodes"],
        "return_mean": known["return_mean"],
        "return_std": None,
        "win_rate": known["win_rate"],
        "hash": known["hash"],
    }
    try:
        with open_source(dataset_path(Settings(run.config))) as source:
            metadata = read_metadata(source)
    except UserError:
        return facts
    if metadata is not None and metadata.content_hash == known["hash"]:
        facts["return_std"] = metadata.return_std
    return facts


# --------------------------------------------------------------------------------------------------
# The learning curve


@dataclass(frozen=True)
class Curve:
    """One algorithm's tests: values with the ends of their 95 % intervals, all `[K]`."""

    algorithm: str
    trained: np.ndarray  # the share of its training before each test, in %
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def draw_curve(path: Path, runs: Mapping[str, Run], quality: str, facts: Mapping[str, Any]) -> Path:
    """Win rate and return over training, each test with its interval, the final ones marked."""

    def curves(metric: str, share: bool) -> list[Curve]:
        result = []
        for name, run in runs.items():
            trained = [100 * test["t_env"] / max(run.t_env, 1) for test in run.tests]
            values = [test[metric] for test in run.tests]
            low, high = zip(*(sampling_interval(test, metric, share) for test in run.tests))
            result.append(Curve(name, *np.array([trained, values, low, high], dtype=float)))
        return result

    first = next(iter(runs.values()))
    updates = ", ".join(f"{label(name, name)} {run.updates:,}" for name, run in runs.items())
    data = f"data ({quality})"
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.2, 4.3))
        wins, returns = curves("test_battle_won_mean", True), curves("test_return_mean", False)
        _draw_panel(left, "Win rate", "battles won, %", wins, data, facts["win_rate"], 100.0)
        left.set_ylim(-2, 102)
        _draw_panel(right, "Return", "return of an episode", returns, data, facts["return_mean"])
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        title = f"Offline on SMAX {MAP}, {quality} data"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.supxlabel(
            f"Greedy tests of {first.config['test_nepisode']} episodes, the last (point) of "
            f"{len(first.raw['returns'])}, with the 95 % intervals of these episodes. Updates: "
            f"{updates}.",
            x=0.01, ha="left", fontsize=8, color=MUTED,
        )  # fmt: skip
        return save(figure, path)


def _draw_panel(
    ax: Axes,
    title: str,
    unit: str,
    curves: Sequence[Curve],
    data: str,
    level: float | None,
    scale: float = 1.0,
) -> None:
    """One axes. data: the label of the data's own mean, level."""
    if level is not None:
        ax.axhline(level * scale, color=colour("data"), ls=(0, (4, 3)), lw=1.6, label=data)
    for curve in curves:
        ink = colour(curve.algorithm)
        front = 3 if curve.algorithm == "inspo" else 2
        name = label(curve.algorithm, curve.algorithm)
        values, low, high = (x * scale for x in (curve.values, curve.low, curve.high))
        ax.fill_between(curve.trained, low, high, color=ink, alpha=0.18, lw=0, zorder=front)
        ax.plot(curve.trained, values, color=ink, label=name, zorder=front)
        ax.plot(curve.trained[-1:], values[-1:], "o", color=ink, ms=6, clip_on=False, zorder=front)
    ax.set_title(title)
    ax.set_xlabel("training done, %")
    ax.set_ylabel(unit)
    ax.set_xlim(0, 101)
