"""Sacred's records as they lie -> runs in cells (a method on a task); what is odd is named.

A record is a folder with `run.json` and `config.json`, wherever it lies: under `sacred/`, in a cell
of the grid engine, copied from elsewhere. Nothing is averaged here, and nothing left out unsaid.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from inspo.evaluation import paper
from inspo.evaluation.grid import HARMLESS
from inspo.evaluation.statistics import mean_std, welch_p
from inspo.evaluation.tables import fixed
from inspo.utils.config import PATH_KEYS, flatten, get, map_label, type_name
from inspo.utils.errors import ConfigError, UserError, nearest

RECORD_FILES = ("run", "config", "info")
SKIPPED_FOLDERS = {"models", "tb_logs", "datasets"}  # large, and no records in them
NEEDED_KEYS = ("name", "seed", "env", "map_name", "t_max", "final_test_nepisode")
# Of what type values must be, where they are there at all.
CONFIG_TYPES = {
    "name": "str", "seed": "int", "env": "str", "t_max": "int", "dataset": "dict",
    "dataset.path": "str or null", "collect": "dict",
}  # fmt: skip
RUN_TYPES = {
    "status": "str", "start_time": "str or null", "result.dataset": "dict", "result.tests": "list",
}  # fmt: skip
# In which runs must agree before their methods are compared with each other.
PROTOCOL = ("final_test_nepisode", "test_greedy", "test_epsilon")
LEVEL = 0.05  # of Welch's test
# The first that all finished runs have is reported, unless --metric names one.
METRICS = ("test_battle_won_mean", "test_expected_return", "test_return_mean")
RETURN_METRICS = METRICS[1:]
# Whose episodes are recorded under another name: never shares, though each episode may be 0 or 1.
EPISODES = {"return": "returns", "ep_length": "lengths"}
HASH = "the dataset's hash"


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
            if key == "dataset.path" and value:  # none: found by map and quality
                value = Path(value).name
            elif key in PATH_KEYS or key in HARMLESS or key == "seed":
                continue
            settings[key] = value
        return settings

    @property
    def protocol(self) -> dict[str, Any]:
        """What methods on one task must have in common to be compared.

        A fact that was not recorded is left out; a key that is null is not: it says something.
        """
        keys = {k: v for k, v in self.settings.items() if k in PROTOCOL or k[:9] == "env_args."}
        facts = {HASH: self.dataset_hash, "the simulator": self.result.get("simulator")}
        return keys | {name: fact for name, fact in facts.items() if fact is not None}

    def raw(self, metric: str) -> list[float] | None:
        """What the metric is the mean of: a value for each final test episode; None if unknown."""
        name = short_name(metric)
        values = self.result.get(EPISODES.get(name, name))
        return values if isinstance(values, list) and all(map(is_number, values)) else None


def short_name(metric: str) -> str:
    return metric.removeprefix("test_").removesuffix("_mean")


def is_number(value: Any) -> bool:
    """Whether it is one to compute with: finite, and no larger than a float can be."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


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

    def set_aside(self, path: str | Path, why: str) -> None:
        self.unreadable.append(f"{os.path.relpath(path, self.base)} ({why})")


def read_records(roots: Sequence[Path]) -> Records:
    """All records under the folders, each once. UserError: none there, or of another version."""
    for root in roots:
        if not os.path.isdir(root):
            raise UserError(f"{root}: expected a folder with results, found none")
    tops = [os.path.realpath(root) for root in roots]
    found = Records(Path(os.path.commonpath(tops)), [], [], 0)
    visited: set[str] = set()
    folders = [folder for top in tops for folder in record_folders(top, visited, found)]
    for folder in folders:
        try:
            files = [_load(folder / f"{name}.json") for name in RECORD_FILES]
            odd = _odd(*files)
            if odd:
                found.set_aside(folder, odd)
                continue
            run = _run(folder, *files)
            str(run.settings)  # nested too deeply to be compared: found here, not in the middle
        except (OSError, ValueError, RecursionError) as error:
            found.set_aside(folder, type(error).__name__)
            continue
        if run.config.get("evaluate") or run.config.get("collect", {}).get("n_episodes"):
            found.others += 1
        else:
            found.runs.append(run)
    if not found.runs:
        unreadable = "".join(f"; unreadable: {words}" for words in found.unreadable)
        raise UserError(
            f"{', '.join(map(str, roots))}: expected folders with run.json and config.json, as "
            f"training writes them under results/sacred; found {len(folders)}, and no training "
            f"run among them{unreadable}. Name the folder that local_results_path or --results "
            "named."
        )
    found.runs.sort(key=lambda run: (run.started, str(run.folder)))
    return found


