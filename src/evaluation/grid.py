"""Runs a grid of cells: each one a resumable run of `main.py`, several at a time.

    cells = [Cell(f"xor_b/inspo/seed{s}", "inspo", "matrix_offline",
                  {"map_name": "xor", "quality": "b", "seed": s}) for s in range(5)]
    report = run_grid(cells, LocalLauncher(jobs=2), folder=Path("results/runs/paper"))
    results = {cell.id: read_result(folder, cell) for cell in cells}  # None: not finished

A cell keeps everything in `{folder}/{cell.id}/`: Sacred's record, checkpoints, and `log.txt`, all
that its process said. What is finished is not run again, what was interrupted goes on from its
newest checkpoint, and what fails is reported and does not stop the rest. What another process runs,
a second grid or the child of a killed one, is waited for. So the answer to a kill, a full disk or a
mended bug is always the same: the same command once more. Where the processes run,
on this machine or on a cluster, is the launcher's to know (jobs.py).
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from inspo.evaluation.jobs import LOG, Job, JobIsBusy, Launcher, check_free
from inspo.utils.config import PATH_KEYS, Config, flatten, get, load_config
from inspo.utils.errors import UserError
from inspo.utils.interrupts import GracefulExit, Interrupted
from inspo.utils.paths import PROJECT_ROOT
from tqdm import tqdm

# What does not change a run's numbers, and may differ between a record and what is asked for.
HARMLESS = {
    "keep_checkpoints",
    "label",
    "load_step",
    "save_model_interval",
    "torch_threads",
    "use_progress_bar",
    "use_tensorboard",
}
# The keys whose value a run that goes on may not change, though results are compared without it.
FIXED_PATHS = ("datasets_dir", "dataset.path")
TAIL_LINES = 12
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 2.0
PATIENCE_SECONDS = 120.0  # for a child to save, once it was asked to stop
BUSY_SECONDS = 10.0  # between two tries of a cell that another process runs
PART_BYTES = 200  # of one folder's name; file systems take 255


# --------------------------------------------------------------------------------------------------
# Cells


FOLDER_NAMES = f"Expected letters, digits and _ . + -, at most {PART_BYTES} bytes for each folder"


def is_folder_name(text: str) -> bool:
    """Whether it can name a folder below another one, slashes allowed."""
    return (
        re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", text) is not None
        and ".." not in text
        and all(len(part.encode()) <= PART_BYTES for part in text.split("/"))
    )


@dataclass(frozen=True)
class Cell:
    """One run: `--config=algorithm --env-config=environment with overrides`.

    id: its name and its folder; may have slashes. overrides: dotted key -> value, `seed` among
    them; where results are written is the grid's to say. t_max and the like belong in the YAML
    files, so that the single run does what the grid does.
    """

    id: str
    algorithm: str
    environment: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not is_folder_name(self.id):
            raise UserError(
                f"'{self.id[:100]}' cannot be the name of a cell: it names its folder too. "
                f"{FOLDER_NAMES}"
            )

    def arguments(self) -> list[str]:
        """What stands after `python src/main.py`, without the paths."""
        words = [f"{key}={value}" for key, value in self.overrides.items()]
        return [f"--config={self.algorithm}", f"--env-config={self.environment}", "with", *words]

    def command(self) -> str:
        """The line that does the same by hand."""
        return shlex.join(["./run.sh", *self.arguments()])

    def config(self) -> Config:
        """The whole configuration asked for, not to be changed; ConfigError if it is none."""
        return _config(tuple(self.arguments()), Path.cwd())


@cache
def _config(arguments: tuple[str, ...], cwd: Path) -> Config:
    # It takes 15 ms, and a grid of hundreds of cells asks for each several times.
    return load_config(arguments, cwd=cwd)


@dataclass(frozen=True)
class Failure:
    cell: Cell
    status: int | None  # the exit status of its process; None: that is not what went wrong
    words: str  # its last lines
    log: Path

    def __str__(self) -> str:
        how = "" if self.status is None else f" (exit status {self.status})"
        return f"{self.cell.id} failed{how}:\n{_indent(self.words)}\n  all of it: {self.log}"


@dataclass
class GridReport:
    """What one call of `run_grid` did with each cell, by id."""

    reused: list[str] = field(default_factory=list)  # were finished before
    finished: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------
# Results


@dataclass(frozen=True)
class Result:
    """What a finished cell left. `raw` has a list each of what was measured per test episode."""

    cell_id: str
    config: dict[str, Any]
    commit: str | None
    command: list[str]  # as it was run the last time
    seed: int
    tests: list[dict[str, float]]  # every test in order, the final one last; key t_env is the step
    final: dict[str, float]
    raw: dict[str, list[float]]
    dataset: dict[str, Any]
    simulator: str | None  # in which it was tested: name and version, where the run recorded it
    updates: int
    t_env: int
    hours: float  # over all sessions of the run
    sessions: int
    host: dict[str, Any]
    versions: dict[str, str | None]
    run_folder: Path
    model_folder: Path | None

    @property
    def updates_of(self) -> Callable[[float], float]:
        """Gradient updates made by step t_env; the steps of an update vary little."""
        per_step = self.updates / self.t_env if self.t_env else 0.0
        return lambda t_env: t_env * per_step


def read_result(folder: str | Path, cell: Cell) -> Result | None:
    """The result of a finished cell; None if it is not finished.

    UserError if what is finished there is a run of another configuration.
    """
    home = Path(folder) / cell.id
    finished = [run for run in _records(home) if run["run"].get("status") == "COMPLETED"]
    if not finished:
        return None
    record = finished[-1]
    differing = differences(record["config"], cell.config().values, set(cell.overrides))
    if differing:
        raise UserError(
            f"{home} holds a finished run of another configuration: {'; '.join(differing)}. "
            "Move that folder away to run it anew, or choose another one with --results"
        )
    return _result(home, cell, record)


def _result(home: Path, cell: Cell, record: dict[str, Any]) -> Result:
    run, outcome, info = record["run"], record["run"].get("result"), record["info"]
    _check_version(record["folder"], outcome)
    known = ("final", "tests", "dataset", "updates", "t_env", "seconds")
    raw = {k: v for k, v in outcome.items() if k not in known and isinstance(v, list)}
    final = outcome.get("final", {})
    # Older records have a reference for the last test, which stood in them as `final` too.
    tests = [test if "t_env" in test else final for test in outcome.get("tests", [])]
    sessions = _sessions(home, record)
    return Result(
        cell_id=cell.id,
        config=record["config"],
        commit=info.get("git_commit"),
        command=info.get("command_line") or [],
        seed=record["config"]["seed"],
        tests=tests,
        final=final,
        raw=raw,
        dataset=_mapping(outcome.get("dataset")),
        simulator=outcome.get("simulator"),
        updates=int(outcome.get("updates", 0)),
        t_env=int(outcome.get("t_env", 0)),
        hours=sum(_seconds(run["run"]) for run in sessions) / 3600,
        sessions=len(sessions),
        host=_mapping(run.get("host")),
        versions=_mapping(info.get("versions")),
        run_folder=record["folder"],
        model_folder=newest_checkpoint(home),
    )


def _check_version(folder: Path, outcome: Any) -> None:
    """UserError if a finished run's record is not of this program's version."""
    found = outcome if isinstance(outcome, dict) else {}
    missing = [key for key in ("t_env", "updates") if not isinstance(found.get(key), int)]
    if "final" in found and not _numbers(found["final"]):
        missing.append("final")
    tests = found.get("tests", [])
    if not isinstance(tests, list) or not all(map(_numbers, tests)):
        missing.append("tests")
    if missing:
        raise UserError(
            f"{folder}/run.json was written by another version of this program: of a finished run "
            f"it has no readable {', '.join(missing)}. Move the folder of that run away to run it "
            "anew, or choose another folder for results"
        )


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, int | float) for x in value.values())


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _records(home: Path) -> list[dict[str, Any]]:
    """Sacred's records in a cell's folder, oldest first; without what a kill made unreadable.

    A folder whose name is no number is none of Sacred's: a user's copy, or one set aside.
    """
    records = []
    for folder in home.glob("sacred/*/*/[0-9]*"):
        if not folder.name.isdecimal():
            continue
        run, config, info = (_read_mapping(folder / f"{n}.json") for n in ("run", "config", "info"))
        if run is not None and config is not None:
            records.append({"folder": folder, "run": run, "config": config, "info": info or {}})
    return sorted(records, key=_age)


def _read_mapping(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it cannot be read, or is no mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _age(record: Mapping[str, Any]) -> tuple[str, int]:
    start = record["run"].get("start_time")
    return start if isinstance(start, str) else "", int(record["folder"].name)


def _sessions(home: Path, last: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that lead to `last`: back to the one that did not resume anything."""
    records = _records(home)
    position = [record["folder"] for record in records].index(last["folder"])
    chain = [last]
    for record in reversed(records[:position]):
        if not chain[0]["config"].get("resume"):
            break
        chain.insert(0, record)
    return chain


