"""Leaving early with everything saved: SIGINT (Ctrl-C) and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inspo.utils.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    def __init__(self, say=None):
        self.signum: int | None = None
        self._say = say
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def check(self, message: str = "") -> None:
        """Raise Interrupted if a signal has come."""
        if self.requested:
            raise Interrupted(self.signum, message)

    def _handle(self, signum, frame):
        if self.requested:
            raise Interrupted(signum, "stopped at once by a second signal; nothing more was saved")
        self.signum = int(signum)
        if self._say is not None:
            name = signal.Signals(signum).name
            self._say(f"{name}: saving and stopping; once more stops at once, without saving")

    def __enter__(self) -> GracefulExit:
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exc) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises Interrupted, as SIGINT raises KeyboardInterrupt."""

    def handle(signum, frame):
        raise Interrupted(signum)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status(command: Callable[[], int], stopped: str = "stopped by SIGINT") -> int:
    """Run a program's command; what ends it becomes one line on stderr and an exit status.

    0 and others: what `command` returned. 2: a UserError. 130, 143: SIGINT, SIGTERM. 141: whoever
    read our output has gone (`... | head`). stopped: what to say of a SIGINT that nobody handled.
    """
    try:
        with sigterm_as_interrupt():
            return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
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
