"""Statistics and messages of a run: to the console, to Sacred, to TensorBoard, to W&B.

The one place where tensors become floats. Learners hand over 0-d tensors as they are; all of them
cross from the device in a single copy, so that logging costs one synchronisation.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from inspo.utils.config import map_label
from inspo.utils.errors import ConfigError, printable
from inspo.utils.phases import Phase
from inspo.utils.settings import Settings

FORMAT = "[%(levelname)s %(asctime)s] %(message)s"


class _TqdmHandler(logging.Handler):
    """Writes lines above a progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(printable(self.format(record)), file=sys.stderr)
        except Exception:
            self.handleError(record)


def get_console_logger(name: str = "main", level: int = logging.INFO) -> logging.Logger:
    """The program's console logger, to stderr. Asking twice adds no second handler."""
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(level)
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    logger.addHandler(handler)
    return logger


class LogFile(logging.FileHandler):
    """A log that says in `failure` what kept the last line out of its file, once it did."""

    failure: str | None = None

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        self.failure = str(getattr(error, "strerror", None) or error)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written is known
            super().close()


def add_file(console: logging.Logger, path: Path) -> LogFile:
    """Let every line of the console go to a file as well (never the progress bar)."""
    handler = LogFile(path, mode="a", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(FORMAT))
    console.addHandler(handler)
    return handler


def to_floats(stats: Mapping[str, Any]) -> dict[str, float]:
    """Numbers, numpy scalars and tensors of one element as floats; one copy from each device.

    >>> to_floats({"loss": torch.tensor(0.5), "episodes": 3, "won": True})
    {'loss': 0.5, 'episodes': 3.0, 'won': 1.0}
    """
    on_device: dict[torch.device, list[str]] = {}
    floats: dict[str, float] = {}
    for name, value in stats.items():
        size = value.numel() if isinstance(value, torch.Tensor) else np.size(value)
        if size != 1:
            raise ValueError(f"statistic '{name}' has {size} elements; log a single number")
        if isinstance(value, torch.Tensor):
            on_device.setdefault(value.device, []).append(name)
            floats[name] = 0.0  # keeps the order; filled in below
        else:
            floats[name] = float(np.asarray(value).reshape(()))
    for group in on_device.values():
        stacked = torch.stack([stats[name].detach().reshape(()).double() for name in group])
        floats.update(zip(group, stacked.tolist()))
    return floats


class Logger:
    """EPyMARL's logger: `log_stat(key, value, t)`, `print_recent_stats()`, `stats[key]`.

    `stats[key]` is a list of (t, value), all that was ever logged; it is part of a checkpoint, so
    that the metrics of a resumed run are those of the whole run.
    """

    def __init__(self, console: logging.Logger | None = None, bars: bool = False):
        """bars: whether phases are shown on stderr."""
        self.bars = bars
        self.console_logger = console or get_console_logger()
        self.stats: dict[str, list[tuple[int, float]]] = {}
        self._sinks: list[Any] = []
        self._record: dict[str, Any] = {}
        self._printed: dict[str, int] = {}  # how many values of a key have been shown

    # --- sinks ------------------------------------------------------------------------------------

    def setup_sacred(self, run: Any) -> None:
        """Send every scalar to a Sacred run (its metrics.json), and the phase (its info.json)."""
        self._sinks.append(run.log_scalar)
        self._record = run.info

    def setup_tb(self, folder: str | Path) -> None:
        """Send every scalar to TensorBoard files in `folder`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its old protobuf files
            from tensorboard_logger import Logger as TensorBoard
        self._sinks.append(TensorBoard(str(folder), flush_secs=2).log_value)

    def setup_wandb(self, settings: Settings) -> None:
        """Send every scalar to Weights & Biases, under EPyMARL's keys."""
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"use_wandb=True, but wandb cannot be imported ({error}); "
                "pip install wandb, or leave the key at False"
            ) from error
        folder = Path(settings.local_results_path)
        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            entity=settings.wandb_team,
            project=settings.wandb_project,
            mode=settings.wandb_mode,
            name=settings.unique_token,
            group=f"{settings.name}_{map_label(settings)}",
            config=settings.as_dict(),
            dir=str(folder),
        )
        self._sinks.append(lambda key, value, t: run.log({key: value, "t_env": t}))

    # --- statistics -------------------------------------------------------------------------------

    def log_stat(self, key: str, value: Any, t: int) -> None:
        """Record one number at step `t`."""
        self.log_stats({key: value}, t)

    def log_stats(self, stats: Mapping[str, Any], t: int) -> None:
        """Record several numbers at step `t`, with one synchronisation for all of them."""
        for key, value in to_floats(stats).items():
            self.stats.setdefault(key, []).append((int(t), value))
            for sink in self._sinks:
                sink(key, value, int(t))

    def print_recent_stats(self) -> None:
        """Print the last value of each statistic that has a new one, three to a line."""
        fresh = {
            key: history[-1]
            for key, history in sorted(self.stats.items())
            if len(history) > self._printed.get(key, 0)
        }
        if not fresh:
            return
        self._printed = {key: len(history) for key, history in self.stats.items()}
        items = [f"{key + ':':<28}{value:>10.4g}" for key, (_, value) in fresh.items()]
        lines = ["   ".join(items[i : i + 3]).rstrip() for i in range(0, len(items), 3)]
        t = max(t for t, _ in fresh.values())
        self.info("\n".join([f"Recent statistics, t_env {t:,}", *lines]))

    # --- messages ---------------------------------------------------------------------------------

    def info(self, message: str) -> None:
        self.console_logger.info(message)

    def warning(self, message: str) -> None:
        self.console_logger.warning(message)

    def phase(self, name: str, total: int | None = None, **options: Any) -> Phase:
        """What the run does from now on, until it is closed or the next one begins."""
        return Phase(name, total, **options, bar=self.bars, tell=self._tell)

    def _tell(self, state: dict[str, Any]) -> None:
        self._record["phase"] = state

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The history, in types that `torch.load(weights_only=True)` reads."""
        return {"stats": {key: list(history) for key, history in self.stats.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a history, and tell it to the sinks, whose files are new ones."""
        self.stats = {
            key: [(int(t), float(value)) for t, value in history]
            for key, history in state["stats"].items()
        }
        self._printed = {key: len(history) for key, history in self.stats.items()}
        for key, t, value in _in_order(self.stats):
            for sink in self._sinks:
                sink(key, value, t)


def _in_order(stats: Mapping[str, list[tuple[int, float]]]) -> Iterable[tuple[str, int, float]]:
    """(key, t, value) by t; what was logged at one t keeps its order."""
    return sorted(
        ((key, t, value) for key, history in stats.items() for t, value in history),
        key=lambda entry: entry[1],
    )