def _seconds(run: Mapping[str, Any]) -> float:
    """How long a session took; until its last sign of life if it was killed."""
    try:
        start = datetime.fromisoformat(run["start_time"])
        end = datetime.fromisoformat(run.get("stop_time") or run["heartbeat"])
        return max(0.0, (end - start).total_seconds())
    except (KeyError, TypeError, ValueError):
        return 0.0


def differences(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], given: set[str]
) -> list[str]:
    """What is asked for and was not what ran, in words; `given` are the keys of the cell itself.

    A key that did not exist when the run was made counts as equal unless the cell gives it: a new
    key's default does what the program did before. Paths are left out, but for the name of a
    dataset file. A run that tested on more episodes along the way than are asked for will do:
    greedy tests draw nothing from the stream of training, so its policies are the same.
    """
    before, now = dict(flatten(recorded)), dict(flatten(json.loads(json.dumps(dict(asked)))))
    greedy = now.get("test_greedy") and not now.get("test_epsilon")
    found = []
    for key, value in now.items():
        if key in HARMLESS or (key not in before and key not in given):
            continue
        old = before.get(key)
        if key == "test_nepisode" and greedy and isinstance(old, int) and 0 < value <= old:
            continue
        if key in PATH_KEYS:
            if key != "dataset.path" or _file_name(old) == _file_name(value):
                continue
        elif old == value or (value == {} and get(recorded, key)):
            continue
        found.append(f"{key} was {old!r} and is {value!r}")
    return found


