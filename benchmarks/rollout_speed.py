#!/usr/bin/env python
"""Seconds for a batch of SMAX test episodes, with a shipped policy, once everything is compiled.

python benchmarks/rollout_speed.py --policy mappo_expert --json
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch as th

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "package"))

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.offline.collect import POLICIES, read_policy
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.utils.config import load_config
from inspo.utils.quiet import silence_third_parties


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--map", default="2s3z")
    parser.add_argument("--policy", default="mappo_expert", help="a folder of policies/smax/MAP")
    parser.add_argument("--episodes", type=int, default=32, help="environments stepped together")
    parser.add_argument("--batches", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    options = parser.parse_args()
    silence_third_parties()
    th.set_num_threads(1)
    th.manual_seed(0)

    config = load_config(["--config=mappo", "--env-config=smax", "with", f"map_name={options.map}"])
    facts, weights = read_policy(POLICIES / "smax" / options.map / options.policy)
    values = {**config.values, **facts["settings"], "batch_size_run": options.episodes, "seed": 0}
    args = SimpleNamespace(**values)
    runner = runner_REGISTRY[args.runner](args, None)
    vars(args).update(runner.get_env_info())
    scheme = build_scheme(runner.get_env_info())
    mac = mac_REGISTRY[args.mac](scheme, {"agents": args.n_agents}, args)
    mac.agent.load_state_dict(weights)
    runner.setup(scheme, {"agents": args.n_agents}, None, mac)
    start = time.perf_counter()
    runner.run(test_mode=True)
    first = time.perf_counter() - start
    seconds, steps = [], []
    for _ in range(options.batches):
        start = time.perf_counter()
        runner.run(test_mode=True)
        seconds.append(time.perf_counter() - start)
        steps.append(sum(runner.last_stats.lengths))
    result = {
        "map": options.map,
        "policy": options.policy,
        "episodes": options.episodes,
        "seconds": statistics.median(seconds),
        "environment_steps_per_second": round(sum(steps) / sum(seconds)),
        "seconds_first_batch": first,
    }
    print(
        json.dumps(result) if options.json else "\n".join(f"{k:<30}{v}" for k, v in result.items())
    )


if __name__ == "__main__":
    main()
