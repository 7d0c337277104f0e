"""Where the processes of a campaign run: on this machine, or on the nodes of a Ray cluster.

A pool has `slots` (how many at a time), `submit`, `stop` and `close`, which `LocalPool` describes.
What a process writes goes to `{home}/log.txt`; on a cluster `home` is therefore on a file system
that all nodes share, as the project and its Python environment are, at the same paths.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from inspo.utils.errors import ConfigError, UserError
from inspo.utils.paths import PROJECT_ROOT

LOG = "log.txt"
BACKENDS = ("local", "ray")


class CellIsBusy(UserError):
    """Another process runs in the folder."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command line that choose a pool."""
    add = parser.add_argument
    cpus = "runs at a time (default: 2; ray: the cluster's CPUs)"
    add("--jobs", type=int, metavar="N", help=cpus)
    where = "where runs go: this machine (local, default), or a Ray cluster"
    add("--backend", default="local", metavar="|".join(BACKENDS), help=where)
    add("--address", metavar="A", help="ray: the cluster to run on")
    add("--gpus", type=float, metavar="G", default=0.0, help="ray: a run's share of a GPU")
    side_by_side = "this machine: so many runs on each of its GPUs, each on CPUs of its own"
    add("--jobs-per-gpu", type=int, metavar="N", help=side_by_side)


def check_options(
    backend: str, jobs: int | None, address: str | None, gpus: float, jobs_per_gpu: int | None
) -> None:
    """ConfigError if a command line asks for a pool that cannot be."""
    if backend not in BACKENDS:
        raise ConfigError(f"--backend: expected {' or '.join(BACKENDS)}, found '{backend}'")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, found {jobs}")
    if gpus < 0:
        raise ConfigError(f"--gpus: expected at least 0, found {gpus}")
    for option, given in (("--address", address), ("--gpus", gpus)):
        if given and backend != "ray":
            raise ConfigError(f"{option} belongs to --backend ray; found --backend {backend}")
    if jobs_per_gpu is None:
        return
    if backend == "ray":
        raise ConfigError(
            "--jobs-per-gpu belongs to --backend local; on Ray --gpus 0.25 puts four on a GPU"
        )
    if jobs_per_gpu < 1:
        raise ConfigError(f"--jobs-per-gpu: expected at least 1, found {jobs_per_gpu}")
    if jobs is not None:
        raise ConfigError("--jobs and --jobs-per-gpu: one of them says how many run at a time")
    if not visible_gpus():
        raise ConfigError(
            "--jobs-per-gpu: torch sees no GPU on this machine. Use --jobs N for runs on the CPU"
        )


def pool_options(options: Any) -> tuple[Any, ...]:
    """What `check_options` and `make_pool` take, from a command line's options."""
    return options.backend, options.jobs, options.address, options.gpus, options.jobs_per_gpu


def make_pool(
    backend: str,
    jobs: int | None,
    address: str | None,
    gpus: float,
    jobs_per_gpu: int | None = None,
) -> Pool:
    """The pool for options that have passed `check_options`.

    jobs: how many at a time; None: 2 here, on Ray one for each of the cluster's CPUs.
    """
    if backend == "ray":
        return RayPool(jobs, address, gpus)
    if jobs_per_gpu:
        shares = gpu_shares(visible_gpus(), jobs_per_gpu, sorted(os.sched_getaffinity(0)))
        return LocalPool(len(shares), shares)
    return LocalPool(jobs or 2)


@dataclass(frozen=True)
class Share:
    """What a run may use: a GPU, as CUDA_VISIBLE_DEVICES names it, and CPUs; None: all."""

    gpu: str | None = None
    cpus: tuple[int, ...] | None = None