def _file_name(path: Any) -> str | None:
    return Path(str(path)).name if path else None


# --------------------------------------------------------------------------------------------------
# Going on


def newest_checkpoint(home: Path) -> Path | None:
    """The model folder in a cell's folder that was written last; None if none holds a step."""
    from inspo.utils.checkpoints import MANIFEST, list_steps  # torch; the help need not wait for it

    folders = [folder for folder in home.glob("models/*") if list_steps(folder)]
    written = {f: max(m.stat().st_mtime for m in f.glob(f"[0-9]*/{MANIFEST}")) for f in folders}
    return max(written, key=written.__getitem__) if written else None


def resumable(home: Path, asked: Mapping[str, Any]) -> tuple[Path | None, str]:
    """(model folder to go on from, "") or (None, why not)."""
    from inspo.utils.checkpoints import find_checkpoint, read_manifest
    from inspo.utils.errors import CheckpointError

    folder = newest_checkpoint(home)
    if folder is None:
        return None, ""
    try:
        before = read_manifest(find_checkpoint(folder)).get("config") or {}
    except CheckpointError as error:
        return None, str(error)
    ignored = {*HARMLESS, "local_results_path", "resume"}
    now = json.loads(json.dumps(dict(asked)))
    differing = [
        key for key, value in now.items() if key not in ignored and before.get(key) != value
    ]
    if differing:
        return None, f"{folder} is of another configuration ({', '.join(differing)})"
    return folder, ""


# --------------------------------------------------------------------------------------------------
# Running


