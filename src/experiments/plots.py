"""Figures of results. One style: few lines, direct words, colours that stay with an algorithm."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from inspo.experiments.tables import write_bytes
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, GRID = "#2b2e35", "#737a86", "#e4e6ea"
# Apart for the colour-blind; InSPO is the one that stands out.
COLOURS = {
    "inspo": "#d1495b",
    "inspo_joint_kl": "#8f2d56",
    "control": "#e8a04c",
    "bc": "#2e6f95",
    "omar": "#8aa29e",
    "alberdice": "#5b8e3e",
    "cfcql": "#7d5ba6",
    "omiga": "#3a9c97",
    "icq": "#b08968",
    "macql": "#5c677d",
    "data": "#737a86",
}
PAPER_GREY = "#c9cdd4"
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#f6c7a4", "#d1495b", "#6b1d3a"])

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2.0,
    "figure.constrained_layout.use": True,
}


def colour(name: str) -> str:
    return COLOURS.get(name, MUTED)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG in one move and forget the figure."""
    out = io.BytesIO()
    # No name of a program and its version: the same numbers give the same file.
    figure.savefig(out, format="png", facecolor="white", metadata={"Software": None})
    plt.close(figure)
    return write_bytes(path, out.getvalue())


# --------------------------------------------------------------------------------------------------
# Bars: the paper's value beside ours


@dataclass(frozen=True)
class Bar:
    """A mean with its raw values; `paper` is the value printed there, where there is one."""

    label: str
    name: str
    values: Sequence[float]
    paper: float | None = None


def bar_groups(
    path: str | Path,
    title: str,
    groups: Mapping[str, Sequence[Bar]],
    unit: str,
    levels: Mapping[str, tuple[str, float]] | None = None,
    limits: tuple[float, float] | None = None,
    note: str = "",
    percent: bool = False,
) -> Path:
    """A panel for each group (dataset), a bar for each algorithm, a dot for each seed."""
    scale = 100.0 if percent else 1.0
    with plt.rc_context(STYLE):
        widths = [max(2, len(bars)) for bars in groups.values()]
        figure, axes = plt.subplots(
            1, len(groups), figsize=(max(7.5, 1.2 + sum(widths) * 0.8), 4.0), sharey=True,
            squeeze=False, width_ratios=widths,
        )  # fmt: skip
        for ax, (name, bars) in zip(axes[0], groups.items()):
            for x, bar in enumerate(bars):
                _draw_bar(ax, x, bar, scale)
            if levels and name in levels:
                label, value = levels[name]
                ax.axhline(value * scale, color=colour("data"), ls=(0, (4, 3)), lw=1.4, label=label)
            ax.axhline(0, color=MUTED, lw=0.8)
            ax.set_title(name)
            ax.set_xticks(range(len(bars)), [bar.label.replace(" ", "\n", 1) for bar in bars])
            ax.tick_params(axis="x", length=0, labelcolor=INK, labelsize=8.5)
            ax.grid(axis="x", visible=False)
            ax.set_xlim(-0.6, widths[list(groups).index(name)] - 0.4)
        axes[0][0].set_ylabel(unit)
        if limits:
            axes[0][0].set_ylim(*limits)
        if any(bar.paper is not None for bars in groups.values() for bar in bars):
            axes[0][0].scatter([], [], marker="D", s=34, **_PAPER_MARK, label="the paper")
        axes[0][0].scatter([], [], s=14, color=INK, label="one seed")
        entries = {}
        for ax in axes[0]:
            entries |= dict(zip(*reversed(ax.get_legend_handles_labels())))
        figure.legend(
            entries.values(), entries.keys(), loc="outside upper right", ncols=len(entries)
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        if note:
            figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=MUTED)
        return save(figure, path)


_PAPER_MARK = {"facecolors": "white", "edgecolors": INK, "linewidths": 1.4, "zorder": 4}


def _draw_bar(ax: Axes, x: int, bar: Bar, scale: float) -> None:
    values = np.asarray(bar.values, dtype=float) * scale
    if len(values):
        ax.bar(x, values.mean(), width=0.62, color=colour(bar.name), alpha=0.85)
        spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0.0]
        ax.scatter(x + np.asarray(spread), values, s=12, color=INK, zorder=3, clip_on=False)
    if bar.paper is not None:
        ax.scatter(x, bar.paper * scale, marker="D", s=34, clip_on=False, **_PAPER_MARK)
