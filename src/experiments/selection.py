"""Which runs of a table count in a report, and how they stand to each other; what is odd is named.

Nothing is left out without a note, and nothing is averaged or compared that was not made alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from inspo.experiments.entries import Data, Entry, Method, judge
from inspo.experiments.records import Records, Run, is_number
from inspo.utils.config import flatten, map_label
from inspo.utils.errors import ConfigError, UserError, nearest, require_known

# The algorithms' names in print, in the order of the tables; others follow by name.
NAMES = {
    "bc": "BC", "omar": "OMAR", "alberdice": "AlberDICE", "cfcql": "CFCQL", "omiga": "OMIGA",
    "inspo": "InSPO", "awr": "AWR", "bc_filter": "BC, best", "icq": "ICQ", "macql": "MACQL",
    "iql": "IQL", "awac": "AWAC", "td3bc": "TD3+BC", "qmix_cql": "QMIX+CQL", "idqn_cql": "IDQN+CQL",
    "comadice": "ComaDICE", "oryx": "Oryx (central)",
}  # fmt: skip
# In which runs must agree before their methods are compared with each other.
PROTOCOL = ("final_test_nepisode", "test_greedy", "test_epsilon")
# The first that all finished runs have is reported, unless --metric names one.
METRICS = ("test_battle_won_mean", "test_expected_return", "test_return_mean")
RETURN_METRICS = METRICS[1:]
# Whose episodes are recorded under another name: never shares, though each episode may be 0 or 1.
EPISODES = {"return": "returns", "ep_length": "lengths"}
HASH = "the dataset's hash"


@dataclass
class Selection:
    """What a report is made of. digits: of the numbers in its tables.

    runs: the table of all training runs, with the columns method, task, and reason: why a run does
    not count (empty: it does). entries: (method, task) -> what is known. notes: everything that a
    reader must know before believing the tables. incomparable: task -> in what its methods differ.
    """

    records: Records
    digits: int
    metric: str
    share: bool  # the metric is a share of episodes, between 0 and 1
    methods: list[Method]  # in the order of the tables
    tasks: list[Data]
    runs: pd.DataFrame
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    incomparable: dict[str, str] = field(default_factory=dict)

    def column(self, task: Data) -> list[Entry]:
        keys = [(method.key, task.key) for method in self.methods]
        return [self.entries[key] for key in keys if key in self.entries]


def select_runs(
    records: Records,
    group_by: Sequence[str] = ("name", "label"),
    metric: str | None = None,
    min_seeds: int | None = None,
    digits: int = 2,
) -> Selection:
    """The runs in cells, a method on a task each; the best of each task, tested against the others.

    group_by: keys of the configuration whose values tell methods apart. min_seeds: so many seeds
    are enough to compare; None: all those that any method has on the task.
    """
    runs = list(records.table.run)
    check_keys(runs, group_by)
    metric = choose_metric(runs, metric)
    table = records.table.assign(
        method=method_names(runs, group_by),
        task=task_names(runs),
        reason=[unusable(run, metric) for run in runs],
    )
    share = is_share(table[table.reason == ""], metric)
    selection = Selection(records, digits, metric, share, _methods(table), _tasks(table), table)
    selection.notes += [f"unreadable, and left out: {place}" for place in records.unreadable]
    methods = {method.key: method for method in selection.methods}
    tasks = {data.key: data for data in selection.tasks}
    for (method, task), part in table.groupby(["method", "task"], sort=False):
        name, place = str(method), str(task)
        own, unequal = _runs_that_count(selection, f"{name} on {place}", part, group_by)
        values = {seed: run.final[metric] for seed, run in own.items()}
        entry = Entry(tasks[place], methods[name], own, values, [], unequal=unequal)
        selection.entries[name, place] = entry
    budgets: dict[str, list[str]] = {}  # in words -> tasks
    for data in selection.tasks:
        column = selection.column(data)
        expected = sorted(set(table.seed[table.task == data.key]))
        _count_seeds(selection, column, expected, min_seeds)
        # Runs that are not averaged are not compared either: they keep no others from it.
        alike = [protocol(run) for e in column if e.averaged for run in e.runs.values()]
        words = "; ".join(f"{key} ({values})" for key, values in differing_values(alike).items())
        if words:
            selection.incomparable[data.key] = words
            selection.notes.append(
                f"{data.key}: methods not compared, their runs differ in {words}"
            )
        else:
            compared = [e for e in column if e.complete and not untested(e)]
            judge(compared if len(compared) > 1 else [], digits)
        steps = {
            e.method.key: " and ".join(sorted({f"{r.config['t_max']:,}" for r in e.runs.values()}))
            for e in column
            if e.runs
        }
        if len(set(steps.values())) > 1:
            words = ", ".join(f"{method} {count}" for method, count in steps.items())
            budgets.setdefault(words, []).append(data.key)
    for words, places in budgets.items():
        selection.notes.append(f"different budgets (t_max) on {', '.join(places)}: {words}")
    return selection


def _runs_that_count(
    selection: Selection, where: str, part: pd.DataFrame, group_by: Sequence[str]
) -> tuple[dict[int, Run], str]:
    """Of a method's runs on a task, oldest first in `part`: the run that counts for each seed, and
    in what these may not be averaged; all others are named."""
    metric, notes, place = selection.metric, selection.notes, selection.records.place
    counted: dict[int, Run] = {}
    again = []  # seeds with several runs that may count
    for seed, own in part.groupby("seed"):
        if not any(run.finished for run in own.run):
            states = ", ".join(f"{run.status}: {place(run)}" for run in own.run)
            notes.append(f"{where}: seed {seed} is not finished ({states})")
        elif not any(metric in run.final for run in own.run):
            notes.append(f"{where}: seed {seed} has no {metric} in its final test")
        notes += [
            f"{where}: seed {seed}: {reason} in the final test; the run counts as missing "
            f"({place(run)})"
            for run, reason in zip(own.run, own.reason)
            if metric in run.final and reason
        ]
        usable = own[own.reason == ""]
        if usable.empty:
            continue
        run = usable.run.iloc[-1]
        counted[run.seed] = run
        again += [str(seed)] if len(usable) > 1 else []
        selection.runs.loc[usable.index[:-1], "reason"] = "older"
        n_odd = sum(metric in test and not is_number(test[metric]) for test in run.tests)
        if n_odd:
            notes.append(
                f"{where}: seed {seed}: {metric} is no number in {n_odd} of its tests, which the "
                f"learning curve leaves out ({place(run)})"
            )
    usable = part[part.reason == ""]
    differing = differing_values(settings(run) | protocol(run) for run in usable.run)
    if not differing:
        if again:
            seeds = ", ".join(again)
            notes.append(
                f"{where}: several finished runs of seeds {seeds}; the newest of each counts"
            )
        return counted, ""
    unequal = "; ".join(f"{key} is {values}" for key, values in differing.items())
    unequal = f"runs of different configurations: {unequal}"
    keys = [key for key in differing if any(key in run.settings for run in usable.run)]
    advice = f"; --group-by {' '.join([*group_by, *keys])} tells them apart" if keys else ""
    notes.append(f"{where}: not averaged, {unequal}{advice}")
    selection.runs.loc[usable.index, "reason"] = "unequal"
    return counted, unequal


def _count_seeds(
    selection: Selection, column: Sequence[Entry], expected: Sequence[int], min_seeds: int | None
) -> None:
    """Which of a task's seeds each entry lacks, and whether it has enough to be compared."""
    for entry in column:
        entry.missing = [seed for seed in expected if seed not in entry.values]
        enough = len(entry.values) >= (min_seeds or len(expected))
        entry.complete = entry.averaged and enough
        if not entry.missing and enough:
            continue
        words = f"{entry.method.key} on {entry.data.key}: {len(entry.values)} of {len(expected)} "
        words += "seeds have a result"
        if entry.missing:
            words += f", missing: {', '.join(map(str, entry.missing))}"
        if entry.averaged:
            words += "; enough" if enough else "; not compared"
            words += f" (--min-seeds {min_seeds})" if min_seeds else ""
            words += "; not tested: one seed" if untested(entry) else ""
        selection.notes.append(words)


