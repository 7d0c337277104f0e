"""Sacred's records, read into one pandas table: one row for each run.

    records = read_records([Path("results/runs/smax")])  # every record below some folders
    runs = records.table                           # pandas: a row for each run
    run = finished_run(home)                       # the result in a cell's folder, or None

A record is a folder with `run.json`, `config.json` and `info.json`, as Sacred writes them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inspo.utils.config import PATH_KEYS, flatten, get, put, type_name
from inspo.utils.errors import UserError
from inspo.utils.keys import may_differ_compared

if TYPE_CHECKING:
    import pandas as pd

SKIPPED_FOLDERS = {"models", "tb_logs", "datasets"}  # large, and no records in them
# What a record's files hold: dotted key -> its types; "absent" where it may be missing.
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "run": {
        "status": ("str",), "start_time": ("str", "null", "absent"),
        "result.dataset": ("dict", "absent"), "result.tests": ("list", "absent"),
    },
    "config": {
        "name": ("str",), "seed": ("int",), "env": ("str",), "map_name": ("str", "null"),
        "t_max": ("int",), "final_test_nepisode": ("int",), "dataset": ("dict", "absent"),
        "dataset.path": ("str", "null", "absent"), "collect": ("dict", "absent"),
    },
    "info": {},
}  # fmt: skip
# What a table's file says of a run as it is.
PUBLISHED = ("dataset", "updates", "t_env", "hours", "sessions", "machine", "versions")
_ABSENT = object()


@dataclass(frozen=True)
class Run:
    """One run. What only a finished run has is empty, or 0, in the others."""

    folder: Path  # of the record; of a run that a table's JSON holds: that file
    status: str  # Sacred's: COMPLETED, RUNNING, INTERRUPTED, FAILED
    config: dict[str, Any]  # nested, as it was run
    started: str = ""
    updates: int = 0
    t_env: int = 0
    final: dict[str, float] = field(default_factory=dict)  # of the final test; key t_env: the step
    tests: list[dict[str, float]] = field(default_factory=list)  # all in order, the final one last
    raw: dict[str, list[float]] = field(default_factory=dict)  # of each final test episode
    dataset: dict[str, Any] = field(default_factory=dict)  # hash, episodes, return_mean, win_rate
    simulator: str | None = None  # in which it was tested: name and version, where recorded
    hours: float = 0.0  # of a cell's run (finished_run): over all sessions
    sessions: int = 1
    command: list[str] = field(default_factory=list)  # the words of its last command line
    commit: str | None = None
    machine: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    model_folder: Path | None = None  # known for a cell's run

    @property
    def algorithm(self) -> str:
        return self.config["name"]

    @property
    def environment(self) -> str:
        return self.config["env"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def finished(self) -> bool:
        return self.status == "COMPLETED"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted key -> value of all that decides about numbers."""
        return comparable_settings(self.config)

    def updates_at(self, t_env: Any) -> Any:
        """Gradient updates made by step t_env (or an array of them), evenly spread."""
        return t_env * self.updates / max(self.t_env, 1)


class UnreadableRecord(Exception):
    """A record that a kill cut, or that holds what no version of this program writes."""


@dataclass
class Records:
    """What lies below the folders `roots`, all below `base`.

    table: the training runs, oldest first: `run`, and its algorithm, environment, seed and commit.
    """

    roots: Sequence[Path]
    base: Path
    table: pd.DataFrame
    unreadable: list[str]  # places, each with the reason
    others: int  # evaluations and collections

    def place(self, run: Run) -> str:
        """Where a run's record lies, below `base`: reports are for other machines too."""
        return os.path.relpath(run.folder, self.base)


def read_records(roots: Sequence[Path]) -> Records:
    """All records below the folders, each once. UserError: none there, or of another version."""
    for root in roots:
        if not os.path.isdir(root):
            raise UserError(f"{root}: expected a folder with results, found none")
    tops = [os.path.realpath(root) for root in roots]
    base = os.path.commonpath(tops)
    unreadable: list[str] = []

    def set_aside(path: str | Path, reason: str) -> None:
        unreadable.append(f"{os.path.relpath(path, base)} ({reason})")

    visited: set[str] = set()
    folders = [folder for top in tops for folder in _record_folders(top, visited, set_aside)]
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UnreadableRecord as error:
            set_aside(folder, str(error))
    trained = sorted((run for run in runs if _trains(run.config)), key=lambda run: run.started)
    if not trained:
        reasons = "".join(f"; unreadable: {place}" for place in unreadable)
        raise UserError(
            f"{', '.join(map(str, roots))}: expected folders with run.json and config.json, as "
            f"training writes them under results/sacred; found {len(folders)}, and no training "
            f"run among them{reasons}. Name the folder that local_results_path or --results named."
        )
    import pandas as pd  # the help of a command need not wait for it

    columns = ("algorithm", "environment", "seed", "commit")
    facts = {name: [getattr(run, name) for run in trained] for name in columns}
    table = pd.DataFrame({"run": trained, **facts})
    return Records(roots, Path(base), table, unreadable, len(runs) - len(trained))


