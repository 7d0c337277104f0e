"""Leaving early with everything saved: SIGINT (Ctrl-C) and SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from inspo.utils.errors import UserError
from inspo.utils.paths import PACKAGE, commands_here

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Modules of EPyMARL that have another name here.
MOVED = {"components.episode_buffer": "inspo.components.episode_batch"}


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
    try:
        with sigterm_as_interrupt():
            return command()
    except ModuleNotFoundError as error:
        if moved := _moved_import(error):
            print(f"error: {moved}", file=sys.stderr)
            return 2
        raise
    except UserError as error:
        print(commands_here(f"error: {error}"), file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print(f"interrupted: {stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


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