def untested(entry: Entry) -> bool:
    """Whether it would be compared, if only a test were possible with one seed."""
    return entry.complete and len(entry.values) < 2


def unusable(run: Run, metric: str) -> str:
    """Why the run cannot count; empty if it can."""
    if not run.finished:
        return "not finished"
    value = run.final.get(metric)
    if is_number(value):
        return ""
    return f"{metric} is {value or 'null'}" if metric in run.final else f"no {metric}"


def settings(run: Run) -> dict[str, Any]:
    """What must be one for all runs that are averaged."""
    # A run without dataset.path found its data by map and quality.
    left_out = {"seed"} if run.settings.get("dataset.path") else {"seed", "dataset.path"}
    return {key: value for key, value in run.settings.items() if key not in left_out}


def protocol(run: Run) -> dict[str, Any]:
    """What methods on one task must have in common to be compared.

    A fact that was not recorded is left out; a key that is null is not: it says something.
    """
    keys = {k: v for k, v in run.settings.items() if k in PROTOCOL or k.startswith("env_args.")}
    facts = {HASH: run.dataset.get("hash"), "the simulator": run.simulator}
    return keys | {name: fact for name, fact in facts.items() if fact is not None}


def differing_values(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Key -> its values in words, of what should be one for all records and is not.

    A key that a record lacks counts as equal: its version did not know it, and a new key's default
    does what was done before it. A null is a value.
    """
    table = pd.DataFrame([{key: str(value) for key, value in r.items()} for r in records])
    return {
        str(key): " and ".join(text[:12] if key == HASH else text for text in sorted(values))
        for key, column in table.items()
        if len(values := column.dropna().unique()) > 1
    }


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


def method_names(runs: Sequence[Run], group_by: Sequence[str]) -> list[str]:
    """`InSPO`, or `InSPO (alpha=0.1)` where the algorithm's runs differ in that key."""
    flat = [dict(flatten(run.config)) for run in runs]
    values = pd.DataFrame([{key: str(config.get(key)) for key in group_by} for config in flat])
    several = values.groupby("name").nunique() > 1
    varying = {name: [key for key in group_by if row.get(key)] for name, row in several.iterrows()}
    names = []
    for run, config in zip(runs, flat):
        marks = [f"{key}={config.get(key)}" for key in varying[run.algorithm]]
        name = NAMES.get(run.algorithm, run.algorithm)
        names.append(f"{name} ({', '.join(marks)})" if marks else name)
    return names


def task_names(runs: Sequence[Run]) -> list[str]:
    """`2s3z_medium`; with the simulator's name before it where two have such a map."""
    environments: dict[str, set[str]] = {}
    labels = []
    for run in runs:
        label, path = map_label(run.config), run.settings.get("dataset.path")
        if run.config.get("offline") and path and not run.config.get("quality"):
            label = f"{label}_{Path(path).stem}"
        labels.append(label)
        environments.setdefault(label, set()).add(run.environment)
    return [
        f"{run.environment} {label}" if len(environments[label]) > 1 else label
        for run, label in zip(runs, labels)
    ]


def _methods(table: pd.DataFrame) -> list[Method]:
    """In the order of NAMES; of several of one algorithm those on most tasks first."""
    rank = {name: place for place, name in enumerate(NAMES)}
    found = table.groupby("method").agg(algorithm=("algorithm", "first"), n=("task", "nunique"))
    methods = [(rank.get(row.algorithm, len(rank)), -row.n, str(key), row.algorithm)
               for key, row in found.iterrows()]  # fmt: skip
    return [Method(key, algorithm, key) for *_, key, algorithm in sorted(methods)]


def _tasks(table: pd.DataFrame) -> list[Data]:
    found = table.groupby("task").environment.first()
    return [Data(str(task), str(task), environment) for task, environment in found.items()]


def choose_metric(runs: Sequence[Run], requested: str | None) -> str:
    """The full name of the requested metric, or the first usual one that all tested runs have."""
    tested = [run for run in runs if run.finished and run.final]
    known = {key for run in tested for key in run.final if key.startswith("test_")}
    if not tested:
        states = ", ".join(sorted({run.status for run in runs}))
        raise UserError(
            f"none of the {len(runs)} runs is finished and tested (found: {states}). Finish them "
            "(the same command, or resume=...), or name another folder."
        )
    if requested is None:
        for metric in METRICS:
            if all(metric in run.final for run in tested):
                return metric
        raise ConfigError(
            f"the runs have no metric in common; name one with --metric: {', '.join(sorted(known))}"
        )
    for metric in (f"test_{requested}", f"test_{requested}_mean"):
        if metric in known:
            return metric
    require_known(requested, sorted(known), "--metric: no run has")
    return requested


def short_name(metric: str) -> str:
    return metric.removeprefix("test_").removesuffix("_mean")


def episodes_of(run: Run, metric: str) -> list[float] | None:
    """What the metric is the mean of: a value for each final test episode; None if unknown."""
    name = short_name(metric)
    return run.raw.get(EPISODES.get(name, name))


def is_share(table: pd.DataFrame, metric: str) -> bool:
    """Whether the metric is a mean of zeros and ones, and not by chance."""
    if short_name(metric) in EPISODES or not metric.endswith("_mean"):
        return False
    episodes = [episodes_of(run, metric) for run in table.run]
    return all(values and set(values) <= {0, 1} for values in episodes)
