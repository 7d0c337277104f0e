#!/usr/bin/env python
"""Seconds per update of a learner, on synthetic data of the shapes of a SMAC map, or of Bridge.

    python benchmarks/learner_speed.py --alg inspo --map 5m_vs_6m --json

Times `learner.train` alone, one thread, past the critics' warm-up, and prints one JSON object with
the median of `--updates` updates, and `gflop`, the arithmetic of the products in one, beside the
rate of a single large one (`matmul_gflop_per_second`, by MKL).
Episodes' lengths are drawn as in the published data; nothing is learnt from them, the values are
noise.
"""

import argparse
import json
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch as th
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "package"))

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.offline.behaviour import Behaviour
from inspo.utils.config import load_config
from inspo.utils.rl_utils import masked_log_softmax

# agents, actions, observation, state, limit of SMAC's maps; mean and deviation of the lengths
MAPS = {
    "5m_vs_6m": (5, 12, 55, 98, 70, 25, 6),
    "2s3z": (5, 11, 80, 120, 120, 48, 12),
    "3s_vs_5z": (3, 11, 48, 68, 250, 130, 40),
    "6h_vs_8z": (6, 14, 78, 140, 150, 35, 8),
    "bridge": (2, 5, 8, 8, 20, 14, 6),  # mixed data; with the presets: feed-forward agents
}


def synthetic_batch(map_name: str, episodes: int, rng: np.random.Generator) -> EpisodeBatch:
    """Noise in the shapes of a map, trimmed to the longest episode, with behaviour policies."""
    n, n_actions, obs, state, limit, mean, std = MAPS[map_name]
    lengths = np.clip(rng.normal(mean, std, episodes).round().astype(int), 2, limit)
    steps = lengths.max() + 1
    filled = np.arange(steps) <= lengths[:, None]
    avail = rng.random((episodes, steps, n, n_actions)) < 0.6
    avail[..., 1] = True
    actions = np.where(avail, rng.random(avail.shape), -1).argmax(-1)
    avail_actions = th.from_numpy(avail.astype(np.int32))
    log_mu = masked_log_softmax(th.from_numpy(rng.normal(size=avail.shape)).float(), avail_actions)
    taken = log_mu.gather(-1, th.from_numpy(actions)[..., None]).squeeze(-1)
    terminated = np.arange(steps) == lengths[:, None] - 1
    tensors = {
        "state": rng.normal(size=(episodes, steps, state)).astype(np.float32),
        "obs": rng.normal(size=(episodes, steps, n, obs)).astype(np.float32),
        "reward": rng.random((episodes, steps, 1)).astype(np.float32),
        "terminated": terminated[..., None].astype(np.uint8),
        "actions": actions[..., None],
    }
    data = {key: th.from_numpy(value) for key, value in tensors.items()}
    data |= {"avail_actions": avail_actions, "behaviour_log_probs": log_mu}
    data["behaviour_log_prob_others"] = taken.sum(-1, keepdim=True) - taken
    mask = th.from_numpy(filled)
    for value in data.values():
        value[~mask] = 0
    data["filled"] = mask[..., None].long()
    return EpisodeBatch(data)


def matmul_speed(size: int = 1024, repeats: int = 15) -> float:
    """GFLOP a second of a product of two square float32 matrices, the median."""
    x, seconds = th.randn(size, size), []
    for _ in range(repeats):
        start = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", default="inspo")
    parser.add_argument("--map", default="5m_vs_6m", choices=MAPS)
    parser.add_argument("--batch-size", type=int, default=128, help="episodes in an update")
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--with", nargs="+", metavar="KEY=VALUE", dest="changes", default=[], help="other keys"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    options = parser.parse_args()
    th.set_num_threads(options.threads)
    th.manual_seed(0)

    is_bridge = options.map == "bridge"
    words = [f"--env-config={'bridge' if is_bridge else 'smax'}_offline", "with"]
    words += [f"use_presets={is_bridge}", *options.changes]
    config = load_config([f"--config={options.alg}", *words])
    args = SimpleNamespace(**config.values, device="cpu")
    n, n_actions, obs, state, limit, _, _ = MAPS[options.map]
    info = {
        "n_agents": n,
        "n_actions": n_actions,
        "obs_shape": obs,
        "state_shape": state,
        "episode_limit": limit,
    }
    vars(args).update(info)
    if "behaviour" in config.values:
        args.behaviour = SimpleNamespace(**args.behaviour)
    args.log_interval = 10**12  # logging costs what it costs once per log_interval, not here
    scheme = build_scheme(info)
    mac = mac_REGISTRY[args.mac](scheme, {"agents": n}, args)
    learner = learner_REGISTRY[args.learner](mac, scheme, None, args)
    learner.log_t = args.t_max
    if learner.needs_behaviour:
        others = None
        if args.behaviour.others != "none":
            others = AutoregressivePolicy(state, n, n_actions, args.behaviour.others_hidden_dim)
        learner.start_from(Behaviour(mac.agent.state_dict(), others, None, None, {}))

    rng = np.random.default_rng(0)
    batches = [synthetic_batch(options.map, options.batch_size, rng) for _ in range(3)]
    t_env = int(0.9 * args.t_max)
    wall, cpu = [], []
    for update in range(options.updates + 1):  # the first warms up the allocator
        start = time.perf_counter(), time.process_time()
        learner.train(batches[update % len(batches)], t_env, 0)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    with warnings.catch_warnings():  # PyTorch's own, about what else the flag sets
        warnings.simplefilter("ignore")
        # The counter does not know oneDNN's operations.
        with th.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as products:
            learner.train(batches[0], t_env, 0)
    result = {
        "alg": options.alg,
        "map": options.map,
        "seconds_per_update": statistics.median(wall[1:]),
        "cpu_seconds_per_update": statistics.median(cpu[1:]),
        "gflop": products.get_total_flops() / 1e9,
        "matmul_gflop_per_second": matmul_speed(),
        "updates": options.updates,
        "batch_size": options.batch_size,
        "T": max(batch.max_seq_length for batch in batches),
        "transitions": int(np.mean([int(b["filled"].sum()) - b.batch_size for b in batches])),
        "threads": options.threads,
        "hidden_dim": args.hidden_dim,
        "critic_hidden_dim": getattr(args, "critic_hidden_dim", None),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:<24}{value}")


if __name__ == "__main__":
    main()
