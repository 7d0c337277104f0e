#!/usr/bin/env python
"""Environment steps per second with random actions, for 1, 2, 4 and 8 processes.

For environments of which each has a process of its own (`runner: parallel`), as StarCraft II:

python benchmarks/env_speed.py --env-config sc2 --map 5m_vs_6m --json
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "package"))

from inspo.envs.multiagentenv import VectorEnv
from inspo.runners.parallel_runner import ParallelRunner
from inspo.utils.config import load_config
from inspo.utils.errors import UserError


def play(env: VectorEnv, rng: np.random.Generator) -> tuple[int, float]:
    """One episode in every environment: the steps of all, and the seconds of stepping alone."""
    env.reset()
    alive = np.ones(env.n_envs, dtype=bool)
    steps, start = 0, time.perf_counter()
    while alive.any():
        avail = env.observe()["avail_actions"]
        actions = (rng.random(avail.shape) * avail).argmax(-1)
        out = env.step(actions)
        steps += int(alive.sum())
        alive &= ~(out.terminated | out.truncated | env.lost())
    return steps, time.perf_counter() - start


def measure(options, n_envs: int) -> dict[str, float]:
    """The first reset (which starts the simulators) apart from the episodes after it."""
    words = [f"map_name={options.map}"] if options.map else []
    config = load_config(
        ["--config=qmix", f"--env-config={options.env_config}", "with", *words, *options.overrides]
    ).values
    chosen = {"runner": "parallel", "batch_size_run": n_envs, "seed": 0}
    start = time.perf_counter()
    env = ParallelRunner(SimpleNamespace(**{**config, **chosen}), None).env
    try:
        rng = np.random.default_rng(0)
        play(env, rng)
        first = time.perf_counter() - start
        start = time.perf_counter()
        played = [play(env, rng) for _ in range(options.batches)]
        whole = time.perf_counter() - start
        steps, stepping = map(sum, zip(*played))
    finally:
        env.close()
    return {
        "processes": n_envs,
        "environment_steps_per_second": round(steps / whole, 1),
        "without_resets": round(steps / stepping, 1),
        "seconds_start_and_first_batch": round(first, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env-config", default="sc2", help="a file of src/config/envs")
    parser.add_argument("--map", help="its map_name; the file's own if left out")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batches", type=int, default=5, help="episodes of each process")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as after `with`")
    options = parser.parse_args()
    try:
        rows = [measure(options, n) for n in options.processes]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        facts = {"env_config": options.env_config, "map": options.map, "cores": os.cpu_count()}
        print(json.dumps({**facts, "batches": options.batches, "measured": rows}))
        return 0
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