@dataclass
class _Running:
    """A cell whose process runs."""

    cell: Cell
    job: Job
    log: Path
    log_start: int  # where this session's words begin in the log
    t_max: int
    first_share: float | None = None  # None: its log has not told of any yet
    asked_to_stop: bool = False

    def words(self, last: int | None = None, first: int = -1) -> str:
        """What this session has said; its last, or its first so many bytes."""
        try:
            with open(self.log, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self.log_start, size - last if last else 0))
                return file.read(first).decode(errors="replace")
        except FileNotFoundError:  # it waits for a node
            return ""

    def progress(self) -> tuple[float, str]:
        """(how far its log says it is, 0 to 1; the same in words)."""
        return progress_in(self.words(8192), self.cell.algorithm, self.t_max)

    def worked(self, share: float) -> float:
        """What this session did of the share that is done: all but what it began with."""
        if self.first_share is None:
            head = self.words(first=65536)
            self.first_share = first_share_in(head, self.cell.algorithm, self.t_max)
        return max(0.0, share - (self.first_share or 0.0))

    def ask_to_stop(self) -> None:
        """Once: a second SIGTERM would make it leave without saving."""
        if not self.asked_to_stop:
            self.asked_to_stop = True
            self.job.terminate()


def progress_in(words: str, algorithm: str, t_max: int) -> tuple[float, str]:
    """The progress that the last words of a run tell of: the share trained, and the phase.

    >>> progress_in("inspo:  12%|# | 3/30 [..] Recent statistics, t_env 6,000", "inspo", 10_000)
    (0.6, '60%')
    >>> progress_in("collecting:  45%|####  | 2250/5000 [..]", "inspo", 10_000)
    (0.0, 'collecting 45%')
    """
    share = _share_in(words, algorithm, t_max)
    if share is None:
        bars = BARS.findall(words)
        return 0.0, f"{bars[-1][0]} {bars[-1][1]}%" if bars else "starting"
    return share, f"{share:.0%}"


def first_share_in(words: str, algorithm: str, t_max: int) -> float | None:
    """The share that the first words of a run tell of first; None if they tell of none.

    >>> first_share_in("collecting: 45%|#\\rbc:  90%|# t_env 900\\rbc:  95%|#", "bc", 1000)
    0.9
    """
    shares = (_share_in(line, algorithm, t_max) for line in re.split(r"[\r\n]", words))
    return next((share for share in shares if share is not None), None)


BARS = re.compile(r"(\w+):\s+(\d+)%\|")


def _share_in(words: str, algorithm: str, t_max: int) -> float | None:
    """How much is trained, 0 to 1, by the last bar or the last line of numbers."""
    shares = [int(percent) / 100 for name, percent in BARS.findall(words) if name == algorithm][-1:]
    steps = re.findall(r"\bt_env ([\d,]*\d)", words)
    if steps and t_max:
        shares.append(int(steps[-1].replace(",", "")) / t_max)
    return min(1.0, max(shares)) if shares else None


class _Queue:
    """The cells still to be run, in order. One that another process runs is put behind the others,
    and is tried again from time to time: it may finish there, be stopped, or fail."""

    def __init__(self, cells: Sequence[Cell]):
        self._cells = list(cells)
        self._tried: dict[str, float] = {}  # when a cell was found to run elsewhere

    def __len__(self) -> int:
        return len(self._cells)

    def pop(self) -> Cell | None:
        """The next cell; None if there is none to be tried now."""
        early = time.monotonic() - BUSY_SECONDS
        for cell in self._cells:
            if self._tried.get(cell.id, -math.inf) <= early:
                self._cells.remove(cell)
                return cell
        return None

    def put_behind(self, cell: Cell) -> bool:
        """Whether it is new that this cell runs elsewhere."""
        self._cells.append(cell)
        new = cell.id not in self._tried
        self._tried[cell.id] = time.monotonic()
        return new

    @property
    def elsewhere(self) -> int:
        """How many run elsewhere, as far as is known."""
        return sum(cell.id in self._tried for cell in self._cells)


