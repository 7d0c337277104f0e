"""What copies of episodes do: behaviour policies and InSPO on files made so on purpose.

125 episodes, each eight times, as in CFCQL's published data. In a second file the copies are
hidden: a millionth of noise on the rewards makes them unequal and changes nothing else, so that the
held-out episodes have copies among those that are trained on. What the fitted policies are worth is
measured on episodes of the same data that neither file has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from inspo.components.episode_batch import build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.experiments.cells import Cell
from inspo.experiments.cells import finished_run_of as finished
from inspo.experiments.records import provenance
from inspo.experiments.tables import fixed, write_json
from inspo.offline import OfflineDataset, load_dataset, write_dataset
from inspo.offline.behaviour import individual_nll, obtain
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.collect import ensure_dataset
from inspo.utils.phases import Phase
from inspo.utils.settings import Settings
from paper.options import Options, changed, check_maps
from paper.tables import failures, run_missing

DISTINCT, TIMES, UNSEEN = 125, 8, 250
HELD_OUT = {"copies": "content", "hidden": "episode"}
FIT = {"behaviour.held_out": 0.2, "behaviour.eval_interval": 25}
GAMES = {  # map -> environment, keys; whether InSPO is run too, which on battles takes long
    "2s3z": ("smax", {"quality": "medium", **FIT, "behaviour.updates": 400,
                      "behaviour.batch_size": 8, "behaviour.others": "product"}, False),
    "bridge": ("bridge", {"quality": "mixed", **FIT, "t_max": 300_000, "behaviour.updates": 400,
                          "behaviour.batch_size": 64, "behaviour.others_updates": 200}, True),
}  # fmt: skip


def reproduce(options: Options) -> bool:
    """Make the files, fit and train on both; whether nothing failed."""
    check_maps("copies", "smax", options.maps, GAMES)
    return all([one_game(game, options) for game in options.maps or GAMES])


def one_game(game: str, options: Options) -> bool:
    env, keys, with_runs = GAMES[game]
    folder = options.results / "runs" / "copies" / game
    plain = Cell("plain", "inspo", f"{env}_offline", {"map_name": game, "seed": 0, **keys})
    plain = changed({"plain": plain}, options.changes)["plain"]
    args = Settings(plain.config().values)
    collecting = partial(Phase, "collecting data")
    files, unseen = make_files(load_dataset(ensure_dataset(args, print, collecting)), folder)
    fits, cells = {}, []
    for name, path in files.items():
        copied = load_dataset(path)
        fits[name] = [fit(copied, unseen, args, seed) for seed in range(options.seeds or 1)]
        print(f"{game}, held out by {HELD_OUT[name]}:", *map(summary, fits[name]), sep="\n  ")
        for seed in range(options.seeds or 1) if with_runs else ():
            own = {**plain.overrides, "seed": seed, "dataset.path": path}
            cells.append(replace(plain, id=f"{name}/seed{seed}", overrides=own))
    report = run_missing(cells, options, folder, f"copies, {game}")
    runs = {cell.id: run for cell in cells if (run := finished(folder, cell))}
    record = {
        "data": f"{DISTINCT} episodes of {game}, {TIMES} times each",
        "held_out_by": HELD_OUT,
        "fits": fits,
        "inspo": {name: {**provenance(run), "tests": run.tests} for name, run in runs.items()},
    }
    for name, run in runs.items():
        returns = [fixed(test["test_return_mean"]) for test in run.tests]
        print(f"  InSPO, {name}: return {returns[0]} at first, {returns[-1]} at last")
    print("written:", write_json(options.results / env / f"duplicates_{game}.json", record))
    return not failures(report)


def make_files(data: OfflineDataset, folder: Path) -> tuple[dict[str, Path], OfflineDataset]:
    """`copies.h5` and `hidden.h5`, and episodes that neither has."""
    counts = np.bincount(data.equal.first)
    single = np.flatnonzero(counts == 1)
    paths = {name: folder / "data" / f"{name}.h5" for name in HELD_OUT}
    rng = np.random.default_rng(0)
    part = data.select(rng.permutation(np.repeat(single[:DISTINCT], TIMES)))
    reward = part.arrays["reward"]
    noise = rng.normal(0, 1e-6, reward.shape).astype(np.float32)
    noisy = OfflineDataset.build(
        {**part.arrays, "reward": reward + noise}, part.lengths, part.metadata, part.battle_won
    )
    for path, made in zip(paths.values(), (part, noisy)):
        if not path.exists():
            write_dataset(path, made)
    return paths, data.select(single[DISTINCT : DISTINCT + UNSEEN])


def fit(data: OfflineDataset, unseen: OfflineDataset, args: Settings, seed: int) -> dict[str, Any]:
    """The held-out NLL over the updates, the update that was kept, and its NLL on `unseen`."""
    info = data.metadata.env_info()
    args = Settings({**args.as_dict(), "seed": seed}).with_facts(device="cpu", **info)
    torch.set_num_threads(args.torch_threads)
    mac = mac_REGISTRY[args.mac](build_scheme(info), {"agents": args.n_agents}, args)
    curve: list[tuple[int, float]] = []

    def log(text: str) -> None:
        if found := re.match(r"behaviour policies: update (\d+), held-out NLL (.*)", text):
            curve.append((int(found[1]), float(found[2])))

    with TemporaryDirectory() as cache:  # the curve is in the log of a new fit alone
        content = data.metadata.content_hash
        buffer = OfflineBuffer(data, 0)
        fitted = obtain(buffer, mac, args, content, Path(cache), log, lambda: None)
    mac.agent.load_state_dict(fitted.agent)
    kept = min(curve, key=lambda point: point[1])
    return {
        "seed": seed,
        "curve": curve,
        "update": kept[0],
        "held_out": kept[1],
        "unseen": nll(mac, OfflineBuffer(unseen, 0)),
    }


@torch.no_grad()
def nll(mac: Any, buffer: OfflineBuffer) -> float:
    """-log mu of the actions, per agent and step, the mean over all episodes alike."""
    blocks = np.array_split(np.arange(len(buffer)), 8)
    values = [individual_nll(mac, buffer.batch(block)).mean() * len(block) for block in blocks]
    return float(sum(values)) / len(buffer)


def summary(one: Mapping[str, Any]) -> str:
    return (
        f"seed {one['seed']}: update {one['update']} of {one['curve'][-1][0]} is kept, held-out "
        f"NLL {one['held_out']:.4f}, on unseen episodes {one['unseen']:.4f}"
    )