def _record_folders(top: str, visited: set[str], set_aside) -> Iterator[Path]:
    """Folders with a run.json at or below `top`, links followed, each real folder once."""
    for folder, children, files in os.walk(
        top, onerror=lambda e: set_aside(e.filename, type(e).__name__), followlinks=True
    ):
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
                set_aside(path, "a link to nothing")


def read_run(folder: Path) -> Run:
    """The run of one record.

    UnreadableRecord: cut by a kill, or with a value of an impossible type. UserError: of another
    version of this program, or of another one.
    """
    try:
        files = {
            name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in EXPECTED
            if name != "info" or (folder / "info.json").exists()  # none if it ended at once
        }
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableRecord(type(error).__name__) from error
    missing = []
    mistyped = [f"{n}.json is {type_name(c)}" for n, c in files.items() if not isinstance(c, dict)]
    for name, key, types in ((n, key, types) for n in files for key, types in EXPECTED[n].items()):
        value = get(files[name], key, _ABSENT)
        found = "absent" if value is _ABSENT else type_name(value)
        if found == "absent" and found not in types:
            missing.append(f"{name}.json: {key}")
        elif found not in types:
            expected = " or ".join(kind for kind in types if kind != "absent")
            mistyped.append(f"{name}.json: {key} is {found}, expected {expected}")
    if mistyped:
        raise UnreadableRecord("; ".join(mistyped))
    run, config, info = files["run"], files["config"], files.get("info", {})
    finished = run.get("status") == "COMPLETED"
    if finished and _trains(config):
        missing += [f"run.json: {key}" for key in _missing_of(run.get("result"))]
    if missing:
        raise UserError(
            f"{folder}: a record of another version of this program, or of another one: expected "
            f"and not found: {', '.join(missing)}. Move that folder away, or name another one"
        )
    result = (run.get("result") or {}) if finished else {}
    final, host = result.get("final", {}), run.get("host") or {}
    cpu = host.get("cpu") or platform.processor() or "unknown CPU"
    return Run(
        folder=folder,
        status=run["status"],
        config=config,
        started=run.get("start_time") or "",
        updates=result.get("updates", 0),
        t_env=result.get("t_env", 0),
        final=final,
        # Records of before November 2026 have Sacred's reference to `final` as the last test.
        tests=[*result.get("tests", [])[:-1], final] if final else [],
        raw={k: v for k, v in result.items() if isinstance(v, list) and all(map(is_number, v))},
        dataset=result.get("dataset", {}),
        simulator=result.get("simulator"),
        hours=_hours(run),
        command=info.get("command_line") or [],
        commit=info.get("git_commit"),
        machine=f"{cpu}, {os.cpu_count()} cores",
        versions=info.get("versions") or {},
    )


def _trains(config: Mapping[str, Any]) -> bool:
    """Whether it is the configuration of a training run, not of an evaluation or a collection."""
    return not config.get("evaluate") and not get(config, "collect.n_episodes")


def _missing_of(result: Any) -> list[str]:
    """What the result of a finished training run lacks."""
    if not isinstance(result, dict):
        return ["result"]
    missing = [key for key in ("t_env", "updates") if not isinstance(result.get(key), int)]
    if "final" in result:
        tests = [result["final"], *(result.get("tests") or [None, None])[:-1]]
        if not all(isinstance(test, dict) and is_number(test.get("t_env")) for test in tests):
            missing.append("final, tests")
    return missing


