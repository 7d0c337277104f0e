"""A `VectorEnv` made of `MultiAgentEnv` objects: in this process, or in one process each."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing as mp
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from inspo.envs.multiagentenv import MultiAgentEnv, VectorEnv, VectorStep
from inspo.utils.errors import EnvironmentFailure, UserError

log = logging.getLogger("main")  # the program's console and cout.txt

EnvFactory = Callable[[], MultiAgentEnv]
Answer = tuple[tuple[Any, ...], dict[str, np.ndarray]]  # of a reset or a step, and what is seen

FIRST_PAUSE = 1.0  # seconds before a restart; doubled with each failure in a row
LONGEST_PAUSE = 60.0
PATIENCE = 10.0  # seconds that processes have to close what they hold
TAIL = 4000  # characters of a failed process's output that are shown


def _advance(env: MultiAgentEnv, method: str, argument: Any) -> Answer:
    """`reset(seed)` or `step(actions)`: what it returned after the observations, and these."""
    _, *result = getattr(env, method)(argument)
    return tuple(result), {
        "state": np.asarray(env.get_state(), dtype=np.float32),
        "obs": np.asarray(env.get_obs(), dtype=np.float32),
        "avail_actions": np.asarray(env.get_avail_actions(), dtype=np.int32),
    }


class SerialVectorEnv(VectorEnv):
    """Environments of this process, stepped one after the other.

    `reset` gives each episode of each environment a seed of its own, drawn from `seed` and the
    number of resets. `simulator`: name and version, as the environments describe themselves.
    """

    def __init__(self, makers: list[EnvFactory]):
        self.n_envs = len(makers)
        self._start(makers)
        try:
            self._info = self._call(0, "get_env_info")
            self.simulator = self._call(0, "describe")
        except BaseException:
            self.close()
            raise
        self.n_agents = self._info["n_agents"]
        self.episode_limit = self._info["episode_limit"]
        self._episodes = 0
        self._base_seed = 0
        self._last: list[dict[str, np.ndarray]] = [{} for _ in makers]
        self._done = np.zeros(self.n_envs, dtype=bool)
        self._lost = np.zeros(self.n_envs, dtype=bool)

    def _start(self, makers: list[EnvFactory]) -> None:
        self._envs = [make() for make in makers]

    def _call(self, i: int, method: str) -> Any:
        return getattr(self._envs[i], method)()

    def _advance_many(self, method: str, arguments: dict[int, Any]) -> dict[int, Answer]:
        """`_advance` of some environments; those that were lost on the way are left out."""
        return {i: _advance(self._envs[i], method, x) for i, x in arguments.items()}

    def get_env_info(self) -> dict[str, int]:
        return self._info

    def seed(self, seed: int) -> None:
        self._base_seed, self._episodes = seed, 0

    def reset(self) -> None:
        self._reset(list(range(self.n_envs)))

    def reset_lost(self) -> None:
        self._reset(np.flatnonzero(self._lost).tolist())

    def _reset(self, waiting: list[int]) -> None:
        self._done[waiting] = self._lost[waiting] = False
        while waiting:
            # Each episode of each environment has a seed of its own, so that a resumed run can go
            # on; one that fails to start is not tried again with the same one.
            root = np.random.SeedSequence([self._base_seed, self._episodes])
            seeds = root.generate_state(self.n_envs)
            self._episodes += 1
            started = self._advance_many("reset", {i: int(seeds[i]) for i in waiting})
            for i, (_, observation) in started.items():
                self._last[i] = observation
            waiting = [i for i in waiting if i not in started]

    def observe(self) -> dict[str, np.ndarray]:
        return {key: np.stack([obs[key] for obs in self._last]) for key in self._last[0]}

    def step(self, actions: np.ndarray) -> VectorStep:
        n = self.n_envs
        reward = np.zeros(n, dtype=np.float32)
        terminated, truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        info: dict[str, np.ndarray] = {}
        live = np.flatnonzero(~self._done).tolist()
        answers = self._advance_many("step", {i: actions[i] for i in live})
        for i, (result, observation) in answers.items():
            reward[i], terminated[i], truncated[i], env_info = result
            self._last[i] = observation
            for name, value in env_info.items():
                if np.ndim(value) == 0:
                    info.setdefault(name, np.zeros(n, dtype=np.float32))[i] = value
        truncated &= ~terminated
        self._lost[[i for i in live if i not in answers]] = True
        self._done |= terminated | truncated | self._lost
        return VectorStep(reward, terminated, truncated, info)

    def lost(self) -> np.ndarray:
        return self._lost.copy()

    def get_rng(self) -> list[int]:
        return [self._base_seed, self._episodes]

    def set_rng(self, state: list[int]) -> None:
        self._base_seed, self._episodes = state

    def save_replay(self) -> str:
        return str(self._call(0, "save_replay"))

    def close(self) -> None:
        for env in self._envs:
            env.close()


# ---------------------------------------------------------------------------- inside a worker


def _detach(output: Path) -> None:
    """Make this process the head of a group that ends with its parent, and write to `output`.

    The group is the worker and whatever it starts (a game). Ctrl-C in the terminal does not reach
    it: the parent decides when it ends.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _end_group())
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)  # it may be killed at any time
    os.environ["TMPDIR"] = str(output.parent)  # removed by the parent, even if a game is killed
    tempfile.tempdir = None
    threading.Thread(target=_end_with, args=(mp.parent_process(),), daemon=True).start()


