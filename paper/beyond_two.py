"""InSPO beyond two agents: matrix games of 2 to 8 agents, in closed form and with networks; Bridge
with three and four; battles of SMAX with five.

Nothing of this is in the paper. `tables/beyond_two*.yaml` say which games, variants and runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inspo.components.schedules import hold_decay
from inspo.experiments.entries import Entry
from inspo.experiments.plots import GRID, INK, MUTED, STYLE, plt, save
from inspo.experiments.tables import fixed, markdown_table, write_json, write_text
from inspo.tabular.game import Policies, expected_return
from inspo.tabular.in_sample import Variant, iterate
from inspo.tabular.paper_games import dataset, game
from paper.options import Options
from paper.reader import comparison_of, read_file, read_table
from paper.tables import run_table

FILE = "beyond_two"
COLOURS = {
    "inspo_joint": "#d1495b",
    "inspo_geometric": "#2e6f95",
    "inspo_full": "#e8a04c",
    "inspo_adaptive": "#5b8e3e",
    "inspo_none": "#8aa29e",
    "inspo_at_once": "#7d5ba6",
}


@dataclass(frozen=True)
class Point:
    """Where a variant ends in closed form on a game of N agents. policies: of each agent."""

    game: str
    variant: str
    n_agents: int
    value: float
    policies: list[list[float]]

    @property
    def convention(self) -> str:
        """Every agent's likeliest action, and how likely the joint action is: `AAB (1.00)`."""
        joint = "".join("ABCDEFGHIJ"[int(np.argmax(policy))] for policy in self.policies)
        return f"{joint} ({fixed(float(np.prod([max(policy) for policy in self.policies])))})"


def reproduce(options: Options) -> bool:
    """Run what is missing of one part, or of all, and write it; whether nothing failed."""
    parts = [options.command] if options.command in PARTS else PARTS
    return all([PARTS[part](options) for part in parts])


def games(options: Options) -> bool:
    """Write the closed form, run what is missing of the networks, and draw both."""
    points = closed_form(options.results / "paper")
    table = read_table(FILE, options.seeds)
    comparison = replace(
        table.comparison, picture=lambda entries, path: draw(path, points, entries)
    )
    return run_table(replace(table, comparison=comparison), options)


PARTS: dict[str, Callable[[Options], bool]] = {
    "beyond_two_games": games,
    "beyond_two_bridge": lambda o: run_table(read_table("beyond_two_bridge", o.seeds), o),
    "beyond_two_battles": lambda o: run_table(read_table("beyond_two_battles", o.seeds), o),
}


def closed_form(folder: Path) -> list[Point]:
    """Every game, number of agents and variant of the file, written to `folder`.

    They take some minutes, so what the folder holds of the same settings is not computed again.
    """
    content = read_file(FILE)["closed_form"]
    record = folder / f"{FILE}_closed_form.json"
    if record.exists():
        stored = json.loads(record.read_text(encoding="utf-8"))
        if stored["settings"] == content:
            return [Point(**point) for point in stored["points"]]
    print("closed form: a few minutes", flush=True)
    points = [
        ending(content, key, n_agents, name, dict(variant))
        for key in content["games"]
        for n_agents in content["agents"]
        for name, variant in content["variants"].items()
    ]
    write_closed_form(folder, points)
    return points


def labels() -> dict[str, str]:
    """Variant -> its name."""
    return {m.key: m.label for m in comparison_of(FILE, read_file(FILE)).methods}


def ending(
    content: Mapping[str, Any], key: str, n_agents: int, name: str, variant: dict[str, Any]
) -> Point:
    """One of them. content: `closed_form` of the file."""
    kind = key.rpartition("_")[0]
    map_name, quality = f"{kind}_{n_agents}", key.removeprefix(f"{kind}_")
    data, blocks = dataset(map_name, quality), variant.pop("blocks", None)
    start = data.behaviour()
    start[-1][:, 0] += content["tilt"]  # the last to move, who would otherwise lose it at once
    start[-1][:, -1] -= content["tilt"]
    sweeps = content["sweeps"]
    trace = iterate(
        data,
        content["alpha"],
        lambda k: hold_decay(content["beta"], 0.01, 0.25, 0.5, k / sweeps),
        sweeps=sweeps,
        order=list(range(n_agents)),
        initial=start,
        blocks=blocks,
        variant=Variant(**variant),
    )
    value = expected_return(game(map_name), trace.policies)
    return Point(key, name, n_agents, value, [policy[0].tolist() for policy in trace.policies])


