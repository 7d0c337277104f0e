"""Where the processes of a grid run: on this machine, or on the nodes of a Ray cluster.

The engine (grid.py) knows this much of either: a launcher with `slots` (how many at a time),
`start(command, home)` and `close()`, and the job that `start` gives, with the three methods of
`subprocess.Popen` that it needs: `poll()`, `terminate()` and `kill()`. What a job says lies in
`{home}/log.txt` and is read from there, so on a cluster `home` is on a file system that all nodes
share, as the project and its Python environment are, at the same paths.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from inspo.utils.errors import ConfigError, UserError
from inspo.utils.paths import PROJECT_ROOT

LOG = "log.txt"
BACKENDS = ("local", "ray")


class Job(Protocol):
    def poll(self) -> int | None:
        """The exit status; None while it runs. UserError if it could not run, or was lost."""

    def terminate(self) -> None:
        """Ask it to save and leave (SIGTERM)."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    slots: int

    def start(self, command: Sequence[str], home: Path) -> Job:
        """Start a command that lives in the folder `home`, which is made if it is missing."""

    def close(self) -> None:
        """Give back what the launcher itself holds; all its jobs have ended."""


class JobIsBusy(UserError):
    """Another process runs in the folder."""


def check_options(backend: str, jobs: int | None, address: str | None, gpus: float) -> None:
    """ConfigError if a command line asks for what no launcher can be."""
    if backend not in BACKENDS:
        raise ConfigError(f"--backend: expected {' or '.join(BACKENDS)}, found '{backend}'")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, found {jobs}")
    if gpus < 0:
        raise ConfigError(f"--gpus: expected at least 0, found {gpus}")
    for option, given in (("--address", address), ("--gpus", gpus)):
        if given and backend != "ray":
            raise ConfigError(f"{option} belongs to --backend ray; found --backend {backend}")


def make_launcher(backend: str, jobs: int | None, address: str | None, gpus: float) -> Launcher:
    """The launcher that a command line asks for; its options are those of `check_options`.

    jobs: how many at a time; None: 2 here, on Ray one for each of the cluster's CPUs.
    """
    check_options(backend, jobs, address, gpus)
    return RayLauncher(jobs, address, gpus) if backend == "ray" else LocalLauncher(jobs or 2)


# --------------------------------------------------------------------------------------------------
# This machine


class LocalLauncher:
    """Processes of this machine."""

    def __init__(self, jobs: int):
        self.slots = jobs

    def start(self, command: Sequence[str], home: Path) -> Job:
        return spawn(command, home)

    def close(self) -> None:
        pass


def spawn(command: Sequence[str], home: Path) -> subprocess.Popen:
    """Start a command with one thread, its words appended to `{home}/log.txt`.

    JobIsBusy if another process runs there: the child holds the folder's lock as long as it lives.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = _lock(home)
    try:
        with open(home / LOG, "ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            # A session of its own: Ctrl-C in a terminal reaches all of its group, and a second
            # signal, ours, would make the child leave without saving.
            return subprocess.Popen(
                command,
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
    finally:
        lock.close()


def check_free(home: Path) -> None:
    """JobIsBusy if another process runs in the folder; one that is missing is free."""
    if home.is_dir():
        _lock(home).close()


def _lock(home: Path) -> TextIO:
    """The right to run in a folder. It lasts as long as the process that inherits the file."""
    lock = open(home / ".lock", "w")  # noqa: SIM115  (closed by who starts the child)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise JobIsBusy(f"{home} is in use: another process runs this cell") from error
    except OSError as error:  # to wait for a file system that has no locks would be for ever
        lock.close()
        raise UserError(
            f"{home}/.lock cannot be locked: {error.strerror}. Choose a folder for results on a "
            "file system that has locks"
        ) from error
    return lock


# --------------------------------------------------------------------------------------------------
# Ray


class RayLauncher:
    """Processes on a Ray cluster: the existing one at `address`, or one made for this occasion.

    Each job is an actor that holds one CPU and `gpus` GPUs of its node (a share is possible), and
    starts the same process there as `LocalLauncher` does here.
    """

    def __init__(self, jobs: int | None, address: str | None, gpus: float):
        # Ray's own environment, read when it is imported: no reports of usage; no hint about GPUs.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--backend ray needs the package ray, which cannot be imported "
                f"({error}). Install it with `pip install -r requirements-dev.txt`, "
                "or use --backend local"
            ) from error
        self._ray = ray
        if address:
            _check_port(address)
        here = {} if address else {"num_cpus": jobs or os.cpu_count(), "include_dashboard": False}
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT_ROOT / "package")}},
                **here,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise _no_cluster(address or "this machine", error) from error
        self.slots = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=4)(_Actor)

    def start(self, command: Sequence[str], home: Path) -> Job:
        return _RayJob(self._ray, self._actor.remote(), command, home)

    def close(self) -> None:
        self._ray.shutdown()


def _no_cluster(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster answers at {address}: {error}. Expected what `ray start --head` printed "
        "(--address HOST:PORT, or auto on one of its nodes). A cluster that asks for a token needs "
        "RAY_AUTH_MODE=token, and the token, in this environment as well"
    )


def _check_port(address: str) -> None:
    """UserError if nobody listens at HOST:PORT: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _no_cluster(address, error) from error


class _Actor:
    """Runs on a node: holds one process. Its methods are called in several threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._stopped = False

    def run(self, command: Sequence[str], home: str) -> int:
        """The exit status of the command, once it has ended."""
        with self._lock:
            if self._stopped:
                return -signal.SIGTERM
            self._process = spawn(command, Path(home))
        return self._process.wait()

    def signal(self, signum: int) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.send_signal(signum)

    def is_there(self) -> bool:
        return True


class _RayJob:
    def __init__(self, ray, actor, command: Sequence[str], home: Path):
        self._ray, self._actor = ray, actor
        self._there = actor.is_there.remote()
        self._status = actor.run.remote(list(command), str(home))
        self._ended: int | None = None

    def _ready(self, reference) -> bool:
        return bool(self._ray.wait([reference], timeout=0)[0])

    def poll(self) -> int | None:
        if self._ended is None and self._ready(self._status):
            exceptions = self._ray.exceptions
            try:
                self._ended = self._ray.get(self._status)
            except exceptions.RayTaskError as error:  # what `spawn` raised, from the node
                cause = error.cause
                raise (
                    cause
                    if isinstance(cause, UserError | OSError)
                    else UserError(f"the job could not be started on its node: {cause}")
                ) from None
            except exceptions.RayError as error:
                raise UserError(
                    f"Ray lost the job ({type(error).__name__}: its node or worker ended). The "
                    "same command goes on from its newest checkpoint"
                ) from None
            finally:
                self._release()
        return self._ended

    def terminate(self) -> None:
        """SIGTERM to the process; a job that still waits for a CPU of the cluster just ends."""
        if self._ready(self._there):
            self._actor.signal.remote(signal.SIGTERM)
        else:
            self._ended = -signal.SIGTERM
            self._release()

    def kill(self) -> None:
        if self._ready(self._there):
            self._ray.wait([self._actor.signal.remote(signal.SIGKILL)], timeout=5)
        self._ended = -signal.SIGKILL
        self._release()

    def _release(self) -> None:
        """Give the CPU back."""
        self._ray.kill(self._actor)
