#!/usr/bin/env python
"""Seconds per update of CFCQL's public learners, on the batches of learner_speed.py.

    git clone https://github.com/thu-rllab/CFCQL
    python benchmarks/reference_speed.py CFCQL --alg omar --map 5m_vs_6m
    python benchmarks/reference_speed.py CFCQL --alg cfcql --device cuda

CFCQL's repository has the public learners of CFCQL, OMAR and ICQ that ours are compared with. They
are taken from the checkout as they are, with their own configuration and without its runners, which
need the game. One thread; the median of `--updates` updates without the first, as one JSON object.
"""

import argparse
import importlib
import json
import logging
import statistics
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch as th
import torch.nn.functional as F
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from learner_speed import MAPS, require, synthetic_batch, wait_for

ALGORITHMS = {  # configuration, module and class of the learner, module and class of the controller
    "cfcql": ("cql_qmix", "cq_learner", "CQLearner", "n_controller", "NMAC"),
    "omar": ("baseline_omar", "omar_learner", "OMARLearner", "basic_controller", "BasicMAC"),
    "icq": ("baseline_icq", "icq_learner", "ICQLearner", "basic_controller", "BasicMAC"),
}
PACKAGES = ("learners", "controllers", "modules", "components", "utils")  # of theirs and of ours


class Batch:
    """What the public learners ask of a batch: its keys, `batch_size` and `max_seq_length`."""

    def __init__(self, data: dict[str, th.Tensor], n_actions: int, device: str = "cpu"):
        self.data, self.device = {key: value.to(device) for key, value in data.items()}, device
        self.data["actions_onehot"] = F.one_hot(data["actions"].squeeze(-1), n_actions).float()
        self.batch_size, self.max_seq_length = data["filled"].shape[:2]

    def __getitem__(self, key: str) -> th.Tensor:
        return self.data[key]


def use_checkout(source: Path) -> None:
    """Import the shared package names from `source` from now on.

    The packages' own `__init__` are left out: they import all that lies in them, and what that
    needs.
    """
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    for name in (*PACKAGES, "modules.agents", "modules.critics", "modules.mixers"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    agents = {
        "rnn": importlib.import_module("modules.agents.rnn_agent").RNNAgent,
        "n_rnn": importlib.import_module("modules.agents.n_rnn_agent").NRNNAgent,
    }
    sys.modules["modules.agents"].REGISTRY = agents
    basic = importlib.import_module("controllers.basic_controller").BasicMAC
    sys.modules["controllers"].REGISTRY = {"basic_mac": basic}


def make_learner(source: Path, algorithm: str, map_name: str, device: str = "cpu"):
    """A learner of the checkout at `source`, with its own settings."""
    configuration, module, learner_class, controller, mac_class = ALGORITHMS[algorithm]
    n, n_actions, obs, state, *_ = MAPS[map_name]
    settings = {}
    for name in ("default", f"algs/{configuration}"):
        settings |= yaml.safe_load((source / f"config/{name}.yaml").read_text())
    settings |= {"n_agents": n, "n_actions": n_actions, "state_shape": state, "obs_shape": obs}
    settings |= {"device": device, "use_cuda": device == "cuda", "learner_log_interval": 10**12}
    args = SimpleNamespace(**settings)
    widths = {"state": state, "obs": obs, "actions_onehot": (n_actions,)}
    scheme = {key: {"vshape": width} for key, width in widths.items()}
    mac = getattr(importlib.import_module(f"controllers.{controller}"), mac_class)
    logger = SimpleNamespace(
        console_logger=logging.getLogger("reference"), log_stat=lambda *words: None
    )
    learner = getattr(importlib.import_module(f"learners.{module}"), learner_class)
    learner = learner(mac(scheme, {"agents": n}, args), scheme, logger, args)
    learner.log_stats_t = 10**12  # logging costs what it costs once per interval, not here
    if device == "cuda":
        learner.cuda()
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--alg", default="omar", choices=ALGORITHMS)
    parser.add_argument("--map", default="5m_vs_6m", choices=[m for m in MAPS if m != "bridge"])
    parser.add_argument("--batch-size", type=int, default=128, help="episodes in an update")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    require(options.device)
    source = options.checkout.resolve() / "discrete/src"
    if not (source / "learners/cq_learner.py").is_file():
        parser.error(f"{options.checkout}: expected a checkout of CFCQL's repository, found none")
    th.set_num_threads(1)
    th.manual_seed(0)
    warnings.simplefilter("ignore")

    rng = np.random.default_rng(0)
    n_actions = MAPS[options.map][1]
    drawn = [synthetic_batch(options.map, options.batch_size, rng) for _ in range(3)]
    batches = [Batch(batch.data, n_actions, options.device) for batch in drawn]
    use_checkout(source)
    with_prints, sys.stdout = sys.stdout, sys.stderr  # theirs
    learner = make_learner(source, options.alg, options.map, options.device)
    wall, cpu = [], []
    for update in range(options.updates + 1):
        start = time.perf_counter(), time.process_time()
        learner.train(batches[update % len(batches)], 1, 0)
        wait_for(options.device)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    sys.stdout = with_prints
    commit = subprocess.run(
        ["git", "-C", str(options.checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    print(
        json.dumps(
            {
                "alg": f"CFCQL's repository: {options.alg}",
                "commit": commit.stdout.strip() or None,
                "map": options.map,
                "device": options.device,
                "seconds_per_update": statistics.median(wall[1:]),
                "cpu_seconds_per_update": statistics.median(cpu[1:]),
                "updates": options.updates,
                "batch_size": options.batch_size,
                "T": max(batch.max_seq_length for batch in batches),
                "threads": 1,
                "torch": th.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
