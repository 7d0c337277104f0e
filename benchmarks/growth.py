#!/usr/bin/env python
"""How seconds and memory of an update grow, with agents, batch, length, and episodes of the data.

    python benchmarks/growth.py --out growth.jsonl --picture growth.png
    python benchmarks/growth.py --device cuda --algs inspo cfcql --out growth.jsonl

One line is varied at a time from 5 agents, 64 episodes a batch, 25 steps; shapes grow with the
agents as on SMAC's maps. Each point is a process of its own, for its peak memory. `episodes` draws
batches of 128 from that many episodes, from memory and from disk. Lines are appended as they come.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch as th

sys.path.insert(0, str(Path(__file__).resolve().parent))
from learner_speed import make_learner, require, synthetic_batch, time_updates

START = {"agents": 5, "batch": 64, "length": 25}
VALUES = {
    "agents": [2, 5, 10, 18, 27],
    "batch": [16, 64, 256],
    "length": [12, 25, 50, 100],
    "episodes": [1000, 5000, 20000, 50000],
}


def point(axis: str, value: int, options: argparse.Namespace) -> dict:
    """Seconds of an update, or of a draw, where `axis` has this value."""
    th.set_num_threads(1)
    if axis == "episodes":
        return draws(value, options)
    at = START | {axis: value}
    n, length = at["agents"], at["length"]
    shape = (n, 6 + n, 11 * n, 20 * n, 2 * length, length, length // 4)
    learner, args = make_learner(options.algs[0], shape, (), options.device)
    rng = np.random.default_rng(0)
    batches = [synthetic_batch(shape, at["batch"], rng).to(options.device) for _ in range(2)]
    t_env = int(0.9 * args.t_max)
    wall, cpu = time_updates(learner, batches, t_env, options.updates, options.device)
    facts = {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}
    if options.device == "cuda":
        facts["gpu_memory_mb"] = th.cuda.max_memory_allocated() / 2**20
    return facts


def draws(episodes: int, options: argparse.Namespace) -> dict:
    """Seconds of drawing 128 episodes of 5m_vs_6m's shapes, of so many."""
    from types import SimpleNamespace

    from inspo.offline.buffer import OfflineBuffer
    from inspo.offline.offline_dataset import row_offsets
    from inspo.offline.scratch import allocator

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(25, 6, episodes).round().astype(int), 2, 70)
    offsets = row_offsets(lengths)
    shapes = {"state": (98,), "obs": (5, 55), "avail_actions": (5, 12), "terminated": (1,)}
    with tempfile.TemporaryDirectory() as folder:
        room = allocator(not options.on_disk, 0, Path(folder) / "rows")
        arrays = {k: room((int(offsets[-1]), *s), np.dtype("float32")) for k, s in shapes.items()}
    for array in arrays.values():
        array[...] = 1.0
    dataset = SimpleNamespace(
        arrays=arrays,
        lengths=lengths,
        offsets=offsets,
        nbytes=sum(array.nbytes for array in arrays.values()),
        equal=SimpleNamespace(originals=np.arange(episodes)),
    )
    buffer, seconds = OfflineBuffer(dataset, 0, options.device), []
    for _ in range(options.updates + 1):
        start = time.perf_counter()
        batch = buffer.sample(128)
        for key in shapes:
            batch.rows(key)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "data_mb": dataset.nbytes / 2**20}


def seconds_of(line: dict) -> float:
    """Of the processor where that does the work: other programs do not count."""
    return line.get("cpu_seconds" if line["device"] == "cpu" else "seconds", line["seconds"])


def draw_picture(lines: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes = [axis for axis in VALUES if any(line["axis"] == axis for line in lines)]
    size = {"figsize": (3.5 * len(axes), 6), "sharex": "col", "squeeze": False}
    figure, panels = plt.subplots(2, len(axes), **size)
    for column, axis in zip(panels.T, axes):
        own = [line for line in lines if line["axis"] == axis and "seconds" in line]
        values = sorted({line["value"] for line in own})
        for name in sorted({(line["alg"], line["on_disk"]) for line in own}):
            rows = sorted(
                (line["value"], seconds_of(line), line["peak_memory_mb"])
                for line in own
                if (line["alg"], line["on_disk"]) == name
            )
            for panel, k in zip(column, (1, 2)):
                label = (
                    ("from disk" if name[1] else "from memory") if axis == "episodes" else name[0]
                )
                panel.plot([r[0] for r in rows], [r[k] for r in rows], "o-", label=label)
        column[0].set_title({"episodes": "a draw: episodes"}.get(axis, f"an update: {axis}"))
        for panel, label in zip(column, ("seconds", "peak memory, MB")):
            panel.set(xscale="log", yscale="log", ylabel=label)
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
            if own:
                panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def measure(axis: str, value: int, on_disk: bool, alg: str, options: argparse.Namespace) -> dict:
    """A point, in a process of its own."""
    words = ["--point", axis, str(value), "--algs", alg, "--device", options.device]
    words += ["--updates", str(options.updates)] + ["--on-disk"] * on_disk
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    facts = {"alg": alg, "axis": axis, "value": value, "on_disk": on_disk, "device": options.device}
    if done.returncode:
        return facts | {"error": (done.stderr.strip().splitlines() or ["it was killed"])[-1][:300]}
    return facts | json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--algs", nargs="+", default=["inspo", "cfcql"])
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--updates", type=int, default=3)
    add("--axes", nargs="+", default=[*VALUES], choices=VALUES)
    add("--largest", type=int, default=10**9, help="leave out larger values")
    add("--out", type=Path, default=Path("growth.jsonl"))
    add("--picture", type=Path)
    add("--point", nargs=2, help=argparse.SUPPRESS)
    add("--on-disk", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    require(options.device)
    if options.point:
        facts = point(options.point[0], int(options.point[1]), options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return print(json.dumps(facts | {"peak_memory_mb": peak}))
    for axis in options.axes:
        for value in VALUES[axis]:
            ways = [(False, "draw"), (True, "draw")] if axis == "episodes" else []
            for on_disk, alg in ways or [(False, alg) for alg in options.algs]:
                if value <= options.largest:
                    line = json.dumps(measure(axis, value, on_disk, alg, options))
                    print(line, flush=True)
                    with open(options.out, "a", encoding="utf-8") as file:
                        file.write(line + "\n")
    if options.picture:
        lines = [json.loads(line) for line in options.out.read_text().splitlines()]
        draw_picture(lines, options.picture)


if __name__ == "__main__":
    main()
