"""Sacred's records as they lie -> runs in cells (a method on a task); what is odd is named.

A record is a folder with `run.json` and `config.json`, wherever it lies: under `sacred/`, in a cell
of the grid engine, copied from elsewhere. Nothing is averaged here, and nothing left out unsaid.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation import paper
from evaluation.grid import HARMLESS
from evaluation.statistics import mean_std, welch_p
from evaluation.tables import fixed
from utils.config import PATH_KEYS, flatten, map_label
from utils.errors import ConfigError, UserError, nearest

SKIPPED_FOLDERS = {"models", "tb_logs", "datasets"}  # large, and no records in them
NEEDED_KEYS = ("name", "seed", "env", "map_name", "t_max", "final_test_nepisode")
# In which runs must agree before their methods are compared with each other.
PROTOCOL = ("final_test_nepisode", "test_greedy", "test_epsilon")
LEVEL = 0.05  # of Welch's test
# The first that all finished runs have is reported, unless --metric names one.
METRICS = ("test_battle_won_mean", "test_expected_return", "test_return_mean")
RETURN_METRICS = METRICS[1:]


@dataclass(frozen=True)
class Run:
    """One record. `result` is what the run returned, empty unless it is finished."""

    folder: Path
    status: str
    started: str
    config: dict[str, Any]
    info: dict[str, Any]
    result: dict[str, Any]

    @property
    def finished(self) -> bool:
        return self.status == "COMPLETED"

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def final(self) -> dict[str, float]:
        """The final test; empty for a run without tests."""
        return self.result.get("final", {})

    @property
    def tests(self) -> list[dict[str, float]]:
        """All tests in order, the final one last.

        In records of before November 2026 that last one is Sacred's reference to `final`.
        """
        return [*self.result.get("tests", [])[:-1], *([self.final] if self.final else [])]

    @property
    def dataset_hash(self) -> str | None:
        return self.result.get("dataset", {}).get("hash")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted key -> value of all that decides about numbers, the seed left out."""
        settings = {}
        for key, value in flatten(self.config):
            if key == "dataset.path":
                value = Path(value).name if value else value
            elif key in PATH_KEYS or key in HARMLESS or key == "seed":
                continue
            settings[key] = value
        return settings

    @property
    def protocol(self) -> dict[str, Any]:
        """What methods on one task must have in common to be compared."""
        keys = {k: v for k, v in self.settings.items() if k in PROTOCOL or k[:9] == "env_args."}
        return keys | {
            "the dataset's hash": self.dataset_hash,
            "the simulator": self.result.get("simulator"),
        }

    def raw(self, metric: str) -> list[float] | None:
        """What the metric is the mean of: a value for each final test episode; None if unknown."""
        name = metric.removeprefix("test_").removesuffix("_mean")
        return self.result.get({"return": "returns", "ep_length": "lengths"}.get(name, name))


# --------------------------------------------------------------------------------------------------
# Reading


@dataclass
class Records:
    """What was found under the folder `base`: training runs, and what is none, in words."""

    base: Path
    runs: list[Run]
    unreadable: list[str]
    others: int  # evaluations and collections

    def place(self, run: Run) -> str:
        """Where a run's record lies, below `base`: reports are for other machines too."""
        return os.path.relpath(run.folder, self.base)


def read_records(roots: Sequence[Path]) -> Records:
    """All records under the folders, each once. UserError: none there, or of another version."""
    base = Path(os.path.commonpath([root.resolve() for root in roots]))
    found = Records(base, [], [], 0)
    folders = list(dict.fromkeys(f.resolve() for root in roots for f in record_folders(root)))
    for folder in folders:
        try:
            files = [_load(folder / f"{name}.json") for name in ("run", "config", "info")]
        except (OSError, ValueError) as error:
            found.unreadable.append(f"{os.path.relpath(folder, base)} ({type(error).__name__})")
            continue
        run = _run(folder, *files)
        if run.config.get("evaluate") or run.config.get("collect", {}).get("n_episodes"):
            found.others += 1
        else:
            found.runs.append(run)
    if not found.runs:
        raise UserError(
            f"{', '.join(map(str, roots))}: expected folders with run.json and config.json, as "
            f"training writes them under results/sacred; found {len(folders)}, and no training "
            "run among them. Name the folder that local_results_path or --results named."
        )
    found.runs.sort(key=lambda run: (run.started, str(run.folder)))
    return found


