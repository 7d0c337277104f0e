"""Games that crash, against a ledger of what was played: is every episode counted once and right?

Games in processes of their own (`crashing_game.py`) crash in half of their episodes: they raise,
exit, are killed, abort, hang, in a step or in a reset. They write each episode into a ledger. What
the runner hands over must be the whole episodes of the ledger, each once and with its return, and
what it calls lost must be those that crashed after their reset; no process and no temporary folder
may be left.

    python tests/campaigns/games.py --minutes 20 --seed 1
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, parser, processes, report, tries


def make_runner(ledger: Path, seed: int, n: int, timeout: float) -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from cases import make_args
    from crashing_game import CrashingGame

    from inspo import envs
    from inspo.components.episode_batch import build_scheme
    from inspo.controllers import REGISTRY as mac_REGISTRY
    from inspo.envs import process_vector
    from inspo.runners import REGISTRY

    torch.set_num_threads(1)
    process_vector.FIRST_PAUSE = 0.0  # seconds before a restart
    envs.REGISTRY["crash"] = CrashingGame
    args = make_args("bc", "matrix", seed=seed, agent="mlp")
    args.env, args.env_args = "crash", {"map_name": "crash", "ledger": str(ledger)}
    args.runner, args.batch_size_run, args.test_greedy = "parallel", n, False
    args.env_max_failures, args.env_timeout = 10**6, timeout
    runner = REGISTRY["parallel"](args, None)
    vars(args).update(runner.get_env_info())
    scheme = build_scheme(runner.get_env_info())
    runner.setup(
        scheme, {"agents": 2}, None, mac_REGISTRY["basic_mac"](scheme, {"agents": 2}, args)
    )
    return runner


def faults_of(batch: Any, lost: int, lines: list[dict[str, Any]]) -> list[str]:
    """What is wrong with a batch, given the ledger's lines since the one before."""
    whole = {line["number"]: line for line in lines if line["end"] == "whole"}
    # One that fails in its reset was never begun: another seed is tried, and nothing is lost.
    crashes = sum(line["end"] not in ("whole", "reset") for line in lines)
    faults = [] if lost == crashes else [f"{lost} called lost, {crashes} crashed"]
    numbers = [int(number) for number in batch["state"][:, 0, 0]]
    if sorted(numbers) != sorted(whole):
        faults.append(f"episodes {sorted(numbers)}, the ledger has {sorted(whole)}")
    for e, number in enumerate(numbers):
        line = whole.get(number, {"return": None, "length": None})
        length, total = int(batch["filled"][e].sum()) - 1, float(batch["reward"][e].double().sum())
        if length != line["length"] or abs(total - line["return"]) > 1e-9:
            faults.append(f"episode {number}: {length} steps, return {total}; ledger {line}")
    return faults


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--games", type=int, default=8, help="at a time (default: 8)")
    options.add_argument("--timeout", type=float, default=15.0, help="seconds until a game hangs")
    given = options.parse_args()
    figures: Counter[str] = Counter(episodes=0, crashes=0, hung=0, faults=0)
    with tempfile.TemporaryDirectory(prefix="games-") as name:
        os.environ["TMPDIR"] = name
        tempfile.tempdir = None
        ledger = Path(name) / "ledger.jsonl"
        runner = make_runner(ledger, given.seed, given.games, given.timeout)
        read = 0
        for number in tries(given.minutes):
            batch = runner.run(test_mode=True)
            lines = [json.loads(line) for line in ledger.read_text().splitlines()][read:]
            read += len(lines)
            for fault in faults_of(batch, runner.last_stats.n_lost, lines):
                print(f"batch {number}: {fault}", file=sys.stderr, flush=True)
                figures["faults"] += 1
            figures["episodes"] += given.games
            figures["crashes"] += sum(line["end"] != "whole" for line in lines)
            figures["hung"] += sum(line["end"] == "hang" for line in lines)
        runner.close_env()
        figures["faults"] += len(left_behind(Path(name)))
    report("games", figures)
    return 1 if figures["faults"] else 0


def left_behind(folder: Path) -> list[str]:
    """Processes and folders that outlive the runner."""
    end = time.monotonic() + 10
    while True:
        left = [f"process {pid}: {words}" for pid, _, words in processes() if str(folder) in words]
        left += [f"process {child.pid}" for child in multiprocessing.active_children()]
        left += [str(path) for path in folder.glob("environments-*")]
        if not left or time.monotonic() > end:
            break
        time.sleep(0.05)
    for thing in left:
        print(f"left: {thing}", file=sys.stderr, flush=True)
    return left


if __name__ == "__main__":
    sys.exit(main())