def run_grid(
    cells: Sequence[Cell],
    launcher: Launcher,
    folder: str | Path,
    on_finished: Callable[[Cell, Result], None] | None = None,
    progress: bool = True,
    title: str = "grid",
    report: GridReport | None = None,
) -> GridReport:
    """Run what is not finished, `launcher.slots` at a time, each on one thread; see the module's
    words.

    on_finished: called after every cell that this call finished, as for rewriting a table. What it
    raises as a UserError is reported for that cell.
    report: the one to fill, for who must read it after an interruption.
    UserError, before anything is run, if the folder holds finished runs of another configuration,
    two cells share an id, or a cell's configuration is none.
    Interrupted (exit status 130 or 143) on SIGINT or SIGTERM, once the children have saved; so they
    do before any other exception leaves.
    """
    folder = Path(folder).resolve()
    check(cells)
    report = GridReport() if report is None else report
    missing = []
    for cell in cells:
        if read_result(folder, cell) is not None:
            report.reused.append(cell.id)
        else:
            missing.append(cell)
    if not missing:
        return report
    queue = _Queue(missing)
    running: list[_Running] = []
    line = _Line(len(cells), len(report.reused), progress, title)
    with GracefulExit(say=line.say) as stop:
        try:
            while (queue or running) and not stop.requested:
                while len(running) < launcher.slots and (cell := queue.pop()) is not None:
                    try:
                        # First, since what another process writes just now may not be read yet.
                        check_free(folder / cell.id)
                        if read_result(folder, cell) is not None:  # by another grid, meanwhile
                            report.reused.append(cell.id)
                        else:
                            running.append(_start(cell, launcher, folder, line))
                    except JobIsBusy:
                        _put_behind(queue, cell, line)
                    except (UserError, OSError) as error:
                        _report(
                            report, Failure(cell, None, str(error), folder / cell.id / LOG), line
                        )
                for run in list(running):
                    try:
                        ended = _settle(run, folder, report, on_finished, line)
                    except JobIsBusy:  # on a cluster it is the node that finds out
                        _put_behind(queue, run.cell, line)
                        ended = True
                    if ended:
                        running.remove(run)
                line.show(report, running, queue)
                time.sleep(POLL_SECONDS)
            if stop.requested:
                for run in _stop(running):
                    _settle(run, folder, report, on_finished, line)
                done = len(report.reused) + len(report.finished)
                raise Interrupted(
                    stop.signum,
                    f"{done} of {len(cells)} runs are finished, those under way are saved; "
                    "the same command goes on",
                )
        except Exception:  # the program's own fault, which shall cost the others nothing
            for _ in _stop(running):
                pass
            raise
        finally:
            for run in running:
                run.job.kill()
            line.close()
    return report


def check(cells: Sequence[Cell]) -> None:
    """UserError if two cells share a name, or a cell's configuration is none."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.id in seen:
            other = seen[cell.id]
            raise UserError(
                f"two cells share the name {cell.id}: {shlex.join(other.arguments())} and "
                f"{shlex.join(cell.arguments())}"
            )
        seen[cell.id] = cell
    for cell in cells:
        cell.config()


def command_of(cell: Cell, folder: Path, resume: Path | None = None) -> list[str]:
    """The words of a cell's process; paths among its overrides are absolute, for any node."""
    values = cell.config().values
    paths = {key: get(values, key) for key in cell.overrides if key in PATH_KEYS}
    return [
        sys.executable,
        str(PROJECT_ROOT / "src" / "main.py"),
        *replace(cell, overrides={**cell.overrides, **paths}).arguments(),
        "torch_threads=1",
        f"local_results_path={folder / cell.id}",
        *([f"resume={resume}"] if resume else []),
    ]


def _put_behind(queue: _Queue, cell: Cell, line: _Line) -> None:
    if queue.put_behind(cell):
        line.say(f"{cell.id} runs elsewhere: another process is in its folder. It is waited for")


def _start(cell: Cell, launcher: Launcher, folder: Path, line: _Line) -> _Running:
    home = folder / cell.id
    config = cell.config()
    resume, why_not = resumable(home, config.values)
    if why_not:
        line.say(f"{cell.id} starts anew: {why_not}")
    log = home / LOG
    start = log.stat().st_size if log.exists() else 0
    job = launcher.start(command_of(cell, folder, resume), home)
    return _Running(cell, job, log, start, int(config.values["t_max"]))


