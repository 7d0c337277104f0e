"""Data of teams whose conventions clash: what methods earn on them, beside a single team's return
and that of cross-play, and with which convention each seed ends.

Nothing of this is in the paper. `tables/conventions.yaml` says which data, variants and runs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inspo.envs import conventions
from inspo.estimation.crossplay import LOSS_OF_A_CLASH, Task, cross_play
from inspo.experiments import crossplay as pages
from inspo.experiments.comparison import compare, finished_runs, recorded_runs
from inspo.experiments.entries import Data, Entry
from inspo.experiments.plots import GRID, STYLE, plt, save
from inspo.experiments.records import Run
from inspo.experiments.tables import NONE, fixed, markdown_table, write_json, write_text
from inspo.offline import teams
from inspo.utils.errors import UserError, require_known
from paper.options import Options, changed
from paper.reader import read_table
from paper.tables import run_table

FILE = "conventions"
WIDTH = 0.4  # of the dots of one dataset in the picture
PANELS = (  # title, how the names of the maps begin, what is across
    ("Spread, K = 2: agents", "spread", "n_agents"),
    ("Spread, N = 3: teams K", "spread_3", "n_teams"),
    ("coord_ring: teams K", "coord_ring", "n_teams"),
    ("counter_circuit: teams K", "counter_circuit", "n_teams"),
)


@dataclass(frozen=True)
class Reference:
    """What the teams of a dataset earn. team: alone; cross: in mixtures of two of them (nan of one
    team). n_teams: K. n_agents: N."""

    team: float
    cross: float
    n_teams: int
    n_agents: int

    def share(self, value: float) -> float:
        """Of the way from cross-play to a single team's return: 1 is as good as a team."""
        return (value - self.cross) / (self.team - self.cross)


def reproduce(options: Options) -> bool:
    """Run what is missing and write it; whether nothing failed."""
    table = read_table(FILE, options.seeds)
    maps = {data.key: str(data.overrides["map_name"]) for data in table.comparison.datasets}
    for name in options.maps or []:
        require_known(name, set(maps.values()), "--maps: unknown map")
    wanted = {key for key, name in maps.items() if not options.maps or name in options.maps}
    found = {
        data.key: reference(data, options.results / "conventions")
        for data in table.comparison.datasets
        if data.key in wanted or (options.results / "conventions" / _file(data)).exists()
    }
    comparison = replace(table.comparison, picture=lambda entries, path: draw(path, entries, found))
    table = replace(table, comparison=comparison)
    fine = run_table(table, options, wanted)
    target, folder = options.results / table.files, options.results / "runs" / table.runs
    cells = changed(table.cells, options.changes)
    runs = recorded_runs(comparison, cells, target, folder) | finished_runs(cells, folder)
    print(*write_seeds(target, compare(comparison, runs), found), sep="\n")
    return fine


# --------------------------------------------------------------------------------------------------
# What the teams earn


def _env(data: Data) -> str:
    return data.environment.removesuffix("_offline")


def _file(data: Data) -> str:
    return f"{_env(data)}_{data.overrides['map_name']}.json"


def reference(data: Data, folder: Path) -> Reference:
    """From the cross-play in `folder`, which is measured first if it is missing.

    UserError if two of the teams do not clash: then the data are not fit for this.
    """
    env, map_name = _env(data), str(data.overrides["map_name"])
    n_teams = len(teams.shares(env, map_name, str(data.overrides["quality"])))
    path = folder / _file(data)
    record = _read(path)
    if len(record.get("teams", [])) < n_teams:
        print(f"cross-play of {env} {map_name}: a minute or two", flush=True)
        most = max(n_teams, len(record.get("teams", [])), 2)
        played = cross_play([], most, Task(env, map_name, {}), n_episodes=128)
        pages.write(folder, played, {"seed": 0, "policy": "run"})
        record = _read(path)
    mean = np.array(record["matrix"])[:n_teams, :n_teams]
    others = ~np.eye(n_teams, dtype=bool)
    loss = np.array(record["loss"], dtype=float)[:n_teams, :n_teams][others]
    if (~(loss >= LOSS_OF_A_CLASH)).any():
        raise UserError(
            f"{path}: two of the first {n_teams} teams lose less than {LOSS_OF_A_CLASH:.0%} of "
            "their return in cross-play, so that they hold no conventions that clash. Take "
            "another quality, or other teams"
        )
    cross = float(mean[others].mean()) if n_teams > 1 else math.nan
    n_agents = len(record["mixtures"][0]["members"])
    return Reference(float(mean.diagonal().mean()), cross, n_teams, n_agents)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: expected a cross-play as crossplay.py writes it ({error})"
        ) from error
    return content


# --------------------------------------------------------------------------------------------------
# Which convention a seed ended with


@dataclass(frozen=True)
class Ending:
    """The conventions of a run's final test episodes.

    joint: the most frequent one, a name for each agent; share: of the episodes. agents: of each
    agent, its most frequent one and its share.
    """

    joint: list[str]
    share: float
    agents: list[tuple[str, float]]


