"""The paper's Table 7: training time of CFCQL and of InSPO."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inspo.experiments.cells import Cell, Key
from inspo.experiments.comparison import cells_of, finished_runs
from inspo.experiments.records import Run, commits, provenance
from inspo.experiments.statistics import mean_std
from inspo.experiments.tables import (
    NONE,
    fixed,
    markdown_table,
    mean_pm_std,
    write_csv,
    write_json,
    write_text,
)
from inspo.utils.errors import UserError
from paper.options import Options, changed, check_maps
from paper.reader import comparison_of, read_file, simulator
from paper.starcraft import check_tested_in_the_game, is_the_game, prepare_starcraft
from paper.tables import failures, run_missing


def reproduce(options: Options) -> bool:
    """Run what is missing of Table 7, and write it; whether nothing failed."""
    on = options.on
    simulator(on)  # an unknown one is an error of --on
    content = read_file("table7", on)
    check_maps("Table 7", on, options.maps, content["maps"])
    maps = [m for m in content["maps"] if options.maps is None or m in options.maps]
    folder = options.results / "runs" / content["runs"]
    cells = changed(timed_cells(on, options.seeds, maps), options.changes)
    runs = finished_runs(cells, folder)
    missing = [cell for key, cell in cells.items() if key not in runs]
    if missing:
        prepare_starcraft(on, options, missing)
    report = run_missing(missing, options, folder, "table7")
    runs = finished_runs(cells, folder)
    if is_the_game(on):
        check_tested_in_the_game(runs.values())
    paths = write_times(on, runs, maps, options.results / content["files"])
    print(paths[0].read_text())
    print("written:", *paths, sep="\n  ")
    return not failures(report)


def timed_cells(on: str, seeds: int | None, maps: Sequence[str]) -> dict[Key, Cell]:
    """(map, algorithm, seed) -> cell; in StarCraft II those of Table 4."""
    comparison = comparison_of(
        "table7", read_file("table7", on) | {"maps": maps, "paper": {}}, seeds
    )
    map_of = {data.key: data.overrides["map_name"] for data in comparison.datasets}
    return {(map_of[key[0]], *key[1:]): cell for key, cell in cells_of(comparison).items()}


def training_hours(run: Run, steps: float) -> float:
    """Hours of training on so many steps, at the pace that the run logged, tests included.

    The pace is in `metrics.json`: updates per second, each over an equal share of the run. What
    comes before (making the data, fitting behaviour policies) is left out.
    """
    path = run.folder / "metrics.json"
    try:
        paces = json.loads(path.read_text(encoding="utf-8"))["updates_per_second"]["values"]
        seconds = [1 / pace for pace in paces]
        seconds_per_update = sum(seconds) / len(seconds)
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: expected updates_per_second, which runs log since they have a pace, found "
            "none that can be read. Move that run away, and it is made anew"
        ) from error
    if not (all(second > 0 for second in seconds) and run.t_env > 0):
        raise UserError(
            f"{path}: expected numbers above 0, found {paces} as updates_per_second in a run of "
            f"{run.t_env} steps. Move that run away, and it is made anew"
        )
    return steps * run.updates / run.t_env * seconds_per_update / 3600


def write_times(on: str, runs: Mapping[Key, Run], maps: Sequence[str], folder: Path) -> list[Path]:
    """`table7.md`, `.csv`, `.json` of what is finished. runs: (map, algorithm, seed) -> run."""
    content = read_file("table7", on)
    comparison = comparison_of("table7", content | {"paper": {}})
    hours = {key: training_hours(run, content["steps"]) for key, run in runs.items()}
    flat = [
        {"map": m, "algorithm": method.key, "seed": key[2], "hours": hours[key]}
        | {"updates": runs[key].updates, "t_env": runs[key].t_env, "commit": runs[key].commit}
        for m in maps
        for method in comparison.methods
        for key in runs
        if key[:2] == (m, method.key)
    ]
    labels = {method.key: method.label for method in comparison.methods}
    printed = content["paper"] if is_the_game(on) else None
    origin = ""
    if runs:
        machines = ", ".join(dict.fromkeys(run.machine for run in runs.values()))
        origin = f"{len(runs)} runs on {machines}, commit {commits(list(runs.values()))}."
    text = [
        f"# {comparison.title}",
        comparison.caption,
        _hours_table(labels, maps, flat, printed),
        "Mean ± standard deviation over seeds. ratio: InSPO's time in CFCQL's.",
        origin,
    ]
    stem = folder / "table7"
    record = {"hours": flat, "runs": [provenance(run) for run in runs.values()]}
    return [
        write_text(f"{stem}.md", "\n\n".join(part for part in text if part) + "\n"),
        write_csv(f"{stem}.csv", flat),
        write_json(f"{stem}.json", record),
    ]


def _hours_table(
    labels: Mapping[str, str],
    maps: Sequence[str],
    flat: Sequence[Mapping[str, Any]],
    printed: Mapping[str, Mapping[str, float]] | None,
) -> str:
    """Maps down, algorithms across; printed: map -> algorithm -> the paper's hours."""
    header, rows = ["map"], []
    for name in [*labels.values(), "ratio"]:
        header += [f"{name}, paper", name] if printed else [name]
    for m in maps:
        row, means = [m], []
        for algorithm in labels:
            own = [run["hours"] for run in flat if (run["map"], run["algorithm"]) == (m, algorithm)]
            row += [f"{fixed(printed[m][algorithm])} h"] if printed else []
            row.append(mean_pm_std(*mean_std(own)) + " h" if own else "missing")
            means.append(sum(own) / len(own) if own else math.nan)
        if printed:
            row.append(fixed(printed[m]["inspo"] / printed[m]["cfcql"]))
        ratio = means[1] / means[0]
        row.append(NONE if math.isnan(ratio) else fixed(ratio))
        rows.append(row)
    return markdown_table(header, rows)
