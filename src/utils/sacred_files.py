"""Sacred's record of a run: strict JSON, never half a file, and a full disk is an error."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from sacred.observers import FileStorageObserver
from sacred.serializer import flatten

from inspo.utils import files
from inspo.utils.errors import ConfigError


class RecordObserver(FileStorageObserver):
    """Writes `config.json`, `run.json`, `metrics.json` and `info.json` of a run.

    A number that is not finite, for which JSON has no word, becomes null. Each file is written
    under a temporary name and renamed. One that cannot be written keeps what it held, and is tried
    again with the next record.

    Attributes:
        failures: file name -> what went wrong when it was last written.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.failures: dict[str, str] = {}
        self.metrics: dict[str, dict[str, list[Any]]] = {}

    def started_event(self, *args: Any, **options: Any) -> Any:
        """Make the run's folder and its first files; ConfigError where they cannot be written."""
        for folder in Path(self.basedir).glob("*"):
            files.remove_abandoned(folder)  # of killed runs, into which nobody writes any more
        try:
            started = super().started_event(*args, **options)
        except OSError as error:
            raise _cannot_write(str(error.filename or self.basedir), str(error.strerror)) from error
        self.require_written()
        return started

    def save_json(self, obj: Any, filename: str) -> None:
        path = Path(str(self.dir), filename)
        text = json.dumps(finite(flatten(obj)), sort_keys=True, indent=2, allow_nan=False)
        try:
            files.write(path, text.encode())
            self.failures.pop(filename, None)
        except OSError as error:
            # Sacred would print a traceback, write no more, and let the run end well.
            if filename not in self.failures:
                logging.getLogger("main").warning(f"{path} cannot be written: {error.strerror}")
            self.failures[filename] = str(error.strerror)

    def save_cout(self) -> None:
        """Nothing: the program's log writes cout.txt."""

    def log_metrics(self, metrics_by_name: dict[str, Any], info: Any) -> None:
        """Write all metrics of the run so far, with these new ones."""
        for name, new in metrics_by_name.items():
            kept = self.metrics.setdefault(name, {"values": [], "steps": [], "timestamps": []})
            kept["values"] += new["values"]
            kept["steps"] += new["steps"]
            kept["timestamps"] += [stamp.isoformat() for stamp in new["timestamps"]]
        self.save_json(self.metrics, "metrics.json")

    def failed_event(self, *args: Any, **options: Any) -> None:
        if self.run_entry is not None:  # otherwise there was no room for the folder
            super().failed_event(*args, **options)

    def require_written(self) -> None:
        """ConfigError if a file of the record does not hold what it should."""
        for filename, reason in self.failures.items():
            raise _cannot_write(str(Path(str(self.dir), filename)), reason)


def _cannot_write(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"local_results_path: {path} cannot be written: {reason}. What it held before stands, and "
        "the record of this run is not whole. Make room, or choose another folder, and run it again"
    )


def finite(value: Any) -> Any:
    """Nested dictionaries and lists with None for each nan and infinity.

    >>> finite({"loss": [0.5, math.nan]})
    {'loss': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
