"""The files of a cross-play: Markdown, CSV, JSON and a picture of the matrix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from inspo.estimation.crossplay import LOSS_OF_A_CLASH, CrossPlay, without_clash
from inspo.experiments.plots import HEAT, INK, STYLE, save
from inspo.experiments.tables import (
    NONE,
    fixed,
    markdown_table,
    write_csv,
    write_json,
    write_text,
)


def cells(found: CrossPlay) -> list[list[str]]:
    """Header and rows of the matrix: agent 0's team down, the other's across."""
    header = ["agent 0 of \\ others of", *found.teams]
    return [
        header,
        *(
            [team, *(f"{fixed(m)} ± {fixed(e)}" for m, e in zip(means, errors))]
            for team, means, errors in zip(found.teams, found.mean, found.error)
        ),
    ]


def verdict(found: CrossPlay) -> str:
    """Whether the teams clash, in a sentence or two."""
    losses = found.loss[np.isfinite(found.loss)]
    if not losses.size:
        return "The teams earn nothing of their own, so that nothing can be lost"
    text = (
        f"In mixtures of two teams {losses.min():.0%} to {losses.max():.0%} of their own return "
        f"are lost"
    )
    pairs = without_clash(found)
    if not pairs:
        return f"{text}: all pairs clash (a quarter or more)"
    listed = ", ".join(f"{a} and {b}" for a, b in pairs)
    return f"{text}. Less than {LOSS_OF_A_CLASH:.0%}, so not fit for data of conventions: {listed}"


def write(out: Path, found: CrossPlay, about: dict[str, Any]) -> list[Path]:
    """`ENV_MAP.md`, `.csv`, `.json` and `.png` in `out`; returns them, the Markdown first."""
    name = f"{found.task.env}_{found.task.map_name}"
    header, *rows = cells(found)
    loss = [
        [team, *(NONE if math.isnan(x) else f"{x:.0%}" for x in row)]
        for team, row in zip(found.teams, found.loss)
    ]
    episodes = found.mixtures[0].episodes
    text = [
        f"# Cross-play: {found.task}",
        f"Mean return with its standard error, {episodes} episodes of each mixture "
        f"({len(found.mixtures)} of them, in the JSON file). On the diagonal a team itself; beside "
        "it the mean over mixtures of two teams, by the team of agent 0.",
        markdown_table(header, rows),
        "Share of their own mean return that two teams lose in mixtures:",
        markdown_table(["", *found.teams], loss),
        f"{verdict(found)}.",
    ]
    record = {
        "env": found.task.env, "map_name": found.task.map_name, "env_args": found.task.env_args,
        **about, "teams": found.teams,
        "matrix": found.mean.tolist(), "standard_errors": found.error.tolist(),
        "loss": [[None if math.isnan(x) else x for x in row] for row in found.loss.tolist()],
        "mixtures": [vars(mixture) | {"members": list(mixture.members)}
                     for mixture in found.mixtures],
    }  # fmt: skip
    flat = [
        {f"agent_{i}": found.teams[team] for i, team in enumerate(mixture.members)}
        | {"return_mean": mixture.mean, "standard_error": mixture.error}
        | {"episodes": mixture.episodes}
        for mixture in found.mixtures
    ]
    return [
        write_text(out / f"{name}.md", "\n\n".join(text) + "\n"),
        write_csv(out / f"{name}.csv", flat),
        write_json(out / f"{name}.json", record),
        draw(out / f"{name}.png", found),
    ]


def draw(path: Path, found: CrossPlay) -> Path:
    """The matrix as a heat map, the returns written into it."""
    size = 1.6 + 0.95 * len(found.teams)
    ticks = range(len(found.teams))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, ax = plt.subplots(figsize=(size + 1.2, size))
        image = ax.imshow(found.mean, cmap=HEAT.reversed())
        middle = (found.mean.min() + found.mean.max()) / 2
        for (a, b), value in np.ndenumerate(found.mean):
            colour = INK if value > middle else "white"
            label = f"{value:.1f}\n± {found.error[a, b]:.1f}"
            ax.text(b, a, label, ha="center", va="center", color=colour, fontsize=9)
        ax.set_xticks(ticks, found.teams, rotation=30, ha="right")
        ax.set_yticks(ticks, found.teams)
        ax.set(xlabel="the other agents' team", ylabel="agent 0's team")
        ax.set_title(f"Return in cross-play: {found.task}")
        figure.colorbar(image, shrink=0.8)
        return save(figure, path)
