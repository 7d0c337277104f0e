"""SIGKILL at random moments, then the same command again: is it the run that was never killed?

Training offline, online and on SMAX, fits of behaviour policies, collections, conversions, grids.
Each work is done once in peace. Then it is done again and again, killed one to four times at
random moments, resumed or repeated, and held to the first bit for bit; no process, lock or
temporary file may be left. `kills` counts those that hit a living process.

A kill hits a forked process in which torch is imported already; the cells of a grid are processes
of their own, and only some tries are given to them and to SMAX, which take longest.

    python tests/campaigns/kills.py --minutes 20 --seed 1
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import (
    Child,
    an_hour_later,
    elsewhere,
    leftovers,
    parser,
    processes,
    report,
    run,
    same,
    tries,
    warm_up,
)

from inspo import dataset as dataset_tool
from inspo import main as program
from inspo import sweep
from inspo.offline import load_dataset
from inspo.utils.checkpoints import list_steps, load_checkpoint

QUIET = ["use_progress_bar=False", "test_nepisode=0", "final_test_nepisode=2"]
OFFLINE = ["--env-config=matrix_offline", "with", "map_name=m_ne", "quality=balanced", *QUIET]
SAVING = ["t_max=2048", "save_model_interval=512", "log_interval=512", "keep_checkpoints=2"]
FIT = ["behaviour.updates=30", "behaviour.others_updates=30", "behaviour.eval_interval=10"]
QMIX = ["--config=qmix", "--env-config=matrix", "with", "map_name=m_ne", *QUIET]
ONLINE = ["t_max=640", "save_model_interval=64", "log_interval=64", "batch_size=32"]
SMAX = ["--config=qmix", "--env-config=smax", "with", "map_name=3m", "batch_size_run=4", *QUIET]
BATTLES = ["env_args.max_steps=12", "use_presets=False", "train_interval=4", "batch_size=8",
           "t_max=400", "save_model_interval=48", "log_interval=48"]  # fmt: skip
GRID = {
    "algorithms": "bc", "environments": "matrix_offline", "maps": "xor", "qualities": "b",
    "seeds": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """begin, again: the command in a folder, at first and after a kill. found: what came of it, to
    be compared. whole: what must hold after a kill, before the next command."""

    begin: Callable[[Path], int]
    found: Callable[[Path], Any]
    again: Callable[[Path], int] | None = None
    whole: Callable[[Path], None] = lambda folder: None


# --------------------------------------------------------------------------------------------------
# The works


def training(*words: str, seed: int = 1) -> Work:
    def start(folder: Path, *more: str) -> int:
        place = [f"local_results_path={folder / 'results'}", f"datasets_dir={folder / 'data'}"]
        return program.main([*words, f"seed={seed}", *place, *more])

    def again(folder: Path) -> int:
        model = model_of(folder)
        return start(folder) if model is None else start(folder, f"resume={model}")

    return Work(start, trained, again, lambda folder: check_checkpoint(model_of(folder)))


def model_of(folder: Path) -> Path | None:
    """The model folder that holds a checkpoint, if there is one."""
    models = [m for m in (folder / "results" / "models").glob("*") if list_steps(m)]
    return models[0] if models else None


def check_checkpoint(model: Path | None) -> None:
    if model is not None:
        load_checkpoint(model)


def trained(folder: Path) -> Any:
    model = model_of(folder)
    assert model is not None, "no checkpoint"
    saved = load_checkpoint(model)
    parts = load_checkpoint(model / "resume").files
    stats = saved.files["run.th"]["logger"]["stats"]
    stats.pop("updates_per_second", None)  # of the clock
    return {"step": saved.step, "files": saved.files, "parts": parts}


def fitted(folder: Path) -> Any:
    caches = [torch.load(p, weights_only=True) for p in (folder / "data" / "cache").glob("*.th")]
    return {"caches": caches, **trained(folder)}


def collecting(policy: Path) -> Work:
    def start(folder: Path) -> int:
        if (folder / "c.h5").exists():  # whole, or it would not have its name
            return 0
        place = [f"local_results_path={folder / 'results'}", f"collect.path={folder / 'c.h5'}"]
        acting = ["collect.n_episodes=20000", f"checkpoint_path={policy}", "seed=3"]
        return program.main([*QMIX, *acting, *place])

    return Work(start, lambda folder: contents(folder / "c.h5"), start)


def contents(path: Path) -> Any:
    data = load_dataset(path)
    return {"rows": data.arrays, "lengths": data.lengths}


def converting(source: Path, older: Path, name: str) -> Work:
    """Replace a dataset by another one: at every moment one of the two stands there, whole."""

    def start(folder: Path) -> int:
        if not (folder / "begun").exists():
            if not (folder / name).exists():  # a kill may fall between this and the next line
                assert dataset_tool.main(["convert", str(older), str(folder / name)]) == 0
            (folder / "begun").touch()
        return again(folder)

    def again(folder: Path) -> int:
        return dataset_tool.main(["convert", str(source), str(folder / name), "--force"])

    def whole(folder: Path) -> None:
        if (folder / "begun").exists():
            assert len(load_dataset(folder / name)) in sizes, "neither the old nor the new dataset"

    sizes = elsewhere(lambda: {len(load_dataset(path)) for path in (source, older)})
    return Work(start, lambda folder: contents(folder / name), start, whole)


def grid(folder: Path) -> int:
    tiny = {"t_max": 2560, "final_test_nepisode": 2, "datasets_dir": str(folder / "data")}
    (folder / "grid.yaml").write_text(yaml.safe_dump(GRID | {"overrides": tiny}))
    return sweep.main([str(folder / "grid.yaml"), "--results", str(folder), "--jobs", "2"])


def cells(folder: Path) -> Any:
    models = [m for m in folder.glob("runs/grid/**/models/*") if list_steps(m)]
    whole = sorted((load_checkpoint(m) for m in models), key=lambda s: s.text["config"]["seed"])
    assert len(whole) == GRID["seeds"], f"{len(whole)} cells have a checkpoint"
    return [saved.files["agent.th"] for saved in whole]


# --------------------------------------------------------------------------------------------------
# One try


class Fault(Exception):
    pass


def peaceful(name: str, work: Work, folder: Path) -> tuple[Any, float]:
    """What comes of a work that nobody kills, and the seconds that it takes."""
    folder.mkdir()
    for _attempt in range(2):  # the first time caches are filled
        shutil.rmtree(folder)
        folder.mkdir()
        began = time.monotonic()
        status, text = run(lambda: work.begin(folder), folder / "log")
        seconds = time.monotonic() - began
        if status:
            raise SystemExit(f"{name} fails by itself ({status}):\n{text[-2000:]}")
    return elsewhere(lambda: work.found(folder)), seconds


def killed(work: Work, folder: Path, expected: Any, seconds: float, rng: Any) -> int:
    """Do the work, killed some times on the way. Returns how often; Fault if it shows."""
    folder.mkdir()
    log, kills, command, status = folder / "log", 0, work.begin, None
    for _ in range(int(rng.integers(1, 5))):
        child = Child(lambda command=command: command(folder), log)
        status = child.wait(rng.uniform(0, seconds))
        if status is not None or (status := child.kill()) != -signal.SIGKILL:
            break
        status, kills = None, kills + 1
        for pid in started_in(folder):  # the cells of a grid, which outlive it and save
            if rng.random() < 0.5:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
        require_gone(child, folder)
        try:
            elsewhere(lambda: work.whole(folder))
        except RuntimeError as error:
            raise Fault(f"after kill {kills}: {error}") from error
        an_hour_later(folder)
        command = work.again or work.begin
    if status is None:
        status, _ = run(lambda: command(folder), log)
    if status:
        raise Fault(f"status {status} after {kills} kills:\n{log.read_text()[-2000:]}")
    try:
        found = elsewhere(lambda: work.found(folder))
    except RuntimeError as error:
        raise Fault(f"nothing to compare after {kills} kills: {error}") from error
    if not same(found, expected):
        raise Fault(f"another result after {kills} kills")
    if left := [path for path in leftovers(folder) if not abandoned(path)]:
        raise Fault(f"left: {', '.join(map(str, left))}")
    return kills


def abandoned(path: Path) -> bool:
    """Of a run that was killed before its first checkpoint: there is nothing to resume."""
    return "models" in path.parts and not list_steps(path.parent)


def started_in(folder: Path) -> list[int]:
    """Processes that were started with this folder in their command line."""
    return [pid for pid, _, words in processes() if str(folder) in words]


def require_gone(child: Child, folder: Path) -> None:
    """Wait for what the killed process had started."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        left = [*started_in(folder), *child.left()]
        if not left:
            return
        time.sleep(0.02)
    raise Fault(f"processes left: {left}")


