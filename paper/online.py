"""Offline to online: return against steps in the simulator, with and without a head start.

InSPO's policy goes on with MAPPO, CFCQL's values with QMIX (`checkpoint_path`); beside each the
same online run from nothing. Steps are those of the simulator: a head start has been paid for in
data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inspo.experiments.cells import Cell
from inspo.experiments.cells import finished_run_of as finished
from inspo.experiments.plots import INK, MUTED, STYLE, colour, plt, save
from inspo.experiments.records import Run, provenance
from inspo.experiments.tables import fixed, write_json
from inspo.utils.command_line import text_table
from paper.options import Options, changed, check_maps
from paper.reader import label
from paper.tables import failures, run_missing


@dataclass(frozen=True)
class Pair:
    """An offline algorithm and the online one that goes on with it: keys of their runs.

    online: of all online runs, so that the agents are built alike. head_start: of those that begin
    with the offline run's. unprepared: of further ones, which lack what keeps the head start.
    """

    offline: str
    online: str
    trained: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    head_start: Mapping[str, Any] = field(default_factory=dict)
    unprepared: Mapping[str, Any] | None = None


INSPO = Pair("inspo", "mappo", head_start={"critic_warmup": 0.2})
CFCQL = Pair("cfcql", "qmix", head_start={"epsilon_start": 0.05})
BATTLE = {"test_interval": 10_000, "test_nepisode": 64, "final_test_nepisode": 320}
MLP = {"hidden_dim": 256, "obs_last_action": False, "t_max": 40_000, "test_nepisode": 320}
SMALL = {"behaviour.updates": 200, "behaviour.batch_size": 64}
GAMES = {  # map -> environment, quality of the data, pairs
    "2s3z": ("smax", "medium", [
        replace(INSPO, keys={"agent": "rnn_ns", "obs_agent_id": False, "t_max": 60_000, **BATTLE}),
        replace(
            CFCQL,
            trained={"global_cql_alpha": 0.1, "softmax_temp": 0.5, "t_max": 1_000_000,
                     "test_nepisode": 0},
            keys={"t_max": 60_000, **BATTLE},
        ),
    ]),
    "bridge": ("bridge", "mixed", [
        replace(
            INSPO,
            trained={"t_max": 400_000, **SMALL, "behaviour.others_updates": 200},
            keys={"agent": "mlp_ns", "obs_agent_id": False, **MLP, "test_interval": 5_000},
            unprepared={},
        ),
        replace(
            CFCQL,
            trained={"t_max": 300_000, **SMALL},
            keys={"agent": "mlp", **MLP, "test_interval": 5_000},
            unprepared={},
        ),
    ]),
}  # fmt: skip
ARMS = {
    "fresh": "from nothing",
    "head_start": "with the head start",
    "unprepared": "head start, default keys",
}


def reproduce(options: Options) -> bool:
    """Run what is missing, the offline runs first, and draw; whether nothing failed."""
    check_maps("online", "smax", options.maps, GAMES)
    seeds, folder = range(options.seeds or 1), options.results / "runs" / "online"
    good = True
    for game in options.maps or ["2s3z"]:
        offline = changed(offline_cells(game, seeds), options.changes)
        report = run_missing(list(offline.values()), options, folder, f"{game}, offline")
        trained = {k: run for k, cell in offline.items() if (run := finished(folder, cell))}
        cells = changed(online_cells(game, trained), options.changes) if trained else {}
        second = run_missing(list(cells.values()), options, folder, f"{game}, online")
        runs = {k: run for k, cell in cells.items() if (run := finished(folder, cell))}
        good = good and not failures(report) and not failures(second)
        if runs:
            write(options.results / GAMES[game][0] / f"online_{game}", game, runs)
    return good


Key = tuple[str, str, int]
"""The offline algorithm, the arm, the seed."""


def offline_cells(game: str, seeds: Sequence[int]) -> dict[tuple[str, int], Cell]:
    env, quality, pairs = GAMES[game]
    return {
        (pair.offline, seed): Cell(
            f"{game}/{pair.offline}/seed{seed}",
            pair.offline,
            f"{env}_offline",
            {"map_name": game, "quality": quality, "seed": seed, **pair.trained},
        )
        for pair in pairs
        for seed in seeds
    }


def online_cells(game: str, trained: Mapping[tuple[str, int], Run]) -> dict[Key, Cell]:
    """The online runs of the offline ones that are finished."""
    env, _, pairs = GAMES[game]
    cells = {}
    for pair in pairs:
        for seed in [seed for name, seed in trained if name == pair.offline]:
            start = {"checkpoint_path": trained[pair.offline, seed].model_folder}
            arms = {"fresh": {}, "head_start": {**start, **pair.head_start}}
            if pair.unprepared is not None:
                arms["unprepared"] = {**start, **pair.unprepared}
            for arm, keys in arms.items():
                cells[pair.offline, arm, seed] = Cell(
                    f"{game}/{pair.online}_{arm}/seed{seed}",
                    pair.online,
                    env,
                    {"map_name": game, "seed": seed, **pair.keys, **keys},
                )
    return cells


def write(stem: Path, game: str, runs: Mapping[Key, Run]) -> None:
    """`{stem}.json` and `.png`; prints the returns at the beginning, half-way and at the end."""
    record = [
        {"offline": offline, "arm": arm, **provenance(run), "tests": run.tests}
        for (offline, arm, _), run in runs.items()
    ]
    rows = []
    for (offline, arm, seed), run in runs.items():
        returns = [test["test_return_mean"] for test in run.tests]
        three = (returns[0], returns[len(returns) // 2], returns[-1])
        rows.append([f"{offline} to {run.algorithm}", ARMS[arm], str(seed), *map(fixed, three)])
    print(text_table(["", "online run", "seed", "first test", "half-way", "last test"], rows))
    written = write_json(f"{stem}.json", record), draw(Path(f"{stem}.png"), game, runs)
    print("written:", *written, sep="\n  ")


def draw(path: Path, game: str, runs: Mapping[Key, Run]) -> Path:
    """A panel for each pair, a line for each run."""
    pairs = [pair for pair in GAMES[game][2] if any(key[0] == pair.offline for key in runs)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(pairs), figsize=(5.6 * len(pairs), 4.2), squeeze=False)
        for ax, pair in zip(axes[0], pairs):
            styles = {
                "fresh": {"color": MUTED},
                "head_start": {"color": colour(pair.offline)},
                "unprepared": {"color": colour(pair.offline), "ls": ":"},
            }
            for (offline, arm, seed), run in runs.items():
                if offline == pair.offline:
                    steps = [test["t_env"] for test in run.tests]
                    values = [test["test_return_mean"] for test in run.tests]
                    name = ARMS[arm] if seed == 0 else None
                    ax.plot(steps, values, marker="o", ms=3, label=name, **styles[arm])
            ax.set_title(f"{label(pair.offline, pair.offline)} to {pair.online.upper()}")
            ax.set_xlabel("steps in the simulator")
            ax.set_ylabel("return of an episode", color=INK)
            ax.legend(loc="lower right")
        figure.suptitle(f"Online after offline: {game}", x=0.01, ha="left", fontweight="bold")
        return save(figure, path)