def record_folders(root: Path) -> Iterable[Path]:
    """Folders of records at or below `root`, in order of their names."""
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder with results, found none")
    for folder, children, files in os.walk(root):
        children[:] = sorted(name for name in children if name not in SKIPPED_FOLDERS)
        if "run.json" in files:
            yield Path(folder)


def _load(path: Path) -> Any:
    if path.name == "info.json" and not path.exists():  # a run that ended at once has none
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _run(folder: Path, run: Any, config: Any, info: Any) -> Run:
    """One checked record; UserError if another version, or another program, wrote it."""
    wrong = []
    if not isinstance(config, dict) or not isinstance(run, dict) or "status" not in run:
        wrong = ["status", "configuration"]
    else:
        wrong += [f"config.json: {key}" for key in NEEDED_KEYS if key not in config]
        result = run.get("result") if run["status"] == "COMPLETED" else {}
        trained = not config.get("evaluate") and not config.get("collect", {}).get("n_episodes")
        if run["status"] == "COMPLETED" and trained:
            wrong += _missing_of(result)
    if wrong:
        raise UserError(
            f"{folder}: a record of another version of this program, or of another one: expected "
            f"and not found: {', '.join(wrong)}. Name the folders of this version's runs alone, "
            "or move that one away."
        )
    return Run(folder, run["status"], run.get("start_time") or "", config, info, result or {})


def _missing_of(result: Any) -> list[str]:
    if not isinstance(result, dict):
        return ["run.json: result"]
    missing = [k for k in ("t_env", "updates") if not isinstance(result.get(k), int)]
    if "final" in result:
        tests = [result["final"], *(result.get("tests") or [None, None])[:-1]]
        if not all(isinstance(t, dict) and "t_env" in t for t in tests):
            missing.append("final, tests")
    return [f"run.json: {key}" for key in missing]


# --------------------------------------------------------------------------------------------------
# Sorting


@dataclass
class Cell:
    """A method on a task. values: seed -> the metric of the final test, of the runs that count.

    unequal: why they are not averaged; empty if they may be.
    """

    method: str
    task: str
    runs: dict[int, Run] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    unequal: str = ""
    enough: bool = False  # seeds to be compared
    mean: float = math.nan
    std: float = math.nan
    best: bool = False
    p: float = math.nan  # of Welch's test against the best

    @property
    def averaged(self) -> bool:
        return bool(self.values) and not self.unequal

    @property
    def complete(self) -> bool:
        return self.averaged and self.enough

    @property
    def as_good(self) -> bool:
        """Not the best, and no difference from it found."""
        return not self.best and self.p >= LEVEL

    def sorted_values(self) -> list[float]:
        return [self.values[seed] for seed in sorted(self.values)]


@dataclass
class Sorted:
    """What a report is made of. used: folder of each run -> "" if it counts, else why not."""

    metric: str
    methods: list[str]  # in the order of the tables
    algorithm: dict[str, str]  # method -> its algorithm's name, for its colour
    tasks: list[str]
    environment: dict[str, str]  # task -> the simulator's name
    cells: dict[tuple[str, str], Cell]  # method, task
    notes: list[str]  # everything that a reader must know before believing the tables
    used: dict[Path, str]
    share: bool  # the metric is a share of episodes, between 0 and 1

    def column(self, task: str) -> list[Cell]:
        return [self.cells[m, task] for m in self.methods if (m, task) in self.cells]