def ending_of(run: Run) -> Ending | None:
    """None for a run that does not say."""
    columns: list[list[str]] = []
    while (key := f"{conventions.PREFIX}{len(columns)}") in run.raw:
        columns.append([conventions.name_of(run.environment, int(x)) for x in run.raw[key]])
    if not columns:
        return None
    (joint, count), *_ = Counter(zip(*columns)).most_common(1)
    agents = [Counter(column).most_common(1)[0] for column in columns]
    n = len(columns[0])
    return Ending(list(joint), count / n, [(name, k / n) for name, k in agents])


def write_seeds(
    folder: Path, entries: Sequence[Entry], found: Mapping[str, Reference]
) -> list[Path]:
    """`conventions_seeds.md` and `.json`: every seed's return, share and convention."""
    text = [
        "# Conventions that clash: every seed",
        "Share: of the way from the mean return in cross-play (0) to that of a single team (1). "
        "Convention: the most frequent one of the final test's episodes, agent by agent, and its "
        "share of them; in brackets the share of each agent's own most frequent one. Spread: the "
        "landmark that an agent ends at. Kitchens: c, a: round the ring clockwise, anticlockwise; "
        "t, b: stays in the top row, below it. Written by `python src/reproduce.py conventions`.",
    ]
    record = []
    for key, reference in found.items():
        own = [entry for entry in entries if entry.data.key == key and entry.runs]
        if not own:
            continue
        rows = []
        for entry in own:
            for seed, run in sorted(entry.runs.items()):
                value, ending = entry.values[seed], ending_of(run)
                share = reference.share(value)
                shown = [fixed(value), NONE if math.isnan(share) else fixed(share), _text(ending)]
                rows.append([entry.method.label, str(seed), *shown])
                record.append(
                    {"dataset": key, "method": entry.method.key, "seed": seed, "return": value}
                    | {"share": None if math.isnan(share) else share}
                    | {"ending": None if ending is None else vars(ending)}
                )
        cross = NONE if math.isnan(reference.cross) else fixed(reference.cross)
        text += [
            f"## {own[0].data.label}",
            f"A single team: {fixed(reference.team)}. Cross-play: {cross}.",
            markdown_table(["", "seed", "return", "share", "convention"], rows),
        ]
    references = {key: vars(reference) for key, reference in found.items()}
    for facts in references.values():
        facts["cross"] = None if math.isnan(facts["cross"]) else facts["cross"]
    return [
        write_text(folder / f"{FILE}_seeds.md", "\n\n".join(text) + "\n"),
        write_json(folder / f"{FILE}_seeds.json", {"references": references, "seeds": record}),
    ]


def _text(ending: Ending | None) -> str:
    if ending is None:
        return NONE
    agents = " ".join(fixed(share) for _, share in ending.agents)
    return f"{' '.join(ending.joint)}: {fixed(ending.share)} ({agents})"


# --------------------------------------------------------------------------------------------------
# The picture


def draw(path: Path, entries: Sequence[Entry], found: Mapping[str, Reference]) -> Path:
    """A panel each: against N (spread, K = 2), against K (spread of three), the two kitchens.

    The height is the share of the way from cross-play to a single team; dots are seeds.
    """
    methods = list(dict.fromkeys(entry.method.key for entry in entries))
    colours = plt.get_cmap("tab20")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 4.2), sharey=True)
        for ax, (title, prefix, across) in zip(axes, PANELS):
            for height in (0, 1):
                ax.axhline(height, color=GRID, lw=6, zorder=0)
            for k, method in enumerate(methods):
                own = [e for e in entries if e.method.key == method]
                points = _points(own, found, prefix, across)
                if not points:
                    continue
                shift = WIDTH * (k / max(len(methods) - 1, 1) - 0.5)
                x = [n + shift for n in points]
                label = own[0].method.label
                means = [float(np.mean(values)) for values in points.values()]
                ax.plot(x, means, "o-", color=colours(k), label=label, lw=1.6, markersize=5)
                for at, values in zip(x, points.values()):
                    ax.scatter([at] * len(values), values, s=8, color=colours(k), alpha=0.6)
            ax.set_title(title)
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("0: cross-play, 1: a single team")
        handles = {
            label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())
        }
        figure.legend(list(handles.values()), list(handles), loc="outside right center")
        return save(figure, path)


def _points(
    entries: Sequence[Entry], found: Mapping[str, Reference], prefix: str, across: str
) -> dict[int, list[float]]:
    """N or K -> the shares of the seeds, in order; against N of two teams alone."""
    points = {}
    for entry in entries:
        reference = found.get(entry.data.key)
        if not str(entry.data.overrides["map_name"]).startswith(prefix) or not entry.values:
            continue
        if reference is None or reference.n_teams == 1:
            continue
        if across == "n_teams" or reference.n_teams == 2:
            values = [reference.share(value) for value in entry.values.values()]
            points[getattr(reference, across)] = values
    return dict(sorted(points.items()))