def _settle(run: _Running, folder: Path, report: GridReport, on_finished, line: _Line) -> bool:
    """Whether a process has ended; if so, take its result, or report its last words.

    JobIsBusy if it could not start since another process runs the cell.
    """
    try:
        status = run.job.poll()
    except JobIsBusy:
        raise
    except (UserError, OSError) as error:  # it could not be started, or was lost with its node
        line.ended(run, run.progress()[0])
        _report(report, Failure(run.cell, None, str(error), run.log), line)
        return True
    if status is None:
        return False
    line.ended(run, 1.0 if status == 0 else run.progress()[0])
    try:
        result = read_result(folder, run.cell) if status == 0 else None
        if result is None:
            words = last_lines(run.words()) or "it said nothing"
            _report(report, Failure(run.cell, status, words, run.log), line)
        else:
            if on_finished:
                on_finished(run.cell, result)
            report.finished.append(run.cell.id)
    except (UserError, OSError) as error:  # a damaged record, a table that cannot be written
        _report(report, Failure(run.cell, None, str(error), run.log), line)
    return True


def _report(report: GridReport, failure: Failure, line: _Line) -> None:
    report.failed[failure.cell.id] = failure
    line.say(str(failure))


def last_lines(words: str, count: int = TAIL_LINES) -> str:
    """The last lines, of a progress bar only its last state; a user's error alone if it is one."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in words.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line]
    if lines and lines[-1].startswith("error: "):
        return lines[-1]
    return "\n".join(lines[-count:])


def _stop(running: list[_Running]) -> Iterator[_Running]:
    """Ask the children to save and leave. A second signal to us ends the waiting (GracefulExit).

    Those that came to their end all the same are given out: they have results.
    """
    for run in running:
        run.ask_to_stop()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while running and time.monotonic() < deadline:
        for run in list(running):
            try:
                status = run.job.poll()
            except (UserError, OSError):
                status = 1
            if status == 0:
                yield run
            if status is not None:
                running.remove(run)
        time.sleep(POLL_SECONDS)


# --------------------------------------------------------------------------------------------------
# The progress line

SHOWN = 4  # running cells that the line names
UNITS = 1000  # of the bar, for one cell: a bar of cells alone would stand still for minutes


class _Line:
    """How far the grid is, and how long it will take at the rate of this session's own work.

    What was there before is no such work, nor is what failed: the share that a run resumes with,
    the rest of a failed one, and what another grid finished move the bar, and its start with it.
    """

    def __init__(self, n_cells: int, n_reused: int, progress: bool, title: str):
        self._n_cells = n_cells
        self._shown = -math.inf
        self._worked = 0.0  # by the runs that have ended; 1 is a whole cell
        self._bar = tqdm(
            total=n_cells * UNITS,
            initial=n_reused * UNITS,
            desc=title,
            disable=not progress,
            dynamic_ncols=True,
            smoothing=0.0,  # the mean rate: cells end in bursts
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            file=sys.stderr,
        )

    def say(self, words: str) -> None:
        self._bar.write(words, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def ended(self, run: _Running, share: float) -> None:
        """A run has ended here, so much of it done."""
        self._worked += run.worked(share)

    def show(self, report: GridReport, running: list[_Running], queue: _Queue) -> None:
        bar, now, over = self._bar, time.monotonic(), not running and not queue
        if bar.disable or (not over and now - self._shown < PROGRESS_SECONDS):
            return
        self._shown = now
        states = [run.progress() for run in running]
        ended = len(report.reused) + len(report.finished) + len(report.failed)
        parts = [f"{ended} of {self._n_cells} runs"]
        parts += [f"{len(report.failed)} failed"] if report.failed else []
        parts += [f"{queue.elsewhere} running elsewhere"] if queue.elsewhere else []
        shown = [f"{run.cell.id} {words}" for run, (_, words) in zip(running, states)]
        parts += shown[:SHOWN] + ([f"{len(shown) - SHOWN} more"] if len(shown) > SHOWN else [])
        bar.set_postfix_str(", ".join(parts), refresh=over)
        shares = [share for share, _ in states]
        worked = self._worked + sum(run.worked(share) for run, share in zip(running, shares))
        position = max(bar.n, int((ended + sum(shares)) * UNITS))
        bar.initial = position - worked * UNITS
        bar.update(position - bar.n)


def _indent(words: str) -> str:
    return "\n".join(f"  | {line}" for line in words.splitlines())
