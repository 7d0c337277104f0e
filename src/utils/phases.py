"""What a run is at: every phase is a bar on stderr, and a line in the run's record.

    with logger.phase("training", t_max, initial=progress.t_env) as phase:
        phase.update(steps)

The line in the record is what a campaign shows of the run (experiments/campaign.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

TRAINING = "training"  # the phase by which a campaign judges how much of a run is done


def progress_bar(
    total: int,
    *,
    enabled: bool = True,
    initial: int = 0,
    desc: str = "",
    unit: str = "step",
    brief: bool = False,
) -> tqdm:
    """A bar with rate and remaining time, on stderr. In a log file it speaks twice a minute.

    brief: it appears only after this time, in place of the bar that is there, and goes at the end.
    """
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total,
        initial=initial,
        desc=desc,
        unit=unit,
        unit_scale=total >= 100_000,
        disable=not enabled,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=interval,
        delay=interval if brief else 0.0,
        position=0 if brief else None,
        leave=not brief,
        file=sys.stderr,
    )


class Phase:
    """A piece of a run's work, to be used as a context. By itself it shows nothing.

    total: how much there is of it, in `unit`; None: nobody knows, and it has a name alone.
    initial: what was done before. brief: it should take seconds, and is shown only if it takes
    longer (`progress_bar`). bar: whether it is shown on stderr at all. tell: gets `name`, the
    `share` done, and `text` for a reader, whenever they change.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "step",
        initial: int = 0,
        brief: bool = False,
        bar: bool = False,
        tell: Callable[[dict[str, Any]], None] = lambda state: None,
    ):
        self.name, self.total, self.unit, self.tell = name, total, unit, tell
        self.done = self.first = initial
        self.note = ""
        self.began = time.monotonic()
        shown = bar and total is not None
        self.bar = progress_bar(
            total or 0, enabled=shown, initial=initial, desc=name, unit=unit, brief=brief
        )
        self.update(0)

    def update(self, n: int = 1, note: str = "") -> None:
        """`n` more are done. note: what there is to say beside the numbers."""
        self.done += n
        self.note = note
        self.bar.set_postfix_str(note, refresh=False)
        # A whole batch may go beyond the total, where tqdm would forget it.
        self.bar.update(min(self.done, self.total or 0) - self.bar.n)
        share = min(1.0, self.done / self.total) if self.total else 0.0
        self.tell({"name": self.name, "share": share, "text": str(self)})

    def __str__(self) -> str:
        """Its name; done and total, rate and remaining time; the note."""
        if self.total is None:
            return self.name
        size = tqdm.format_sizeof if self.total >= 100_000 else str
        parts = [f"{self.name} {size(self.done)}/{size(self.total)} {self.unit}s"]
        rate = (self.done - self.first) / max(time.monotonic() - self.began, 1e-9)
        if rate:
            left = tqdm.format_interval(max(0, self.total - self.done) / rate)
            parts += [f"{tqdm.format_sizeof(rate)}/s", f"{left} left"]
        return ", ".join(parts + [self.note] * bool(self.note))

    def close(self) -> None:
        self.bar.close()

    def __enter__(self) -> Phase:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