def sort_runs(
    records: Records,
    group_by: Sequence[str] = ("name", "label"),
    metric: str | None = None,
    min_seeds: int | None = None,
    digits: int = 2,
) -> Sorted:
    """Runs into cells; the best of each task, tested against the others.

    group_by: keys of the configuration whose values tell methods apart. min_seeds: so many seeds
    are enough to compare; None: all those that any method has on the task.
    """
    runs = records.runs
    check_keys(runs, group_by)
    metric = choose_metric(runs, metric)
    methods, tasks = method_names(runs, group_by), task_names(runs)
    notes = [f"unreadable, and left out: {words}" for words in records.unreadable]
    used: dict[Path, str] = {}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((methods[run.folder], tasks[run.folder]), []).append(run)
    algorithm = {methods[run.folder]: run.config["name"] for run in runs}
    names = [*paper.NAMES, *paper.FURTHER_NAMES]
    rank = {name: place for place, name in enumerate(names)}
    cells = {
        key: make_cell(*key, members, metric, group_by, records, notes, used)
        for key, members in groups.items()
    }
    n_tasks = {method: sum(m == method for m, _ in cells) for method in algorithm}
    result = Sorted(
        metric,
        sorted(algorithm, key=lambda m: (rank.get(algorithm[m], len(rank)), -n_tasks[m], m)),
        algorithm,
        sorted(set(tasks.values())),
        {tasks[run.folder]: run.config["env"] for run in runs},
        cells,
        notes,
        used,
        is_share(runs, metric),
    )
    budgets: dict[str, list[str]] = {}  # in words -> tasks
    for task in result.tasks:
        column = result.column(task)
        expected = sorted({run.seed for run in runs if tasks[run.folder] == task})
        for cell in column:
            cell.missing = [seed for seed in expected if seed not in cell.values]
            few = len(cell.values) < (min_seeds or len(expected))
            cell.enough = not few
            if few and cell.averaged:
                wanted = f"{min_seeds} asked for" if min_seeds else f"{len(expected)}"
                notes.append(
                    f"{cell.method} on {task}: {len(cell.values)} of {wanted} seeds are finished; "
                    "not compared"
                )
        differing = differing_keys([run.protocol for c in column for run in c.runs.values()])
        steps = {c.method: {f"{run.config['t_max']:,}" for run in c.runs.values()} for c in column}
        if len({tuple(sorted(found)) for found in steps.values() if found}) > 1:
            words = ", ".join(f"{m} {' and '.join(sorted(f))}" for m, f in steps.items() if f)
            budgets.setdefault(words, []).append(task)
        if differing and not any(cell.unequal for cell in column):
            notes.append(f"{task}: methods not compared, their runs differ in {differing}")
        if not differing:
            judge(column, digits)
    for words, places in budgets.items():
        notes.append(f"different budgets (t_max) on {', '.join(places)}: {words}")
    return result


def make_cell(
    method: str,
    task: str,
    runs: Sequence[Run],
    metric: str,
    group_by: Sequence[str],
    records: Records,
    notes: list[str],
    used: dict[Path, str],
) -> Cell:
    """The runs of a method on a task that count (oldest first in `runs`), the others named."""
    cell = Cell(method, task)
    where = f"{method} on {task}"
    again = []  # seeds with several finished runs
    for seed in sorted({run.seed for run in runs}):
        own = [run for run in runs if run.seed == seed]
        finished = [run for run in own if run.finished]
        tested = [run for run in finished if metric in run.final]
        if not finished:
            states = ", ".join(f"{run.status}: {records.place(run)}" for run in own)
            notes.append(f"{where}: seed {seed} is not finished ({states})")
        elif not tested:
            notes.append(f"{where}: seed {seed} has no {metric} in its final test")
        else:
            cell.runs[seed] = tested[-1]
            again += [str(seed)] if len(tested) > 1 else []
        for run in own:
            used[run.folder] = "" if run is cell.runs.get(seed) else "older"
            if not run.finished:
                used[run.folder] = "not finished"
            elif run not in tested:
                used[run.folder] = f"no {metric}"
    same = [run for run in runs if run.finished and metric in run.final]
    differing = differing_settings(same)
    if differing:
        keys = [key for key in differing if key in same[0].config]
        cell.unequal = "runs of different configurations: " + "; ".join(
            f"{key} is {' and '.join(sorted(values))}" for key, values in differing.items()
        )
        advice = f"; --group-by {' '.join([*group_by, *keys])} tells them apart" if keys else ""
        notes.append(f"{where}: not averaged, {cell.unequal}{advice}")
        used.update({run.folder: "unequal" for run in same})
    elif again:
        notes.append(
            f"{where}: several finished runs of seeds {', '.join(again)}; the newest of each counts"
        )
    cell.values = {seed: run.final[metric] for seed, run in cell.runs.items()}
    if cell.averaged:
        cell.mean, cell.std = mean_std(cell.sorted_values())
    return cell


def differing_settings(runs: Sequence[Run]) -> dict[str, set[str]]:
    """Key -> values, of what should be one for all runs and is not.

    A key that a run's version did not know counts as equal: a new key's default does what was done
    before it.
    """
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in (run.settings | run.protocol).items():
            if value is not None:
                values.setdefault(key, set()).add(str(value))
    return {key: found for key, found in values.items() if len(found) > 1}


