"""Leaving early with everything saved: SIGINT (Ctrl-C) and SIGTERM."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from inspo.utils.errors import UserError, printable
from inspo.utils.paths import PACKAGE, commands_here

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Modules of EPyMARL that have another name here.
MOVED = {"components.episode_buffer": "inspo.components.episode_batch"}
# What a disk or its owner refuses; other errors of the system are likely to be our fault.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO}
REFUSED |= {errno.EISDIR, errno.ENOTDIR}

OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory")


def out_of_memory(error: BaseException) -> str:
    """What an error says of memory that could not be had, in one line; empty for other errors."""
    if not any(sign in f"{type(error)} {error}" for sign in OUT_OF_MEMORY):
        return ""
    return f"out of memory ({' '.join(str(error).split())[:200]})"


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop. `message` tells the user what was saved and how to go on.

    A KeyboardInterrupt, so that Sacred marks the run INTERRUPTED and no `except Exception` on the
    way swallows it.
    """

    def __init__(self, signum: int, message: str = ""):
        super().__init__(message or f"stopped by {signal.Signals(signum).name}")
        self.signum = int(signum)

    @property
    def exit_status(self) -> int:
        """The shell's convention: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


class GracefulExit:
    """Within the `with` block the first signal only sets `requested`; the second aborts at once.

    with GracefulExit() as stop:
        while training and not stop.requested:
            ...
    if stop.requested:
        save()
        raise Interrupted(stop.signum, "saved step 100; go on with resume=...")
    """

    def __init__(self, warn: Callable[[str], None] | None = None):
        self.signum: int | None = None
        self._warn = warn
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def check(self, message: str = "") -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum, message)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise Interrupted(signum, "stopped at once by a second signal; nothing more was saved")
        self.signum = int(signum)
        if self._warn is not None:
            name = signal.Signals(signum).name
            self._warn(f"{name}: stopping, and saving what can be saved; once more stops at once")

    def __enter__(self) -> GracefulExit:
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises Interrupted, as SIGINT raises KeyboardInterrupt."""

    def handle(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status(command: Callable[[], int], stopped: str = "stopped by SIGINT") -> int:
    """Run a program's command; what ends it becomes one line on stderr and an exit status.

    0 and others: what `command` returned. 2: a UserError. 130, 143: SIGINT, SIGTERM. 141: whoever
    read our output has gone (`... | head`). stopped: the message of a SIGINT that nobody handled.
    """
    _open_standard_streams()
    try:
        with sigterm_as_interrupt():
            status = command()
            sys.stdout.flush()  # here, where a full disk can still be told
            return status
    except ModuleNotFoundError as error:
        if moved := _moved_import(error):
            print(f"error: {moved}", file=sys.stderr)
            return 2
        raise
    except UserError as error:
        print(printable(commands_here(f"error: {error}")), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        text = out_of_memory(error)
        if not text:
            raise
        advice = "Choose smaller sizes: batch_size, batch_size_run, buffer_size, hidden_dim"
        print(f"error: {text}. {advice}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(printable(f"interrupted: {stop}"), file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print(f"interrupted: {stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        if error.errno not in FULL | REFUSED:
            raise
        advice = "Make room" if error.errno in FULL else "Check the path and its rights"
        if error.filename is None:  # the output, perhaps, which Python would try again at its end
            _drop_output()
        place = f"{error.filename or 'a file, or the output'}: {error.strerror}"
        print(printable(f"error: {place}. {advice}, or choose another folder."), file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Let what is still to be printed lead nowhere."""
    with suppress(OSError):  # of a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Where a standard stream was closed (`2>&-`), let it lead nowhere.

    The next file that is opened would have its number otherwise, and get what is meant for it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _moved_import(error: ModuleNotFoundError) -> str | None:
    """What to write in place of an import that EPyMARL's folders would answer; None for others."""
    name = str(error.name)
    if name.split(".")[0] not in {path.stem for path in PACKAGE.iterdir()}:
        return None
    frames = traceback.extract_tb(error.__traceback__)
    place = next(f for f in reversed(frames) if not f.filename.startswith("<frozen"))
    statement = re.search(r"(?:from|import)\s+([\w.]+)", place.line or "")
    wanted = statement[1] if statement else name
    return (
        f"{place.filename}, line {place.lineno}: '{wanted}' is a module of the package inspo here: "
        f"write `from {MOVED.get(wanted, f'inspo.{wanted}')} import ...`"
    )