# --------------------------------------------------------------------------------------------------


def works(folder: Path) -> dict[str, tuple[Work, int]]:
    """name -> the work and how many of 100 tries it gets."""
    data = ["--config=bc", *OFFLINE, "t_max=256", f"datasets_dir={folder / 'data'}"]
    play = [*QMIX, *ONLINE, "seed=2"]
    place = f"local_results_path={folder / 'prepared'}"
    for words in ([*data, place], [*play, place]):
        status, text = run(lambda words=words: program.main(words), folder / "log")
        assert status == 0, text
    made = folder / "data" / "matrix" / "m_ne_balanced.h5"
    older = folder / "older.h5"
    run(
        lambda: dataset_tool.main(["subsample", str(made), str(older), "--episodes=50"]),
        folder / "log",
    )
    policy = next(iter((folder / "prepared" / "models").glob("qmix*")))
    return {
        "bc": (training("--config=bc", *OFFLINE, *SAVING), 18),
        "inspo": (training("--config=inspo", *OFFLINE, *SAVING, *FIT), 8),
        "qmix": (training(*QMIX, *ONLINE), 18),
        "fit": (
            Work(*[training("--config=inspo", *OFFLINE, "t_max=512", *FIT).begin, fitted]),
            10,
        ),
        "collect": (collecting(policy), 14),
        "to_h5": (converting(made, older, "x.h5"), 12),
        "to_folder": (converting(made, older, "x"), 10),
        "to_vault": (converting(made, older, "x.vlt"), 6),
        "smax": (training(*SMAX, *BATTLES), 2),
        "grid": (Work(grid, cells), 2),
    }


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", metavar="WORK", help="some of the works")
    given = options.parse_args()
    rng = np.random.default_rng(given.seed)
    warm_up()
    faults, figures = 0, Counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name).resolve()
        chosen = {k: v for k, v in works(folder).items() if not given.only or k in given.only}
        known: dict[str, tuple[Any, float]] = {}
        shares = np.array([share for _, share in chosen.values()], dtype=float)
        for number in tries(given.minutes):
            work = str(rng.choice(list(chosen), p=shares / shares.sum()))
            if work not in known:
                known[work] = peaceful(work, chosen[work][0], folder / f"whole_{work}")
            place = folder / f"try{number}"
            try:
                kills = killed(chosen[work][0], place, *known[work], rng)
                figures["kills"] += kills
                figures[f"kills_{work}"] += kills
            except Fault as fault:
                faults += 1
                print(f"try {number}, {work}: {fault}", file=sys.stderr, flush=True)
            shutil.rmtree(place, ignore_errors=True)
            figures["tries"] += 1
        if left := started_in(folder):
            print(f"processes left: {left}", file=sys.stderr)
            faults += 1
    report("kills", {"tries": 0, "kills": 0, **figures, "faults": faults})
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
