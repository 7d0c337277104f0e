#!/usr/bin/env python
"""Updates a second of 1, 2, 4, ... runs side by side on one device, on synthetic data.

    python benchmarks/many_runs.py --alg inspo --map 5m_vs_6m --device cuda --runs 1 2 4 8 16

Each run is a process with one thread and CPUs of its own, as `sweep.py --jobs-per-gpu` starts them.
All begin to count together, when the last has warmed up. Prints a JSON object for each number of
runs: the updates a second of all, and of the slowest and the fastest. It ends with the first number
that does not fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch as th

sys.path.insert(0, str(Path(__file__).resolve().parent))
from learner_speed import MAPS, make_learner, require, synthetic_batch, wait_for

from inspo.experiments.pool import gpu_shares


def work(options: argparse.Namespace) -> None:
    """One run: warm up, say so, wait for a line, count."""
    th.set_num_threads(1)
    learner, args = make_learner(options.alg, MAPS[options.map], options.changes, options.device)
    rng = np.random.default_rng(0)
    drawn = [synthetic_batch(options.map, options.batch_size, rng) for _ in range(3)]
    batches = [batch.to(options.device) for batch in drawn]
    t_env, n = int(0.9 * args.t_max), 0
    for _ in range(2):
        learner.train(batches[0], t_env, 0)
    wait_for(options.device)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    while time.perf_counter() - start < options.seconds:
        learner.train(batches[n % 3], t_env, 0)
        wait_for(options.device)
        n += 1
    memory = th.cuda.max_memory_reserved() / 2**20 if options.device == "cuda" else None
    rate = n / (time.perf_counter() - start)
    print(json.dumps({"updates_per_second": rate, "gpu_memory_mb": memory}), flush=True)


def side_by_side(n: int, options: argparse.Namespace, words: list[str]) -> dict:
    """What `n` runs did together; `error` if one of them ended early."""
    command = [sys.executable, __file__, *words, "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    runs = []
    for share in gpu_shares(["0"], n, sorted(os.sched_getaffinity(0))):
        runs.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        os.sched_setaffinity(runs[-1].pid, share.cpus or ())
    facts = {"alg": options.alg, "map": options.map, "device": options.device, "runs": n}
    try:
        for run in runs:
            if run.stdout.readline() != "ready\n":
                reason = (run.stderr.read().strip().splitlines() or ["it was killed"])[-1]
                return facts | {"error": reason[:300]}
        for run in runs:
            run.stdin.write("go\n")
            run.stdin.flush()
        results = [json.loads(run.stdout.readline()) for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.communicate()
    rates = [result["updates_per_second"] for result in results]
    return facts | {
        "updates_per_second": sum(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "gpu_memory_mb": results[0]["gpu_memory_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--alg", default="inspo")
    add("--map", default="5m_vs_6m", choices=MAPS)
    add("--batch-size", type=int, default=128, help="episodes in an update")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--seconds", type=float, default=10.0, help="to count for")
    add("--runs", nargs="+", type=int, default=[1, 2, 4], metavar="N")
    add("--with", nargs="+", metavar="KEY=VALUE", dest="changes", default=[], help="other keys")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    require(options.device)
    if options.worker:
        return work(options)
    for n in options.runs:
        found = side_by_side(n, options, sys.argv[1:])
        print(json.dumps(found), flush=True)
        if "error" in found:
            break


if __name__ == "__main__":
    main()
