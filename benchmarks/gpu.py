#!/usr/bin/env python
"""All that is to be measured on a GPU, within minutes, on a machine with torch, numpy and PyYAML.

    python benchmarks/gpu.py --out results.jsonl --minutes 8 [--peers CHECKOUT_OF_CFCQL]

The most important first: does every learner learn there what it learns on the CPU, and without
waiting for the device; seconds per update of every algorithm (and of CFCQL's public learners, where
a checkout is given); where the time of one update goes; how many runs fit side by side. Needs no
simulator, no network and no data. Each result is a line of JSON, written when it is known, so that
the script may be cut off; what no longer fits into the minutes is named in the last line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch as th

sys.path.insert(0, str(Path(__file__).resolve().parent))
from learner_speed import MAPS, make_learner, require, synthetic_batch

HERE = Path(__file__).resolve().parent
ALGORITHMS = ["inspo", "cfcql", "bc", "omar", "icq", "omiga", "alberdice", "macql", "qmix", "mappo"]
PEERS = ("cfcql", "omar", "icq")
DRAWING = {"macql", "alberdice"}  # draw on the device, so that a GPU's draws are others
# Nothing is drawn: the same numbers on both devices, but for rounding.
KEYS = {"resample": "weight", "agent_order": "fixed", "critic_minibatch": "0"}
WHOLE = {"omar", "icq"}  # draw minibatches; 0 is not theirs, so a size above all transitions


def parity(algorithm: str) -> dict:
    """The largest difference of a weight after two plain steps on both devices, and whether an
    update waits for the GPU."""
    from inspo.utils.config import load_config

    words = [f"--config={algorithm}", "--env-config=smax_offline", "with", "use_presets=False"]
    known = load_config(words).values
    keys = KEYS | ({"critic_minibatch": "1000000"} if algorithm in WHOLE else {})
    changes = [f"{key}={value}" for key, value in keys.items() if key in known]
    batch = synthetic_batch((3, 6, 10, 12, 30, 8, 2), 16, np.random.default_rng(0))
    weights = []
    for device in ("cpu", "cuda"):
        th.manual_seed(0)
        learner, args = make_learner(algorithm, (3, 6, 10, 12, 30, 8, 2), changes, device)
        for name, optimiser in learner.optimisers.items():
            own = [p for group in optimiser.param_groups for p in group["params"]]
            learner.optimisers[name] = th.optim.SGD(own, 0.01)
        there, t_env = batch.to(device), int(0.9 * args.t_max)
        for _ in range(2):
            learner.train(there, t_env, 0)
        weights.append(
            [p.detach().cpu() for n in learner.networks.values() for p in n.parameters()]
        )
    apart = max(float((p - q).abs().max()) for p, q in zip(*weights))
    th.cuda.set_sync_debug_mode("error")
    try:
        learner.train(there, t_env, 0)
        waits = None
    except RuntimeError as error:
        waits = str(error).splitlines()[0]
    finally:
        th.cuda.set_sync_debug_mode("default")
    as_on_cpu = algorithm in DRAWING or (math.isfinite(apart) and apart < 1e-3)
    return {"largest_difference": apart, "passed": as_on_cpu and waits is None, "waits": waits}


def profile(algorithm: str, map_name: str) -> dict:
    """Where the time of an update goes: what takes longest on the GPU, and on its host."""
    learner, args = make_learner(algorithm, MAPS[map_name], (), "cuda")
    batch = synthetic_batch(map_name, 128, np.random.default_rng(0)).to("cuda")
    for _ in range(3):
        learner.train(batch, int(0.9 * args.t_max), 0)
    th.cuda.synchronize()
    start = time.perf_counter()
    with th.profiler.profile() as found:
        learner.train(batch, int(0.9 * args.t_max), 0)
        th.cuda.synchronize()
    seconds, events = time.perf_counter() - start, found.key_averages()
    kernels = [e for e in events if e.device_type == th.autograd.DeviceType.CUDA]
    on_host = sorted(events, key=lambda e: -e.self_cpu_time_total)[:25]
    return {
        "alg": algorithm,
        "map": map_name,
        "seconds_with_profiler": seconds,
        "kernels": sum(e.count for e in kernels),
        "gpu_ms": sum(e.self_device_time_total for e in kernels) / 1e3,
        "on_gpu": [
            [e.key[:80], e.count, e.self_device_time_total / 1e3]
            for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:25]
        ],
        "on_host": [[e.key[:80], e.count, e.self_cpu_time_total / 1e3] for e in on_host],
    }


class Script:
    """Runs the steps one after the other while there is time, and writes what they say."""

    def __init__(self, out: Path, minutes: float):
        self.out, self.end = out, time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def write(self, what: str, **facts) -> None:
        line = json.dumps({"what": what, **facts})
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line[:300], flush=True)

    def step(self, what: str, needs: float, function, *args) -> None:
        """`function(*args)` here, if `needs` seconds are left; what it raises is a result too."""
        if self.end - time.monotonic() < needs:
            self.left_out.append(what)
            return
        start = time.monotonic()
        try:
            facts = function(*args)
        except Exception as error:
            facts = {"error": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        self.write(what, **facts, took=round(time.monotonic() - start, 1))

    def command(self, what: str, needs: float, words: list[str]) -> None:
        """A script of this folder in a process of its own; every line of JSON is a result."""
        left = self.end - time.monotonic()
        if left < needs:
            self.left_out.append(what)
            return
        command = [sys.executable, str(HERE / words[0]), *words[1:]]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:  # as they come: the rest may be cut off
                if line.startswith("{"):
                    self.write(what, **json.loads(line))
                if time.monotonic() > self.end:
                    break
        finally:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="lines are appended")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--peers", metavar="CHECKOUT", help="of CFCQL's repository")
    parser.add_argument("--algs", nargs="+", default=ALGORITHMS)
    options = parser.parse_args()
    require("cuda")
    script = Script(options.out, options.minutes)
    card = th.cuda.get_device_properties(0)
    script.write(
        "machine",
        card=card.name,
        memory_gb=round(card.total_memory / 2**30, 1),
        torch=th.__version__,
        cuda=th.version.cuda,
        cpus=len(os.sched_getaffinity(0)),
    )
    on_gpu = ["--device", "cuda", "--json"]
    for algorithm in options.algs:
        script.step(f"parity {algorithm}", 5, parity, algorithm)
    for algorithm in options.algs:
        words = ["learner_speed.py", "--alg", algorithm, "--updates", "20", *on_gpu]
        script.command("speed", 15, words)
    script.step("profile", 15, profile, options.algs[0], "5m_vs_6m")
    for peer in PEERS if options.peers else ():
        words = ["reference_speed.py", options.peers, "--alg", peer, "--device", "cuda"]
        script.command("peer", 15, words)
    runs = ["many_runs.py", "--alg", options.algs[0], "--device", "cuda", "--seconds", "5"]
    script.command("many runs", 40, [*runs, "--runs", "1", "2", "4", "8", "16", "32"])
    for map_name in ("6h_vs_8z", "2s3z", "3s_vs_5z"):
        for algorithm in options.algs[:2]:
            words = ["learner_speed.py", "--alg", algorithm, "--map", map_name, *on_gpu]
            script.command("speed", 15, words)
    script.write("end", left_out=script.left_out)


if __name__ == "__main__":
    main()