def _end_group() -> None:
    """End this process and whatever it started; only after `_detach`."""
    os.killpg(0, signal.SIGKILL)


def _end_with(parent: mp.process.BaseProcess) -> None:
    """Wait until the parent is gone, for whatever reason, then end the group."""
    wait([parent.sentinel])
    _end_group()


def _serve(pipe: Connection, make: EnvFactory, output: Path) -> None:
    """The body of a worker: answers each (method, *arguments) with (outcome, result)."""
    _detach(output)
    try:
        _answer(pipe, make)
    finally:
        _end_group()  # a plain exit would leave the game running


def _answer(pipe: Connection, make: EnvFactory) -> None:
    try:
        env = make()
        while True:
            try:
                method, *arguments = pipe.recv()
            except EOFError:
                return  # the parent has closed the pipe
            if method in ("reset", "step"):
                result = _advance(env, method, *arguments)
            else:
                result = getattr(env, method)(*arguments)
            pipe.send(("done", result))
            if method == "close":
                return
    except EnvironmentFailure as error:
        answer: tuple[str, Any] = ("failed", (str(error), ""))
    except UserError as error:
        answer = ("refused", error)
    except BaseException as error:
        reason = traceback.format_exception_only(error)[-1].strip()
        answer = ("failed", (reason, traceback.format_exc()))
    with contextlib.suppress(OSError):  # the parent is gone too
        pipe.send(answer)


# ------------------------------------------------------------------------- in the parent


@dataclass
class _Worker:
    """A process with one environment. output: the file with what it and its game print."""

    process: mp.process.BaseProcess
    pipe: Connection
    output: Path
    killed: bool = False

    def kill(self) -> None:
        """End the process and everything that it started, once."""
        if self.killed:
            return
        self.killed = True
        # Before the process is reaped: until then no other group can get its number.
        with contextlib.suppress(OSError):  # no such group: it had not yet made its own
            assert self.process.pid is not None  # it has been started
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(timeout=PATIENCE)
        self.pipe.close()

    def printed(self) -> str:
        """The end of what it printed."""
        text = ""
        with contextlib.suppress(OSError):  # it died before it made the file
            text = self.output.read_bytes()[-TAIL:].decode(errors="replace").strip()
        return text or "(nothing)"


def _end(workers: list[_Worker], folder: Path) -> None:
    """Leave nothing behind. Runs at the end of the program too, where `close` was not called."""
    for worker in workers:
        worker.kill()
    shutil.rmtree(folder, ignore_errors=True)


class _Lost(Exception):
    """A worker gave no answer: (the reason in a line, a traceback or nothing)."""