def cloning(key: str, n_agents: int) -> float:
    """The return of the data's individual policies, which is what cloning finds."""
    kind = key.rpartition("_")[0]
    map_name = f"{kind}_{n_agents}"
    mu: Policies = dataset(map_name, key.removeprefix(f"{kind}_")).behaviour()
    return expected_return(game(map_name), mu)


def write_closed_form(folder: Path, points: Sequence[Point]) -> list[Path]:
    """`beyond_two_closed_form.md` and `.json`."""
    content, names = read_file(FILE)["closed_form"], labels()
    agents = content["agents"]
    text = [
        "# Beyond two agents, in closed form",
        f"The in-sample form (`src/tabular/in_sample.py`) after {content['sweeps']} sweeps, "
        f"α = {content['alpha']}, β from {content['beta']} to 0, one configuration for all. Agents "
        "start at the behaviour policies, the last one a thousandth to one side. Written by "
        "`python src/reproduce.py beyond_two`.",
    ]
    for key, about in content["games"].items():
        own = [point for point in points if point.game == key]
        rows = [["cloning", *[fixed(cloning(key, n)) for n in agents], ""]]
        for name in content["variants"]:
            row = {point.n_agents: point for point in own if point.variant == name}
            four = row[4].convention if 4 in row else ""
            rows.append([names[name], *[fixed(row[n].value) for n in agents], four])
        header = ["", *[f"N = {n}" for n in agents], "plays, N = 4"]
        text += [
            f"## {about['label']}: return, at most {about['optimum']}",
            markdown_table(header, rows),
        ]
    record = {"settings": content, "points": [vars(point) for point in points]}
    return [
        write_text(folder / f"{FILE}_closed_form.md", "\n\n".join(text) + "\n"),
        write_json(folder / f"{FILE}_closed_form.json", record),
    ]


def draw(path: Path, points: Sequence[Point], entries: Sequence[Entry]) -> Path:
    """Return against the number of agents, a panel a game: lines in closed form, dots networks."""
    content = read_file(FILE)["closed_form"]
    games = content["games"]
    shift = {name: 0.06 * (k - 2) for k, name in enumerate(content["variants"])}
    names = labels()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, (len(games) + 1) // 2, figsize=(14, 6.5), squeeze=False)
        for ax, (key, about) in zip(axes.flat, games.items()):
            agents = content["agents"]
            ax.axhline(about["optimum"], color=GRID, lw=6, zorder=0)
            ax.plot(agents, [cloning(key, n) for n in agents], color=MUTED, ls=":", label="cloning")
            for name in content["variants"]:
                own = [p for p in points if (p.game, p.variant) == (key, name)]
                values = [point.value for point in own]
                places = np.array([point.n_agents for point in own]) + shift[name]
                ax.plot(places, values, color=COLOURS[name], label=names[name], lw=1.8)
            for entry in entries:
                _dots(ax, key, entry, shift)
            ax.set_title(about["label"])
            ax.set_xticks(agents)
        axes.flat[0].set_ylabel("return")
        handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels())))
        handles["networks, one seed"] = axes.flat[0].scatter([], [], s=16, color=INK)
        spare = axes.flat[len(games)] if len(games) < axes.size else axes.flat[-1]
        spare.axis("off")
        spare.legend(list(handles.values()), list(handles), loc="center")
        figure.supxlabel("agents", fontsize=10)
        return save(figure, path)


def _dots(ax: Any, key: str, entry: Entry, shift: Mapping[str, float]) -> None:
    """The seeds of a network's entry in the panel of its game."""
    kind, quality = key.rpartition("_")[::2]
    map_name = entry.data.overrides["map_name"]
    n_agents = map_name.removeprefix(kind).lstrip("_") or "2"
    same = map_name.startswith(kind) and entry.data.overrides["quality"] == quality
    if same and entry.method.key in shift and n_agents.isdigit():
        values = list(entry.values.values())
        places = [int(n_agents) + shift[entry.method.key]] * len(values)
        ax.scatter(places, values, s=16, color=COLOURS[entry.method.key], zorder=3)