def visible_gpus() -> list[str]:
    """This machine's GPUs by the names of CUDA_VISIBLE_DEVICES."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(k) for k in range(torch.cuda.device_count())]
    return names if torch.cuda.is_available() else []


def gpu_shares(gpus: Sequence[str], jobs_per_gpu: int, cpus: Sequence[int]) -> list[Share]:
    """A share for each run: the GPUs in turn, the CPUs in equal parts, each at least one."""
    n = len(gpus) * jobs_per_gpu
    parts = [cpus[k * len(cpus) // n : (k + 1) * len(cpus) // n] for k in range(n)]
    return [
        Share(gpus[k % len(gpus)], tuple(part or [cpus[k % len(cpus)]]))
        for k, part in enumerate(parts)
    ]


class LocalPool:
    """Processes of this machine, `jobs` at a time, each on one of `shares` if there are any."""

    def __init__(self, jobs: int, shares: Sequence[Share] = ()):
        self.slots = jobs
        self._threads = ThreadPoolExecutor(jobs)
        self._shares = shares or [Share()] * jobs
        self._processes: list[tuple[int, subprocess.Popen[bytes]]] = []  # with their share

    def submit(self, command: Sequence[str], home: Path) -> Future[int]:
        """Start a command in the folder `home`, made if it is missing; its exit status to come.

        CellIsBusy, here or from the future, if another process runs in the folder.
        """
        self._processes = [(k, p) for k, p in self._processes if p.returncode is None]
        taken = [k for k, _ in self._processes]
        free = min(range(self.slots), key=taken.count)
        process = spawn(command, home, self._shares[free])
        self._processes.append((free, process))
        return self._threads.submit(process.wait)

    def stop(self) -> None:
        """Ask all processes to save and leave. To be called once: a second SIGTERM ends at once."""
        for _, process in self._processes:
            process.terminate()

    def close(self) -> None:
        """End what still runs, at once, and give back what the pool holds."""
        for _, process in self._processes:
            process.kill()
        self._threads.shutdown()


def spawn(
    command: Sequence[str], home: Path, share: Share | None = None
) -> subprocess.Popen[bytes]:
    """Start a command with one thread on its share, its output appended to `{home}/log.txt`.

    CellIsBusy if another process runs there: the child holds the folder's lock as long as it lives.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home) as lock, open(home / LOG, "ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        # A session of its own: Ctrl-C in a terminal reaches all of its group, and a second
        # signal, ours, would make the child leave without saving.
        process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, start_new_session=True, pass_fds=[lock.fileno()],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            | ({"CUDA_VISIBLE_DEVICES": share.gpu} if share and share.gpu else {}),
        )  # fmt: skip
    if share and share.cpus:  # before it has started threads, which keep to them too
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, share.cpus)
    return process


def check_free(home: Path) -> None:
    """CellIsBusy if another process runs in the folder; one that is missing is free."""
    if home.is_dir():
        _lock(home).close()


def _lock(home: Path) -> TextIO:
    """The right to run in a folder. It lasts as long as the process that inherits the file."""
    lock = open(home / ".lock", "w")  # noqa: SIM115  (closed by who starts the child)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise CellIsBusy(f"{home} is in use: another process runs this cell") from error
        raise UserError(  # a file system without locks would be waited for
            f"{home}/.lock cannot be locked: {error.strerror}. Choose a folder for results on a "
            "file system that has locks"
        ) from error
    return lock


class RayPool:
    """Processes on a Ray cluster: the existing one at `address`, or one made for this occasion.

    Each is started by a task that holds one CPU and `gpus` GPUs of its node (a share is possible).
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
        here: dict[str, Any] = {"num_cpus": jobs or os.cpu_count(), "include_dashboard": False}
        path = {"env_vars": {"PYTHONPATH": str(PROJECT_ROOT / "package")}}
        try:
            host, _, port = (address or "").rpartition(":")
            if "://" not in host and port.isdigit():  # else Ray tries for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=path,
                **({} if address else here),
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster answers at {address or 'this machine'}: {error}. Expected what "
                "`ray start --head` printed (--address HOST:PORT, or auto on one of its nodes). A "
                "cluster that asks for a token needs RAY_AUTH_MODE=token, and the token, in this "
                "environment as well"
            ) from error
        self._ray = ray
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run_on_node)
        self._references: list[Any] = []
        self.slots = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, command: Sequence[str], home: Path) -> Future[int]:
        reference = self._task.remote(list(command), str(home))
        self._references.append(reference)
        return reference.future()

    def stop(self) -> None:
        for reference in self._references:
            self._ray.cancel(reference)

    def close(self) -> None:
        self._ray.shutdown()


def _run_on_node(command: Sequence[str], home: str) -> int:
    """The exit status of a command, once it has ended; a cancelled task ends it first."""
    process = spawn(command, Path(home))
    try:
        while process.poll() is None:  # not wait(), which an interrupt does not reach
            time.sleep(0.1)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
    return process.wait()


Pool = LocalPool | RayPool
