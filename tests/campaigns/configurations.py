"""Every key of the configuration with odd values: each gives a run, or one clear line.

Draws an algorithm, an environment, a key and a value, and calls the program with them, in this
process. What may come of it: a run to its end (accepted), one line that begins with `error:` and
the exit status 2 (errors), or, for a value that only asks for much, a run that is stopped after
`--patience` seconds and says how to go on (stopped). Everything else is a failure, which is printed
with the command line that repeats it. SMAX and StarCraft II only build their configuration.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import common

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch as th

from inspo import main as program
from inspo.utils.config import load_config, names
from inspo.utils.errors import ConfigError
from inspo.utils.nested import flatten

MEMORY = 16 << 30  # bytes of address space that a run may ask for
VALUES = [
    "-1", "0", "1", "0.5", "-1e300", "1e999", "-1e999", "nan", "1e30", "1e-300", "9007199254740993",
    "9223372036854775808", "9" * 400, "0x10", "1_000", "True", "null", "", "''", "text", "[]",
    "[2, 1]", "[nan]", "[[1e999]]", "{}", "{'a': 1}", "{1: 2}", "ünï☃", "\x1b[31mred", "a\nb",
    "a/b", "..", "~nobody/x", "/proc/x", "/dev/null", "x" * 300, "\udcff", "'\\ud800'",
    "__import__('os')", "(1,", "1e5",
]  # fmt: skip
TINY = {
    "seed": "5", "use_cuda": "False", "use_progress_bar": "False", "hidden_dim": "8",
    "batch_size_run": "4", "batch_size": "4", "test_nepisode": "2", "final_test_nepisode": "2",
    "t_max": "24", "log_interval": "8", "test_interval": "16", "save_model_interval": "8",
    "local_results_path": "results", "datasets_dir": "datasets", "critic_hidden_dim": "8",
    "behaviour.updates": "2", "behaviour.others_updates": "2", "train_interval": "4", "epochs": "2",
    "buffer_size": "16", "behaviour.batch_size": "4", "behaviour.others_hidden_dim": "8",
}  # fmt: skip
RUNS = {"matrix", "bridge"}  # simulators that start at once


def cases(rng: random.Random):
    """(algorithm, environment, key, value) without end: all pairs and keys, in random order."""
    pairs = list(itertools.product(names("algs"), names("envs")))
    while True:
        algorithm, environment = rng.choice(pairs)
        values = load_config([f"--config={algorithm}", f"--env-config={environment}"]).values
        online = "train_interval" in values
        if values["offline"] == online:
            continue
        key = rng.choice([key for key, _ in flatten(values)])
        yield algorithm, environment, key, rng.choice(VALUES), values


def command_line(algorithm: str, environment: str, key: str, value: str, known: dict) -> list[str]:
    flat = dict(flatten(known))
    words = {name: text for name, text in TINY.items() if name in flat and name != key}
    if algorithm == "mappo":  # on-policy
        words = {name: words[name] for name in words if name not in ("buffer_size", "batch_size")}
    argv = [f"--config={algorithm}", f"--env-config={environment}", "with"]
    return [*argv, *(f"{name}={text}" for name, text in words.items()), f"{key}={value}"]


class TooLong(BaseException):
    """A run went on after it was asked to stop."""


def outcome(argv: list[str], patience: float) -> tuple[str, str]:
    """(accepted, errors, stopped or failures; what was printed) of one command line."""
    asked = []

    def ask(*_):
        asked.append(1)
        if len(asked) > 3:
            raise TooLong
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, ask)
    signal.setitimer(signal.ITIMER_REAL, patience, patience)
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            status = program.main(argv)
    except (Exception, TooLong):
        return "failures", traceback.format_exc()[-2000:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        th.set_num_threads(1)
    text = err.getvalue()
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if "Traceback" in text:
        return "failures", text[-2000:]
    if status == 0:
        return "accepted", text
    if status == 2 and len(lines) == 1 and text.rstrip("\n").splitlines()[-1] == lines[0]:
        return ("errors", text) if lines[0].isprintable() else ("failures", text)
    return (
        ("stopped", text) if status == 143 and asked else ("failures", f"{status}: {text[-2000:]}")
    )


def loaded(argv: list[str]) -> tuple[str, str]:
    """The same of a configuration that is only put together."""
    try:
        load_config(argv)
    except ConfigError as error:
        return ("failures" if "\n" in str(error).strip() else "errors"), str(error)
    except Exception:
        return "failures", traceback.format_exc()[-2000:]
    return "accepted", ""


def no_constants(token: str) -> None:
    raise ValueError(f"{token} in a record")


def bad_records(folder: Path) -> str:
    """What is no strict JSON in the newest record, or an empty string."""
    for path in folder.glob("results/sacred/*/*/*/*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"), parse_constant=no_constants)
        except ValueError as error:
            return f"{path}: {error}"
        path.unlink()
    return ""


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--patience", type=float, default=15.0, help="seconds for a run")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    rng = random.Random(options.seed)
    counts: Counter[str] = Counter(tries=0, accepted=0, errors=0, stopped=0, failures=0)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for algorithm, environment, key, value, known in cases(rng):
            if time.monotonic() > end:
                break
            argv = command_line(algorithm, environment, key, value, known)
            plays = known["env"] in RUNS
            kind, text = outcome(argv, options.patience) if plays else loaded(argv)
            if broken := bad_records(Path(folder)):
                kind, text = "failures", broken
            counts["tries"] += 1
            counts[kind] += 1
            if kind == "failures":
                print(f"--- python src/main.py {shlex.join(argv)!r}\n{text}", flush=True)
    common.report("configurations", counts)
    return int(counts["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