def differing_keys(protocols: Sequence[Mapping[str, Any]]) -> str:
    """In words: what differs between the protocols, `None` (not recorded) aside."""
    values: dict[str, set[str]] = {}
    for protocol in protocols:
        for key, value in protocol.items():
            if value is not None:
                values.setdefault(key, set()).add(str(value)[:12])
    differing = {key: found for key, found in values.items() if len(found) > 1}
    return "; ".join(f"{k} ({' and '.join(sorted(v))})" for k, v in differing.items())


def judge(column: Sequence[Cell], digits: int) -> None:
    """Mark the best of a task (all that print the same mean) and test the others against it."""
    complete = [cell for cell in column if cell.complete]
    if len(complete) < 2:
        return
    top = max(complete, key=lambda cell: cell.mean)
    for cell in complete:
        cell.best = fixed(cell.mean, digits) == fixed(top.mean, digits)
        cell.p = 1.0 if cell is top else welch_p(cell.sorted_values(), top.sorted_values())


# --------------------------------------------------------------------------------------------------
# Names


def check_keys(runs: Sequence[Run], group_by: Sequence[str]) -> None:
    known = {key for run in runs for key, _ in flatten(run.config)}
    for key in group_by:
        if key not in known:
            raise ConfigError(
                f"--group-by: no run has the key '{key}'.{nearest(key, known)} Expected keys of "
                "the configuration, as `python src/main.py print_config` shows them."
            )
    if "name" not in group_by:
        raise ConfigError("--group-by: `name` must be among the keys: algorithms are never mixed")


def method_names(runs: Sequence[Run], group_by: Sequence[str]) -> dict[Path, str]:
    """Folder -> `InSPO`, or `InSPO (alpha=0.1)` where the algorithm's runs differ in that key."""
    flat = {run.folder: dict(flatten(run.config)) for run in runs}
    varying: dict[str, list[str]] = {}
    for name in {run.config["name"] for run in runs}:
        own = [flat[run.folder] for run in runs if run.config["name"] == name]
        varying[name] = [
            key for key in group_by if len({str(config.get(key)) for config in own}) > 1
        ]
    labels = paper.NAMES | paper.FURTHER_NAMES
    methods = {}
    for run in runs:
        name = run.config["name"]
        marks = [f"{key}={flat[run.folder].get(key)}" for key in varying[name]]
        words = f" ({', '.join(marks)})" if marks else ""
        methods[run.folder] = labels.get(name, name) + words
    return methods


def task_names(runs: Sequence[Run]) -> dict[Path, str]:
    """Folder -> `2s3z_medium`; with the simulator's name before it where two have such a map."""
    labels = {}
    for run in runs:
        label, path = map_label(run.config), run.config.get("dataset", {}).get("path")
        if run.config.get("offline") and path and not run.config.get("quality"):
            label = f"{label}_{Path(path).stem}"
        labels[run.folder] = label
    environments: dict[str, set[str]] = {}
    for run in runs:
        environments.setdefault(labels[run.folder], set()).add(run.config["env"])
    return {
        run.folder: label if len(environments[label]) == 1 else f"{run.config['env']} {label}"
        for run in runs
        for label in [labels[run.folder]]
    }


def choose_metric(runs: Sequence[Run], asked: str | None) -> str:
    """The full name of the asked metric, or the first usual one that all tested runs have."""
    tested = [run for run in runs if run.finished and run.final]
    known = {key for run in tested for key in run.final if key.startswith("test_")}
    if not tested:
        states = ", ".join(sorted({run.status for run in runs}))
        raise UserError(
            f"none of the {len(runs)} runs is finished and tested (found: {states}). Finish them "
            "(the same command, or resume=...), or name another folder."
        )
    if asked is None:
        for metric in METRICS:
            if all(metric in run.final for run in tested):
                return metric
        raise ConfigError(
            f"the runs have no metric in common; name one with --metric: {', '.join(sorted(known))}"
        )
    for metric in (asked, f"test_{asked}", f"test_{asked}_mean"):
        if metric in known:
            return metric
    raise ConfigError(
        f"--metric: no run has '{asked}'.{nearest(asked, known)} Known: {', '.join(sorted(known))}"
    )


def is_share(runs: Sequence[Run], metric: str) -> bool:
    """Whether the metric is a mean of zeros and ones."""
    raw = [run.raw(metric) for run in runs if run.finished and metric in run.final]
    return all(values and set(values) <= {0, 1} for values in raw) and metric.endswith("_mean")