class ProcessVectorEnv(SerialVectorEnv):
    """Each environment in a process of its own; a step waits for the slowest.

    A process that dies, fails, or does not answer within `timeout` seconds is killed with
    everything that it started, and its episode is `lost`. The next reset starts it anew, after a
    pause that grows. After `max_failures` failures of one environment without a whole episode in
    between, EnvironmentFailure shows what the process printed. Any other UserError of the
    environment is no failure: it is raised as it is.
    """

    def __init__(self, makers: list[EnvFactory], timeout: float = 300.0, max_failures: int = 5):
        self._timeout, self._max_failures = timeout, max_failures
        self._failures = np.zeros(len(makers), dtype=np.int64)  # in a row
        super().__init__(makers)

    def _start(self, makers: list[EnvFactory]) -> None:
        self._makers = makers
        self._folder = Path(tempfile.mkdtemp(prefix="environments-"))
        self._workers: list[_Worker] = []
        self._end = weakref.finalize(self, _end, self._workers, self._folder)
        for i in range(len(makers)):
            self._workers.append(self._launch(i))

    def _launch(self, i: int) -> _Worker:
        # Spawned, not forked: a fork copies the threads' locks of torch and of the simulators.
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        folder = Path(tempfile.mkdtemp(prefix=f"{i}-", dir=self._folder))
        output = folder / "output.txt"
        process = context.Process(target=_serve, args=(there, self._makers[i], output), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here, output)

    def _send(self, i: int, call: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):  # it died: `_receive` finds out how
            self._workers[i].pipe.send(call)

    def _receive(self, i: int, method: str, deadline: float) -> Any:
        """The answer of worker i; raises _Lost if there is none."""
        worker = self._workers[i]
        try:
            if not worker.pipe.poll(max(0.0, deadline - time.monotonic())):
                reason = f"hangs: no answer to '{method}' within {self._timeout:g} s (env_timeout)"
                raise _Lost(reason, "")
            outcome, result = worker.pipe.recv()
        except (EOFError, OSError):
            wait([worker.process.sentinel], timeout=PATIENCE)
            worker.kill()
            code = worker.process.exitcode
            raise _Lost(f"died (exit code {code}) without a message", "") from None
        if outcome == "refused":
            raise result
        if outcome == "failed":
            reason, details = result
            raise _Lost(f"failed: {reason}", details)
        return result

    def _call(self, i: int, method: str) -> Any:
        self._send(i, (method,))
        try:
            return self._receive(i, method, time.monotonic() + self._timeout)
        except _Lost as loss:
            raise self._failure(i, loss) from None

    def _advance_many(self, method: str, arguments: dict[int, Any]) -> dict[int, Answer]:
        self._revive([i for i in arguments if self._workers[i].killed])
        for i, argument in arguments.items():
            self._send(i, (method, argument))
        deadline = time.monotonic() + self._timeout
        answers = {}
        for i in arguments:
            try:
                answers[i] = self._receive(i, method, deadline)
            except _Lost as loss:
                self._drop(i, loss)
        return answers

    def _drop(self, i: int, loss: _Lost) -> None:
        """Kill worker i, count its failure, and give up if there are too many in a row."""
        self._workers[i].kill()
        self._failures[i] += 1
        if self._failures[i] >= self._max_failures:
            raise self._failure(i, loss)
        log.warning(
            f"environment worker {i} {loss.args[0]}; its episode is dropped, and it is started anew"
        )

    def _failure(self, i: int, loss: _Lost) -> EnvironmentFailure:
        reason, details = loss.args
        return EnvironmentFailure(
            f"environment worker {i} {reason}\n"
            f"Failures in a row: {self._failures[i]} (env_max_failures: {self._max_failures})\n"
            f"{details}What it printed ends with:\n{self._workers[i].printed()}"
        )

    def _revive(self, dead: list[int]) -> None:
        """Start workers anew, after a pause in which a busy machine may recover."""
        if not dead:
            return
        failures = int(self._failures[dead].max())
        time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (failures - 1)))
        for i in dead:
            shutil.rmtree(self._workers[i].output.parent, ignore_errors=True)
            self._workers[i] = self._launch(i)

    def step(self, actions: np.ndarray) -> VectorStep:
        out = super().step(actions)
        self._failures[out.terminated | out.truncated] = 0
        return out

    def close(self) -> None:
        for i in range(len(self._workers)):
            self._send(i, ("close",))
        deadline = time.monotonic() + PATIENCE
        waiting = {w.process.sentinel for w in self._workers}
        while waiting and (left := deadline - time.monotonic()) > 0:
            waiting -= set(wait(waiting, timeout=left))
        self._end()
