#!/usr/bin/env python
"""Seconds per update of a learner, on synthetic data of the shapes of a SMAC map, or of Bridge.

    python benchmarks/learner_speed.py --alg inspo --map 5m_vs_6m --json
    python benchmarks/learner_speed.py --alg inspo --map 5m_vs_6m --device cuda

Times `learner.train` alone, one thread, past the critics' warm-up, and prints one JSON object with
the median of `--updates` updates, and `gflop`, the arithmetic of the products in one, beside the
rate of a single large one (`matmul_gflop_per_second`, by MKL). `operators` counts the operations
that an update starts on a GPU, a GRU over whole episodes as a few. It needs torch, numpy, PyYAML.
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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "package"))

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.modules.autoregressive import AutoregressivePolicy
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


def synthetic_batch(
    map_name: str | tuple[int, ...], episodes: int, rng: np.random.Generator
) -> EpisodeBatch:
    """Noise in the shapes of a map, trimmed to the longest episode, with behaviour policies."""
    shape = MAPS[map_name] if isinstance(map_name, str) else map_name
    n, n_actions, obs, state, limit, mean, std = shape
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


def make_learner(algorithm, shape, changes=(), device="cpu", bridge=False):
    """A learner with its default keys on `device`, and its arguments. Nothing is logged."""
    words = [f"--env-config={'bridge' if bridge else 'smax'}_offline", "with"]
    words += [f"use_presets={bridge}", *changes]
    config = load_config([f"--config={algorithm}", *words])
    args = SimpleNamespace(**config.values, device=device)
    n, n_actions, obs, state, limit, _, _ = shape
    info = {
        "n_agents": n,
        "n_actions": n_actions,
        "obs_shape": obs,
        "state_shape": state,
        "episode_limit": limit,
    }
    vars(args).update(info)
    for group in {"behaviour", "retention"} & config.values.keys():
        setattr(args, group, SimpleNamespace(**config.values[group]))
    args.log_interval = 10**12  # logging costs what it costs once per log_interval, not here
    scheme = build_scheme(info)
    mac = mac_REGISTRY[args.mac](scheme, {"agents": n}, args)
    learner = learner_REGISTRY[args.learner](mac, scheme, None, args)
    learner.log_t = args.t_max
    if device == "cuda":
        learner.cuda()
    if learner.needs_behaviour:
        others = None
        if args.behaviour.others != "none":
            width = args.behaviour.others_hidden_dim
            others = AutoregressivePolicy(state, n, n_actions, width).to(device)
        learner.start_from(SimpleNamespace(agent=mac.agent.state_dict(), others=others))
    return learner, args


def require(device: str) -> None:
    """End with one line where there is no such device."""
    if device == "cuda" and not th.cuda.is_available():
        sys.exit(f"{Path(sys.argv[0]).name}: torch sees no GPU on this machine; use --device cpu")


def wait_for(device: str) -> None:
    if device == "cuda":
        th.cuda.synchronize()


FREE = {
    getattr(th.ops.aten, name) for name in ["detach", "empty", "empty_like", "new_empty_strided"]
}


class Counter(TorchDispatchMode):
    """Counts operations that compute or copy something."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        self.n += func.namespace == "aten" and not func.is_view and packet not in FREE
        return func(*args, **(kwargs or {}))


class ShortGRU(TorchFunctionMode):
    """A GRU over whole episodes as one product, as cuDNN does it in one call."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") == "gru":
            weights = next(x for x in args if isinstance(x, (list, tuple)) and len(x) == 4)
            width = weights[1].shape[1]
            return args[0] @ weights[0][:width].T, th.zeros(1, 1, width, device=args[0].device)
        return func(*args, **(kwargs or {}))


def count_operators(algorithm, shape, changes, batch: EpisodeBatch, bridge: bool) -> int:
    """Operations of an update, as a GPU would be given them: on torch's device of shapes alone."""
    original, th.optim.Adam = th.optim.Adam, lambda p, lr, fused: original(p, lr, fused=False)
    try:
        with th.device("meta"):
            learner, args = make_learner(algorithm, shape, changes, "meta", bridge)
    finally:
        th.optim.Adam = original
    for optimiser in learner.optimisers.values():
        optimiser.step = lambda *_: None  # one operation, which this device does not know
    on_meta, counter = batch.to("meta"), Counter()
    with counter, ShortGRU():
        learner.train(on_meta, int(0.9 * args.t_max), 0)
    return counter.n


def time_updates(learner, batches, t_env: int, updates: int, device: str):
    """Seconds of wall clock and of the CPU of each update; the first, a warm-up, is left out."""
    wall, cpu = [], []
    for update in range(updates + 1):
        start = time.perf_counter(), time.process_time()
        learner.train(batches[update % len(batches)], t_env, 0)
        wait_for(device)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return wall[1:], cpu[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--alg", default="inspo")
    parser.add_argument("--map", default="5m_vs_6m", choices=MAPS)
    parser.add_argument("--batch-size", type=int, default=128, help="episodes in an update")
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--with", nargs="+", metavar="KEY=VALUE", dest="changes", default=[], help="other keys"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")
    options = parser.parse_args()
    require(options.device)
    th.set_num_threads(options.threads)
    th.manual_seed(0)

    shape, is_bridge = MAPS[options.map], options.map == "bridge"
    made = options.alg, shape, options.changes
    learner, args = make_learner(*made, options.device, is_bridge)
    rng = np.random.default_rng(0)
    drawn = [synthetic_batch(options.map, options.batch_size, rng) for _ in range(3)]
    batches = [batch.to(options.device) for batch in drawn]
    t_env = int(0.9 * args.t_max)
    wall, cpu = time_updates(learner, batches, t_env, options.updates, options.device)
    gflop = None
    if options.device == "cpu":
        with warnings.catch_warnings():  # PyTorch's own, about what else the flag sets
            warnings.simplefilter("ignore")
            # The counter does not know oneDNN's operations.
            with (
                th.backends.mkldnn.flags(enabled=False),
                FlopCounterMode(display=False) as products,
            ):
                learner.train(batches[0], t_env, 0)
        gflop = products.get_total_flops() / 1e9
    result = {
        "alg": options.alg,
        "map": options.map,
        "device": th.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "seconds_per_update": statistics.median(wall),
        "cpu_seconds_per_update": statistics.median(cpu),
        "gflop": gflop,
        "matmul_gflop_per_second": matmul_speed(),
        "operators": count_operators(*made, drawn[0], is_bridge),
        "updates": options.updates,
        "batch_size": options.batch_size,
        "T": max(batch.max_seq_length for batch in batches),
        "transitions": int(np.mean([batch.lengths.sum() for batch in batches])),
        "threads": options.threads,
        "hidden_dim": args.hidden_dim,
        "critic_hidden_dim": getattr(args, "critic_hidden_dim", None),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if options.device == "cuda":
        result["peak_gpu_memory_mb"] = th.cuda.max_memory_allocated() / 2**20
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:<24}{value}")


if __name__ == "__main__":
    main()
