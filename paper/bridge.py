"""A GIF of the policies learnt on Bridge: both orders of crossing, as the seeds chose them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inspo.envs.bridge import decode, is_done
from inspo.experiments.cells import finished_run_of
from inspo.experiments.records import Run, provenance
from inspo.experiments.tables import write_json
from inspo.utils.errors import ConfigError, UserError
from paper.boards import episode_png, episodes_gif
from paper.options import Options, changed, check_algorithms
from paper.reader import label, read_table
from paper.tables import failures, run_missing, with_further

BATCHES = 10  # of the runner's environments: enough to see an order that is played now and then
COMMON = 0.1  # share of the episodes from which an order of crossing is the policy's, not noise


@dataclass(frozen=True)
class Crossing:
    """An episode in which all agents reach their goals.

    states `[L + 1, S]`, actions `[L, n]`. order: the agents as they come home. share: of how many
    of the episodes `played` this order was seen.
    """

    states: np.ndarray
    actions: np.ndarray
    order: tuple[int, ...]
    share: float
    played: int
    value: float  # the return

    def record(self) -> dict[str, Any]:
        return {"first": self.order[0], "share": self.share, "played": self.played} | {
            "return": self.value
        }


def reproduce(options: Options) -> bool:
    """Take seeds in turn, run them if they are missing, until both orders have been seen; draw."""
    quality = (options.qualities or ["optimal"])[0]
    table = with_further(read_table("table3", options.seeds), options)
    known = [data.overrides["quality"] for data in table.comparison.datasets]
    if quality not in known:
        raise ConfigError(f"--qualities: Bridge has {', '.join(known)}; found '{quality}'")
    name = check_algorithms(options.algorithms or ["inspo"])[0]
    cells = changed(table.cells, options.changes)
    folder = options.results / "runs" / table.runs
    shown: dict[tuple[int, ...], tuple[str, Crossing]] = {}  # order -> title, episode
    record: dict[str, Any] = {}
    for seed in table.comparison.seeds:
        cell = cells[f"bridge_{quality}", name, seed]
        report = run_missing([cell], options, folder, "bridge")
        run = finished_run_of(folder, cell)
        if failures(report) or run is None:
            return False
        crossings = best_crossings(run)
        record[cell.id] = provenance(run) | {
            "orders_of_crossing": [crossing.record() for crossing in crossings]
        }
        for crossing in crossings:
            text = f"agent {crossing.order[0] + 1} first, return {crossing.value:.2f}"
            share = f"{crossing.share:.0%} of {crossing.played} episodes"
            print(f"seed {seed}: {text}, {share}")
            if crossing.share >= COMMON:
                shown.setdefault(crossing.order, (f"seed {seed}: {text}", crossing))
        if len(shown) == 2:
            break
    if not shown:
        raise UserError(
            f"{name} on Bridge {quality}: no seed crosses in {COMMON:.0%} of its episodes"
        )
    stem = options.results / "paper" / f"bridge_{quality}_{name}"
    paths = draw(stem, label(name, name), list(shown.values()))
    numbers = write_json(f"{stem}.json", record)
    print("written:", *paths, numbers, sep="\n  ")
    return True


def draw(stem: Path, name: str, shown: list[tuple[str, Crossing]]) -> list[Path]:
    """All episodes side by side as a GIF, the first one as a strip of boards."""
    titles, crossings = zip(*shown)
    gif, png = Path(f"{stem}.gif"), Path(f"{stem}.png")
    gif.parent.mkdir(parents=True, exist_ok=True)
    states, actions = [c.states for c in crossings], [c.actions for c in crossings]
    episodes_gif(gif, states, actions, titles)
    episode_png(png, states[0], actions[0], title=f"{name}, {titles[0]}")
    return [gif, png]


def best_crossings(run: Run) -> list[Crossing]:
    """The best sampled episode of each order of crossing that the last policy plays.

    The most frequent one first; UserError if no episode reaches the goals.
    """
    runner = _runner(run)
    seen: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    played = 0
    for _ in range(BATCHES):
        batch = runner.run(test_mode=True)
        stats = runner.last_stats
        for b, (length, value) in enumerate(zip(stats.lengths, stats.returns)):
            played += 1
            states = batch["state"][b, : int(length) + 1].cpu().numpy()
            order = order_home(states)
            if order is not None:
                actions = batch["actions"][b, : int(length), :, 0].cpu().numpy()
                episode = {"states": states, "actions": actions, "value": value}
                seen.setdefault(order, []).append(episode)
    runner.close_env()
    best = [
        Crossing(**max(episodes, key=lambda e: e["value"]), order=order,
                 share=len(episodes) / played, played=played)
        for order, episodes in seen.items()
    ]  # fmt: skip
    if not best:
        raise UserError(
            f"{run.model_folder}: in {played} episodes no agent comes home; train it longer"
        )
    return sorted(best, key=lambda crossing: -crossing.share)


def order_home(states: np.ndarray) -> tuple[int, ...] | None:
    """The agents in the order in which they reach their goals, if all do by the end (together: the
    lower number first)."""
    done = is_done(decode(states))  # [T, n]
    if not done[-1].all():
        return None
    return tuple(int(agent) for agent in np.argsort(done.argmax(axis=0), kind="stable"))


def _runner(run: Run):
    import torch

    from inspo.run import load_policy
    from inspo.utils.logging import Logger, get_console_logger
    from inspo.utils.quiet import silence_third_parties
    from inspo.utils.settings import Settings

    silence_third_parties()
    torch.manual_seed(0)
    settings = {**run.config, "checkpoint_path": str(run.model_folder), "load_step": 0}
    args = Settings(settings).with_facts(device="cpu")
    return load_policy(args, Logger(get_console_logger("pictures")))[0]
