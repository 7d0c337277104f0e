"""Figures of results. One style: few lines, direct words, colours that stay with an algorithm."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from inspo.experiments.entries import Comparison, Entry, data_mean
from inspo.experiments.tables import write_bytes

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
    "iql": "#c77dba",
    "awac": "#9c6644",
    "td3bc": "#4f8a8b",
    "qmix_cql": "#a3a847",
    "idqn_cql": "#6d597a",
    "comadice": "#457b9d",
    "oryx": "#3d405b",
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


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as PNG or PDF, without programs' names and dates: same numbers, same bytes."""
    out = io.BytesIO()
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}}[kind]
    figure.savefig(out, format=kind, facecolor="white", metadata=metadata)
    return out.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG in one move and forget the figure."""
    content = picture(figure, "png")
    plt.close(figure)
    return write_bytes(path, content)


def draw_bars(comparison: Comparison, entries: Sequence[Entry], path: Path) -> Path:
    """A panel for each dataset, a bar for each method, a dot for each seed, the paper's values."""
    scale = 100.0 if comparison.share else 1.0
    columns = [[e for e in entries if e.data is data] for data in comparison.datasets]
    paper: dict[str, Any] = dict(
        marker="D", facecolors="white", edgecolors=INK, linewidths=1.4, zorder=4, s=34
    )
    with plt.rc_context(STYLE):
        widths = [max(2, len(column)) for column in columns]
        figure, axes = plt.subplots(
            1, len(columns), figsize=(max(7.5, 1.2 + sum(widths) * 0.8), 4.0), sharey=True,
            squeeze=False, width_ratios=widths,
        )  # fmt: skip
        first = axes[0][0]
        for ax, data, column, width in zip(axes[0], comparison.datasets, columns, widths):
            for x, entry in enumerate(column):
                _draw_bar(ax, x, entry, scale)
                if entry.published and comparison.with_paper:
                    value = entry.published[0] * scale
                    ax.scatter(x, value, clip_on=False, **paper)
            mean = data_mean(entries, data, comparison.metric) if comparison.data_row else None
            if mean is not None:
                style: Any = (0, (4, 3))
                ax.axhline(mean * scale, label="mean of the data", color=MUTED, ls=style, lw=1.4)
            ax.axhline(0, color=MUTED, lw=0.8)
            ax.set_title(data.label)
            names = [entry.method.label.replace(" ", "\n", 1) for entry in column]
            ax.set_xticks(range(len(column)), names)
            ax.tick_params(axis="x", length=0, labelcolor=INK, labelsize=8.5)
            ax.grid(axis="x", visible=False)
            ax.set_xlim(-0.6, width - 0.4)
        first.set_ylabel(comparison.unit)
        if comparison.limits:
            first.set_ylim(*comparison.limits)
        if comparison.with_paper and any(entry.published for entry in entries):
            first.scatter([], [], **paper, label="the paper")
        first.scatter([], [], s=14, color=INK, label="one seed")
        handles: dict[str, Any] = {}
        for ax in axes[0]:
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels())))
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper right", ncols=len(handles)
        )
        figure.suptitle(comparison.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        return save(figure, path)


def _draw_bar(ax: Axes, x: int, entry: Entry, scale: float) -> None:
    values = np.array(list(entry.values.values()), dtype=float) * scale
    if len(values):
        ax.bar(x, values.mean(), width=0.62, color=colour(entry.method.key), alpha=0.85)
        spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
        ax.scatter(x + spread, values, s=12, color=INK, zorder=3, clip_on=False)
