#!/usr/bin/env python
"""How fast datasets are converted, checked, loaded and drawn from, on noise of a SMAC map's shapes.

    python benchmarks/dataset_io.py --map 5m_vs_6m --episodes 5000

Writes a CFCQL-layout file, converts it to the canonical file, validates that, loads
it, and draws batches from memory and from disk; each step in a process of its own. Prints one JSON
object: seconds and peak memory of each step, episodes a second both ways.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "package"))

# agents, actions, observation, state, limit of SMAC's maps; mean and deviation of the lengths
MAPS = {
    "5m_vs_6m": (5, 12, 55, 98, 70, 25, 6),
    "2s3z": (5, 11, 80, 120, 120, 48, 12),
    "3s_vs_5z": (3, 11, 48, 68, 250, 130, 40),
    "6h_vs_8z": (6, 14, 78, 140, 150, 35, 8),
}
BLOCK = 100  # episodes made at a time
STEPS = ("make", "convert", "validate", "load", "draw_memory", "draw_disk")


def make(path: Path, options) -> dict:
    """A file as CFCQL publishes them, of noise; the values are as hard to compress as can be."""
    import h5py
    import numpy as np

    n, n_actions, obs, state, limit, mean, std = MAPS[options.map]
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for first in range(0, options.episodes, BLOCK):
            count = min(BLOCK, options.episodes - first)
            lengths = np.clip(rng.normal(mean, std, count).round().astype(int), 2, limit)
            steps = np.arange(limit + 1)
            filled = steps <= lengths[:, None]
            avail = rng.random((*filled.shape, n, n_actions)) < 0.6
            avail[..., 1] = True
            batch = {
                "state": rng.standard_normal((*filled.shape, state), dtype=np.float32),
                "obs": rng.standard_normal((*filled.shape, n, obs), dtype=np.float32),
                "actions": np.where(avail, rng.random(avail.shape), -1).argmax(-1)[..., None],
                "avail_actions": avail.astype(np.int32),
                "probs": np.zeros(avail.shape, dtype=np.float32),
                "reward": rng.random((*filled.shape, 1), dtype=np.float32),
                "terminated": (steps == lengths[:, None] - 1).astype(np.uint8)[..., None],
                "filled": filled.astype(np.int64)[..., None],
            }
            for key, values in batch.items():
                values[~filled] = 0
                if first == 0:
                    shape = (options.episodes, *values.shape[1:])
                    file.create_dataset(key, shape, values.dtype)
                file[key][first : first + count] = values
    return {"bytes": path.stat().st_size}


def convert(path: Path, options) -> dict:
    from inspo.offline.operations import convert as convert_file

    target = path.with_name("canonical.h5")
    convert_file(path, target, env="sc2", map_name=options.map, quality="noise")
    return {"bytes": target.stat().st_size}


def validate(path: Path, options) -> dict:
    from inspo import dataset

    return {"status": dataset.main(["validate", str(path.with_name("canonical.h5"))])}


def load(path: Path, options) -> dict:
    from inspo.offline import load_dataset

    return {"flat_bytes": load_dataset(path.with_name("canonical.h5")).nbytes}


def draw(path: Path, options, in_memory: bool) -> dict:
    """Batches after loading: episodes a second. One thread, as in a run."""
    import torch as th

    from inspo.offline import load_dataset
    from inspo.offline.buffer import OfflineBuffer

    th.set_num_threads(1)
    data = load_dataset(path.with_name("canonical.h5"), in_memory=in_memory)
    buffer = OfflineBuffer(data, seed=0)
    del data
    size = min(options.batch_size, len(buffer))
    keys = [*buffer.sample(size).keys()]
    start = time.perf_counter()
    for _ in range(options.batches):
        batch = buffer.sample(size)
        for key in keys:
            batch.rows(key)
    return {"episodes_per_second": options.batches * size / (time.perf_counter() - start)}


def step(name: str, path: Path, options) -> dict:
    """One step, here."""
    start = time.perf_counter()
    if name.startswith("draw"):
        facts = draw(path, options, in_memory=name == "draw_memory")
    else:
        facts = {"make": make, "convert": convert, "validate": validate, "load": load}[name](
            path, options
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--map", default="5m_vs_6m", choices=MAPS)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128, help="episodes of a batch")
    parser.add_argument("--batches", type=int, default=100, help="batches drawn")
    parser.add_argument("--folder", help="where the files go (default: a temporary folder)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, Path(options.folder) / "cfcql.h5", options)))
        return
    result = {"map": options.map, "episodes": options.episodes, "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in STEPS:
            words = [sys.executable, __file__, *sys.argv[1:], "--step", name, "--folder", folder]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            result[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
