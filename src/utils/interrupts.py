"""Leaving early with everything saved: SIGINT (Ctrl-C) and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

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
