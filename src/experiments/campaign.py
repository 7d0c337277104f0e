"""Runs cells, several at a time, and resumes, repeats and waits where that is needed.

    cells = [Cell(f"xor_b/inspo/seed{s}", "inspo", "matrix_offline",
                  {"map_name": "xor", "quality": "b", "seed": s}) for s in range(5)]
    report = run_cells(cells, LocalPool(2), Path("results/runs/paper"))
    runs = {cell.id: finished_run_of(folder, cell) for cell in cells}  # None: not finished

What is finished is not run again, what was interrupted goes on from its newest checkpoint, and what
fails is reported and does not stop the rest. What another process runs, a second campaign or the
child of a killed one, is waited for. So the answer to a kill, a full disk or a mended bug is always
the same: the same command once more. Where the processes run is the pool's to know (pool.py).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inspo.experiments.cells import Cell, check_cells, command_of, finished_run_of
from inspo.experiments.pool import LOG, CellIsBusy, Pool, check_free
from inspo.experiments.records import Doing, Run, doing, newest_checkpoint
from inspo.utils.errors import CheckpointError, UserError
from inspo.utils.interrupts import GracefulExit
from inspo.utils.keys import resume_differences
from inspo.utils.phases import TRAINING

TAIL_LINES = 12  # of a failed cell's log, in its report
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 2.0
PATIENCE_SECONDS = 120.0  # for the processes to save, once they were asked to stop
BUSY_SECONDS = 10.0  # between two tries of a cell that another process runs
SHOWN = 4  # running cells that the progress display names
STARTING = Doing("starting", 0.0, "starting")

OnFinished = Callable[[Cell, Run], None]


@dataclass(frozen=True)
class Failure:
    """What went wrong with a cell. status: the exit status of its process, where it had one."""

    cell: Cell
    status: int | None
    message: str  # the last lines of its log, or the error
    log: Path

    def __str__(self) -> str:
        status = "" if self.status is None else f" (exit status {self.status})"
        lines = "\n".join(f"  | {line}" for line in self.message.splitlines())
        return f"{self.cell.id} failed{status}:\n{lines}\n  all of it: {self.log}"


@dataclass
class CampaignReport:
    """What one call of `run_cells` did with each cell, by id."""

    reused: list[str] = field(default_factory=list)  # were finished before
    finished: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        return len(self.reused) + len(self.finished) + len(self.failed)


def run_cells(
    cells: Sequence[Cell], pool: Pool, folder: str | Path, on_finished: OnFinished | None = None,
    title: str = "runs", progress: bool = True, report: CampaignReport | None = None,
) -> CampaignReport:  # fmt: skip
    """Run what is not finished, `pool.slots` at a time, each on one thread.

    on_finished: called after every cell that this call finished, as for rewriting a table. What it
    raises as a UserError is reported for that cell.
    report: the one to fill, for who must read it after an interruption.
    UserError, before anything is run, if the folder holds finished runs of another configuration,
    two cells share an id, or a cell's configuration is none.
    Interrupted (exit status 130 or 143) on SIGINT or SIGTERM, once the processes have saved; so
    they do before any other exception leaves. The pool is closed when this returns or raises.
    """
    report = report or CampaignReport()
    line = _Line(len(cells), title, progress)
    campaign = _Campaign(Path(folder).resolve(), pool, on_finished, report, line)
    try:
        check_cells(cells)
        campaign.waiting = [cell for cell in cells if not campaign.reuse(cell)]
        with GracefulExit(line.say) as stop:
            try:
                while (campaign.waiting or campaign.running) and not stop.requested:
                    campaign.step()
            except Exception:  # a bug must not cost the other runs what they have done
                campaign.stop()
                raise
            if stop.requested:
                campaign.stop()
                done = len(report.reused) + len(report.finished)
                stop.check(
                    f"{done} of {len(cells)} runs are finished, those under way are saved; "
                    "the same command goes on"
                )
    finally:
        line.close()
        pool.close()
    return report


@dataclass
class _Running:
    """A cell whose process runs. first: the share of its training that it began with."""

    cell: Cell
    home: Path
    log_start: int  # where this session's output begins in the log
    began: float
    first: float
    share: float = 0.0  # how much of the cell is done, 0 to 1: of its training
    doing: Doing = STARTING

    def __post_init__(self) -> None:
        self.share = self.first

    def look(self) -> None:
        """Read what it is at."""
        self.doing = doing(self.home, self.began) or self.doing
        if self.doing.name == TRAINING:
            self.share = max(self.share, self.doing.share)

    def output(self) -> str:
        """All that this session has written to its log."""
        try:
            with open(self.home / LOG, "rb") as file:
                file.seek(self.log_start)
                return file.read().decode(errors="replace")
        except FileNotFoundError:  # it never reached a node
            return ""


@dataclass
class _Campaign:
    """The state of one call of `run_cells`."""

    folder: Path
    pool: Pool
    on_finished: OnFinished | None
    report: CampaignReport
    line: _Line
    waiting: list[Cell] = field(default_factory=list)
    running: dict[Future[int], _Running] = field(default_factory=dict)
    busy_since: dict[str, float] = field(default_factory=dict)  # cell id -> when it ran elsewhere

    def reuse(self, cell: Cell) -> bool:
        """Whether the cell is finished already."""
        if finished_run_of(self.folder, cell) is None:
            return False
        self.report.reused.append(cell.id)
        return True

    def step(self) -> None:
        """Start what can be started, wait a moment, take what has ended."""
        early = time.monotonic() - BUSY_SECONDS
        ready = [c for c in self.waiting if self.busy_since.get(c.id, -math.inf) <= early]
        for cell in ready:
            if len(self.running) >= self.pool.slots:
                break
            self.waiting.remove(cell)
            self._start(cell)
        if self.running:
            done, _ = wait(self.running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                self._settle(future)
        else:
            time.sleep(POLL_SECONDS)
        elsewhere = sum(cell.id in self.busy_since for cell in self.waiting)
        self.line.show(self.report, list(self.running.values()), elsewhere)

    def _start(self, cell: Cell) -> None:
        home = self.folder / cell.id
        try:
            # First, since what another process writes just now may not be read yet.
            check_free(home)
            if self.reuse(cell):  # by another campaign, meanwhile
                return
            values = cell.config().values
            model, step, reason = resumable(home, values)
            if reason:
                self.line.say(f"{cell.id} starts anew: {reason}")
            log, t_max = home / LOG, int(values["t_max"])
            start = log.stat().st_size if log.exists() else 0
            running = _Running(cell, home, start, time.time(), min(1.0, step / t_max))
            self.running[self.pool.submit(command_of(cell, self.folder, model), home)] = running
        except CellIsBusy:
            self._put_behind(cell)
        except (UserError, OSError) as error:
            self._fail(cell, None, str(error))

    def _put_behind(self, cell: Cell) -> None:
        if cell.id not in self.busy_since:
            self.line.say(f"{cell.id} runs elsewhere: another process is in its folder. Waiting")
        self.busy_since[cell.id] = time.monotonic()
        self.waiting.append(cell)

    def _settle(self, future: Future[int]) -> None:
        """Take the result of a process that has ended, or report its last lines."""
        running = self.running.pop(future)
        running.look()
        cell, share = running.cell, running.share
        try:
            status = future.result()
        except CellIsBusy:  # on a cluster it is the node that notices
            self._put_behind(cell)
            return
        except Exception as error:  # it could not be started, or was lost with its node
            self.line.worked += share - running.first
            self._fail(cell, None, f"{getattr(error, 'cause', None) or error}")
            return
        self.line.worked += (share if status else 1.0) - running.first
        try:
            run = None if status else finished_run_of(self.folder, cell)
            if run is None:
                self._fail(cell, status, last_lines(running.output()) or "it wrote nothing")
                return
            if self.on_finished:
                self.on_finished(cell, run)
            self.report.finished.append(cell.id)
        except (UserError, OSError) as error:  # a damaged record, a table that cannot be written
            self._fail(cell, None, str(error))

    def _fail(self, cell: Cell, status: int | None, message: str) -> None:
        failure = Failure(cell, status, message, self.folder / cell.id / LOG)
        self.report.failed[cell.id] = failure
        self.line.say(str(failure))

    def stop(self) -> None:
        """Let the processes save and leave; take the results of those that ended all the same.

        A second signal to us ends the waiting (GracefulExit).
        """
        self.pool.stop()
        done, _ = wait(self.running, timeout=PATIENCE_SECONDS)
        for future in done:
            if future.exception() is None and future.result() == 0:
                self._settle(future)


def resumable(home: Path, requested: Mapping[str, Any]) -> tuple[Path | None, int, str]:
    """(model folder to go on from, its last step, "") or (None, 0, why not)."""
    from inspo.utils import checkpoints  # torch; the help does without

    model = newest_checkpoint(home)
    if model is None:
        return None, 0, ""
    try:
        manifest = checkpoints.read_manifest(checkpoints.find_checkpoint(model))
    except CheckpointError as error:
        return None, 0, str(error)
    now = json.loads(json.dumps(dict(requested)))
    differences = resume_differences(manifest.get("config") or {}, now)
    if differences:
        keys = ", ".join(key for key, _, _ in differences)
        return None, 0, f"{model} is of another configuration ({keys})"
    return model, manifest["step"], ""


def last_lines(output: str, count: int = TAIL_LINES) -> str:
    """The last lines, of a progress bar only its last state; a user's error alone if it is one."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in output.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if line]
    if lines and lines[-1].startswith("error: "):
        return lines[-1]
    return "\n".join(lines[-count:])


