"""What the campaigns share: their options, and the line of figures that each ends with.

A campaign tries the program at random for some minutes. It is run by hand, as in
`python tests/campaigns/kills.py --minutes 20 --seed 1`; `./test.sh` does not run it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "package"))


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """A parser with --minutes (how long to go on) and --seed (the same seed, the same tries)."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--minutes", type=float, default=20.0, help="how long to go on (default: 20)")
    made.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    return made


def tries(minutes: float) -> Iterator[int]:
    """0, 1, 2, ... until the minutes are over; at least one."""
    end = time.monotonic() + 60 * minutes
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1


def report(name: str, figures: Mapping[str, float]) -> None:
    """Print the campaign's one line of figures: `kills: kills 141, failures 0`."""
    print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in figures.items()), flush=True)


# --------------------------------------------------------------------------------------------------
# Commands in forked processes: what is imported here need not be imported again


def warm_up() -> None:
    """Import what runs import late, so that it is there in every process that is forked."""
    from inspo.utils.quiet import silence_third_parties

    silence_third_parties()
    import torch

    import inspo.utils.sacred_files  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.Adam(
        [torch.nn.Parameter(torch.zeros(1))]
    )  # imports a compiler, which takes longest


class Child:
    """A function in a process of its own, which is forked and has a session of its own.

    log: the file that gets what it prints. The function's value is the exit status; 99 for an
    exception, whose traceback is in the log.
    """

    def __init__(self, function: Callable[[], int], log: Path):
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                os.setsid()
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                status = function() or 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)

    def wait(self, seconds: float) -> int | None:
        """The exit status, minus the signal's number for a kill; None if it still runs."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= end:
                return None
            time.sleep(min(0.002, max(0.0, end - time.monotonic())))

    def kill(self) -> int:
        """SIGKILL, to this process alone. Its exit status, if it had just ended, or -9."""
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def left(self) -> list[int]:
        """The living processes of its session."""
        return [pid for pid, session, _ in processes() if session == self.pid]

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run(function: Callable[[], int], log: Path, seconds: float = 300.0) -> tuple[int, str]:
    """The exit status of a function in a process of its own, and what it printed."""
    child = Child(function, log)
    status = child.wait(seconds)
    if status is None:
        child.kill()
        return -signal.SIGALRM, child.printed()
    return status, child.printed()


def elsewhere(function: Callable[[], Any]) -> Any:
    """The value of a function that is called in a forked process, or what it raises.

    For all that uses tensorstore, whose threads survive no fork of this process.
    """
    inside, outside = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(Exception), os.fdopen(outside, "wb") as pipe:
            try:
                pickle.dump((function(), None), pipe)
            except Exception as error:
                pickle.dump((None, f"{type(error).__name__}: {error}"), pipe)
        os._exit(0)
    os.close(outside)
    with os.fdopen(inside, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    value, error = pickle.loads(content) if content else (None, "the process crashed")
    if error is not None:
        raise RuntimeError(error)
    return value


def processes() -> Iterator[tuple[int, int, str]]:
    """(number, session, command line) of each living process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state != "Z":
                yield int(folder.name), int(session), words


LEFTOVER = re.compile(r"\..*\.(tmp|lock|replaced|unpacked)|.*\.tmp")


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and locks in a folder. A grid's cells keep their lock's file, `.lock`."""
    return [path for path in folder.rglob("*") if LEFTOVER.fullmatch(path.name)]


def an_hour_later(folder: Path) -> None:
    """Make temporary files old: the program spares those of the last minute."""
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            os.utime(path, (time.time() - 3600,) * 2)


def same(one: Any, other: Any) -> bool:
    """Whether nested values are equal, tensors and arrays bit for bit."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(map(same, one, other))
        )
    if hasattr(one, "dtype") != hasattr(other, "dtype"):
        return False
    if hasattr(one, "numpy"):
        return bool(one.dtype == other.dtype and one.equal(other))
    if hasattr(one, "tobytes"):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return bool(alike and one.tobytes() == other.tobytes())
    return bool(one == other or (one != one and other != other))