def record_folders(top: str, visited: set[str], found: Records) -> Iterable[Path]:
    """Folders of records at or below `top`, in order of their names; what cannot be listed is set
    aside in `found`.

    Links are followed. visited: the real paths of folders that were walked through, so that links
    in a circle end and every folder is read once.
    """

    def unlisted(error: OSError) -> None:
        found.set_aside(error.filename, type(error).__name__)

    for folder, children, files in os.walk(top, onerror=unlisted, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            children.clear()
            continue
        visited.add(real)
        children[:] = sorted(name for name in children if name not in SKIPPED_FOLDERS)
        if "run.json" in files:
            yield Path(folder)
        for name in sorted(files):
            path = os.path.join(folder, name)
            if name != "run.json" and os.path.islink(path) and not os.path.exists(path):
                found.set_aside(path, "a link to nothing")


def _load(path: Path) -> Any:
    if path.name == "info.json" and not path.exists():  # a run that ended at once has none
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _odd(run: Any, config: Any, info: Any) -> str:
    """In words: what is there, but of a type that no version of this program writes."""
    files = {"run.json": run, "config.json": config, "info.json": info}
    odd = [f"{name} is {type_name(c)}" for name, c in files.items() if not isinstance(c, dict)]
    if not odd:
        odd = [*_mistyped("run.json", run, RUN_TYPES)]
        odd += _mistyped("config.json", config, CONFIG_TYPES)
    return "; ".join(odd)


def _mistyped(name: str, content: dict[str, Any], types: Mapping[str, str]) -> Iterable[str]:
    absent = object()
    for key, expected in types.items():
        value = get(content, key, absent)
        if value is not absent and type_name(value) not in expected.split(" or "):
            yield f"{name}: {key} is {type_name(value)}, expected {expected}"


def _run(folder: Path, run: dict[str, Any], config: dict[str, Any], info: dict[str, Any]) -> Run:
    """One checked record; UserError if another version, or another program, wrote it."""
    wrong = []
    if "status" not in run:
        wrong = ["run.json: status"]
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
        if not all(isinstance(t, dict) and is_number(t.get("t_env")) for t in tests):
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

    @property
    def untested(self) -> bool:
        """It would be compared, but no test is possible with one seed."""
        return self.complete and len(self.values) < 2

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
    incomparable: dict[str, str] = field(default_factory=dict)  # task -> in what methods differ

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
            cell.enough = len(cell.values) >= (min_seeds or len(expected))
            if cell.missing or not cell.enough:
                notes.append(seeds_words(cell, len(expected), min_seeds))
        # Runs that are not averaged are not compared either: they keep no others from it.
        counted = [run.protocol for c in column if c.averaged for run in c.runs.values()]
        differing = differing_values(counted)
        steps = {c.method: {f"{run.config['t_max']:,}" for run in c.runs.values()} for c in column}
        if len({tuple(sorted(found)) for found in steps.values() if found}) > 1:
            words = ", ".join(f"{m} {' and '.join(sorted(f))}" for m, f in steps.items() if f)
            budgets.setdefault(words, []).append(task)
        if differing:
            result.incomparable[task] = "; ".join(
                f"{key} ({both})" for key, both in differing.items()
            )
            notes.append(
                f"{task}: methods not compared, their runs differ in {result.incomparable[task]}"
            )
        else:
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
    again = []  # seeds with several runs that may count
    for seed in sorted({run.seed for run in runs}):
        own = [run for run in runs if run.seed == seed]
        reasons = {run.folder: unusable(run, metric) for run in own}
        usable = [run for run in own if not reasons[run.folder]]
        if not any(run.finished for run in own):
            states = ", ".join(f"{run.status}: {records.place(run)}" for run in own)
            notes.append(f"{where}: seed {seed} is not finished ({states})")
        elif not any(metric in run.final for run in own):
            notes.append(f"{where}: seed {seed} has no {metric} in its final test")
        notes += [
            f"{where}: seed {seed}: {reasons[run.folder]} in the final test; the run counts as "
            f"missing ({records.place(run)})"
            for run in own
            if metric in run.final and reasons[run.folder]
        ]
        if usable:
            cell.runs[seed] = usable[-1]
            again += [str(seed)] if len(usable) > 1 else []
            n_odd = sum(metric in t and not is_number(t[metric]) for t in usable[-1].tests)
            if n_odd:
                notes.append(
                    f"{where}: seed {seed}: {metric} is no number in {n_odd} of its tests, which "
                    f"the learning curve leaves out ({records.place(usable[-1])})"
                )
        for run in own:
            used[run.folder] = reasons[run.folder] or ("" if run is usable[-1] else "older")
    same = [run for run in runs if not unusable(run, metric)]
    differing = differing_values([run.settings | run.protocol for run in same])
    if differing:
        known = {key for run in same for key, _ in flatten(run.config)}
        keys = [key for key in differing if key in known]
        cell.unequal = "runs of different configurations: " + "; ".join(
            f"{key} is {both}" for key, both in differing.items()
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


def unusable(run: Run, metric: str) -> str:
    """Why the run cannot count; empty if it can."""
    if not run.finished:
        return "not finished"
    if metric not in run.final:
        return f"no {metric}"
    value = run.final[metric]
    return "" if is_number(value) else f"{metric} is {'null' if value is None else value}"


def seeds_words(cell: Cell, expected: int, min_seeds: int | None) -> str:
    """Which of a task's seeds a cell lacks, and what follows from it."""
    words = f"{cell.method} on {cell.task}: {len(cell.values)} of {expected} seeds have a result"
    if cell.missing:
        words += f", missing: {', '.join(map(str, cell.missing))}"
    if cell.averaged:
        words += "; enough" if cell.enough else "; not compared"
        words += f" (--min-seeds {min_seeds})" if min_seeds else ""
        words += "; not tested: one seed" if cell.untested else ""
    return words


def differing_values(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Key -> its values in words, of what should be one for all records and is not.

    A key that a record lacks counts as equal: its version did not know it, and a new key's default
    does what was done before it. A null is a value.
    """
    values: dict[str, set[str]] = {}
    for record in records:
        for key, value in record.items():
            values.setdefault(key, set()).add(str(value))
    return {
        key: " and ".join(value[:12] if key == HASH else value for value in sorted(found))
        for key, found in values.items()
        if len(found) > 1
    }


def judge(column: Sequence[Cell], digits: int) -> None:
    """Mark the best of a task (all that print the same mean) and test the others against it.

    Cells of one seed take no part: nothing tells whether the best is better than they are.
    """
    tested = [cell for cell in column if cell.complete and not cell.untested]
    if len(tested) < 2:
        return
    top = max(tested, key=lambda cell: cell.mean)
    for cell in tested:
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
    """Whether the metric is a mean of zeros and ones, and not by chance."""
    if short_name(metric) in EPISODES:
        return False
    raw = [run.raw(metric) for run in runs if not unusable(run, metric)]
    return all(values and set(values) <= {0, 1} for values in raw) and metric.endswith("_mean")