class _Line(tqdm):
    """How far the cells are, and how long they will take at the rate of this session's own work.

    What was there before is no such work, nor is what failed: the share that a run resumes with,
    the rest of a failed one, and what another campaign finished move the bar, and its start too.
    What the runs are at stands behind the bar.
    """

    def __init__(self, n_cells: int, title: str, progress: bool):
        self.worked, self._shown = 0.0, -math.inf  # worked: by the runs that have ended, in cells
        super().__init__(
            total=float(n_cells),
            desc=title,
            disable=not progress,
            dynamic_ncols=True,
            smoothing=0.0,  # the mean rate: cells end in bursts
            miniters=0,  # what the runs are at changes while the bar stands still
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            file=sys.stderr,
        )

    def say(self, message: str) -> None:
        self.write(message, file=sys.stderr)

    def show(self, report: CampaignReport, running: Sequence[_Running], elsewhere: int) -> None:
        now, over = time.monotonic(), report.ended == self.total
        if self.disable or (not over and now - self._shown < PROGRESS_SECONDS):
            return
        self._shown = now
        for run in running:
            run.look()
        runs = [f"{run.cell.id}: {run.doing.text}" for run in running[:SHOWN]]
        runs += [f"{len(running) - SHOWN} more"] if len(running) > SHOWN else []
        parts = [f"{report.ended} of {self.total:.0f} runs"]
        parts += [f"{len(report.failed)} failed"] if report.failed else []
        parts += [f"{elsewhere} running elsewhere"] if elsewhere else []
        self.set_postfix_str("; ".join(parts + runs), refresh=over)
        worked = self.worked + sum(run.share - run.first for run in running)
        position = max(self.n, report.ended + sum(run.share for run in running))
        self.initial = position - worked
        self.update(position - self.n)
