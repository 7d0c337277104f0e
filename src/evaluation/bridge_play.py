"""Plays a learnt policy on Bridge, to be drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from inspo.envs.bridge import decode, is_done
from inspo.evaluation.grid import Result
from inspo.utils.errors import UserError

BATCHES = 10  # of the runner's environments: enough to see a mode that is played now and then


def one_of_each_mode(result: Result, seed: int = 0) -> list[dict[str, Any]]:
    """The best sampled episode of each order of crossing that the last policy plays.

    Each: `states [L + 1, S]`, `actions [L, 2]`, `return`, `first` (the agent that is home first),
    `share` (how often this order was seen) and `played` (of how many episodes). At most two, the
    more frequent first; UserError if no episode reaches the goals.
    """
    runner = _runner(result, seed)
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    played = 0
    for _ in range(BATCHES):
        batch = runner.run(test_mode=True)
        stats = runner.last_stats
        for b, (length, value) in enumerate(zip(stats.lengths, stats.returns)):
            played += 1
            states = batch["state"][b, : int(length) + 1].cpu().numpy()
            first = first_home(states)
            if first is not None:
                actions = batch["actions"][b, : int(length), :, 0].cpu().numpy()
                found[first].append(
                    {"states": states, "actions": actions, "return": value, "first": first}
                )
    runner.close_env()
    best = [
        max(episodes, key=lambda e: e["return"])
        | {"share": len(episodes) / played, "played": played}
        for episodes in found.values()
        if episodes
    ]
    if not best:
        raise UserError(
            f"{result.model_folder}: in {played} episodes no agent comes home; train it longer"
        )
    return sorted(best, key=lambda e: -e["share"])


def first_home(states: np.ndarray) -> int | None:
    """The agent that reaches its goal first, if both do by the end (together: agent 0)."""
    done = np.array([is_done(cells) for cells in decode(states)])  # [T, 2]
    if not done[-1].all():
        return None
    return int(done.argmax(axis=0).argmin())


def _runner(result: Result, seed: int):
    import torch
    from inspo.run import load_policy
    from inspo.utils.logging import Logger, get_console_logger
    from inspo.utils.quiet import silence_third_parties

    silence_third_parties()
    torch.manual_seed(seed)
    settings = {**result.config, "checkpoint_path": str(result.model_folder), "load_step": 0}
    args = SimpleNamespace(**settings, device="cpu")
    return load_policy(args, Logger(get_console_logger("pictures")))[0]