def is_number(value: Any) -> bool:
    """Whether it is one to compute with: finite, and no larger than a float can be."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _hours(run: Mapping[str, Any]) -> float:
    """How long a session took; until its last sign of life if it was killed."""
    try:
        start = datetime.fromisoformat(run["start_time"])
        end = datetime.fromisoformat(run.get("stop_time") or run["heartbeat"])
        return max(0.0, (end - start).total_seconds()) / 3600
    except (KeyError, TypeError, ValueError):
        return 0.0


def finished_run(home: Path) -> Run | None:
    """The newest finished run in a cell's folder, its time summed over the sessions that led to it.

    None if none is finished; what a kill made unreadable, or a user set aside, is none.
    """
    runs = []
    for folder in home.glob("sacred/*/*/[0-9]*"):
        with suppress(UnreadableRecord):
            runs += [read_run(folder)] if folder.name.isdecimal() else []
    runs.sort(key=lambda run: (run.started, int(run.folder.name)))
    finished = next((run for run in reversed(runs) if run.finished), None)
    if finished is None:
        return None
    chain = [finished]
    for run in reversed(runs[: runs.index(finished)]):
        if not chain[-1].config.get("resume"):
            break
        chain.append(run)
    hours = round(sum(run.hours for run in chain), 4)  # as tables' files have it
    return replace(finished, hours=hours, sessions=len(chain), model_folder=newest_checkpoint(home))


def newest_checkpoint(home: Path) -> Path | None:
    """The model folder in a cell's folder that was written last; None if none holds a step."""
    manifests = [p for p in home.glob("models/*/[0-9]*/manifest.json") if p.parent.suffix != ".tmp"]
    newest = max(manifests, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parents[1] if newest else None


class Doing(NamedTuple):
    """What a run is at: the name of its phase, the share of it that is done, and all in words."""

    name: str
    share: float
    text: str


def doing(home: Path, since: float) -> Doing | None:
    """What the session begun at time `since` is at, by its record (`utils.phases`).

    Sacred writes `info.json` every ten seconds; None as long as it says nothing.
    """
    try:
        written = {path.stat().st_mtime: path for path in home.glob("sacred/*/*/*/info.json")}
        if max(written) < since:
            return None
        phase = json.loads(written[max(written)].read_text(encoding="utf-8"))["phase"]
        return Doing(phase["name"], float(phase["share"]), phase["text"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


# Keys that were replaced: old key -> new key, old value -> new value.
REPLACED: dict[str, tuple[str, dict[Any, Any]]] = {
    "geometric_mean": ("ratio", {True: "geometric", False: "full"}),
    "update": ("blocks", {"sequential": 0, "simultaneous": 1}),
}


def comparable_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of all that decides about numbers; of a dataset's file its name.

    Keys that were replaced since a run was recorded count under their new names.
    """
    settings = {key: value for key, value in flatten(config) if not may_differ_compared(key)}
    for old, (new, values) in REPLACED.items():
        if old in settings and new not in settings:
            settings[new] = values.get(settings.pop(old))
    if settings.get("dataset.path"):
        settings["dataset.path"] = Path(str(settings["dataset.path"])).name
    return settings


def differences(
    recorded: Mapping[str, Any], requested: Mapping[str, Any], given: Iterable[str]
) -> list[str]:
    """In which keys a recorded run is not the requested one; `given` are the cell's own keys.

    A key that did not exist when the run was made counts as equal unless the cell gives it: a new
    key's default does what the program did before. A run that tested on more episodes along the way
    will do: greedy tests draw nothing from the stream of training, so its policies are the same.
    """
    before = comparable_settings(recorded)
    now = comparable_settings(json.loads(json.dumps(dict(requested))))
    greedy = now.get("test_greedy") and not now.get("test_epsilon")
    differing = []
    for key, value in now.items():
        old = before.get(key)
        new = key not in before and (key not in given or value == {})
        enough = key == "test_nepisode" and greedy and isinstance(old, int) and 0 < value <= old
        if old != value and not new and not enough:
            differing.append(f"{key} was {old!r} and is {value!r}")
    return differing


def provenance(run: Run) -> dict[str, Any]:
    """What a reader needs to run it again and compare, without paths of the machine."""
    return {
        "seed": run.seed,
        "git_commit": run.commit,
        "command": public_command(run.command),
        "config": public_config(run.config),
        **{name: getattr(run, name) for name in PUBLISHED},
    }


def from_provenance(record: Mapping[str, Any], source: Path) -> Run:
    """The run of which a table's file holds `provenance` with `final`, `raw` and perhaps `tests`.

    KeyError for what the record lacks.
    """
    return Run(
        folder=source,
        status="COMPLETED",
        command=record["command"].split()[1:],
        commit=record["git_commit"],
        tests=record.get("tests", []),  # tables of before November 2026 have none
        **{name: record[name] for name in ("config", "final", "raw", *PUBLISHED)},
    )


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without folders of this machine; of a dataset's file its name."""
    public: dict[str, Any] = {}
    for key, value in flatten(config):
        if key == "dataset.path" or key not in PATH_KEYS:
            put(public, key, Path(value).name if key == "dataset.path" and value else value)
    return public


def public_command(words: Sequence[str]) -> str:
    """The command line that does the same elsewhere."""
    kept = [word for word in words if word.partition("=")[0] not in (*PATH_KEYS, "torch_threads")]
    return " ".join(["./run.sh", *kept])


def commits(runs: Sequence[Run]) -> str:
    """The commits of runs, short, each once: one, if everything was run as it should be."""
    short = []
    for run in runs:
        name, _, dirty = (run.commit or "").partition("-")
        marks = " with uncommitted changes" if dirty else ""
        short.append(f"`{name[:10]}`{marks}" if name else "no commit")
    return ", ".join(dict.fromkeys(short)) or "none"
