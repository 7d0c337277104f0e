"""Figures of results. One style: few lines, direct words, colours that stay with an algorithm."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from inspo.evaluation.tables import write_bytes
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

STYLE = {
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
# Learning curves


@dataclass(frozen=True)
class Curve:
    """One line: what it is called, its colour's name, and values over updates.

    last: value and interval of the final test, drawn as a point with a bar.
    """

    label: str
    name: str
    updates: Sequence[float]
    values: Sequence[float]
    last: tuple[float, tuple[float, float]] | None = None


@dataclass(frozen=True)
class Panel:
    """One axes of a learning-curve figure. level: (label, value) of the data."""

    title: str
    unit: str
    curves: Sequence[Curve]
    level: tuple[str, float] | None = None
    percent: bool = False


def learning_curves(path: str | Path, title: str, panels: Sequence[Panel], note: str = "") -> Path:
    """Panels side by side, with the final tests as points at the end of their lines."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.3), squeeze=False)
        for ax, panel in zip(axes[0], panels):
            _draw_panel(ax, panel)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        if note:
            figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=MUTED)
        return save(figure, path)


def _draw_panel(ax: Axes, panel: Panel) -> None:
    scale = 100.0 if panel.percent else 1.0
    end = max((max(curve.updates) for curve in panel.curves if len(curve.updates)), default=1)
    if panel.level is not None:
        label, value = panel.level
        ax.axhline(value * scale, color=colour("data"), ls=(0, (4, 3)), lw=1.6, label=label)
    for curve in panel.curves:
        ax.plot(
            curve.updates,
            np.asarray(curve.values, dtype=float) * scale,
            color=colour(curve.name),
            label=curve.label,
            zorder=3 if curve.name == "inspo" else 2,
        )
    for place, curve in enumerate(c for c in panel.curves if c.last):
        value, (low, high) = curve.last
        x = end * (1.03 + 0.025 * place)
        bars = [[(value - low) * scale], [(high - value) * scale]]
        ax.errorbar(
            x, value * scale, yerr=bars, fmt="o", ms=6, capsize=3.5, lw=1.6,
            color=colour(curve.name), clip_on=False,
        )  # fmt: skip
    ax.set_title(panel.title)
    ax.set_xlabel("gradient updates")
    ax.set_ylabel(panel.unit)
    ax.set_xlim(0, end * (1.06 + 0.025 * len(panel.curves)))
    if panel.percent:
        ax.set_ylim(-2, 102)


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


# --------------------------------------------------------------------------------------------------
# Joint policies of two agents


def draw_joint(
    ax: Axes, joint: np.ndarray, title: str = "", caption: str = "", ticks: bool = True
) -> None:
    """A joint policy `[A_1, A_2]` as a heat map with its numbers; agent 1 down, agent 2 across."""
    joint = np.asarray(joint, dtype=float)
    ax.imshow(joint, cmap=HEAT, vmin=0, vmax=1)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)
    for (row, column), value in np.ndenumerate(joint):
        ink = "white" if value > 0.45 else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    letters = [chr(ord("A") + k) for k in range(max(joint.shape))]
    ax.set_xticks(range(joint.shape[1]), letters[: joint.shape[1]] if ticks else [])
    ax.set_yticks(range(joint.shape[0]), letters[: joint.shape[0]] if ticks else [])
    ax.tick_params(length=0, labelsize=8)
    ax.set_title(title, fontsize=9, fontweight="normal", loc="center")
    if caption:
        ax.set_xlabel(caption, fontsize=8, color=MUTED)


@dataclass(frozen=True)
class Map:
    """A heat map of a joint policy `[A_1, A_2]` and the words under it."""

    joint: np.ndarray
    caption: str


@dataclass(frozen=True)
class Block:
    """A titled block of heat maps: columns (their titles) by rows (name -> a map or None each)."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Map | None]]


def joint_blocks(path: str | Path, title: str, blocks: Sequence[Block], note: str = "") -> Path:
    """Blocks of heat maps, one above the other; laid out by hand, in inches."""
    side, across, down = 1.45, 2.0, 2.15
    left, head, top = 1.0, 0.95, 0.55
    n_columns = max(len(block.columns) for block in blocks)
    width = left + across * n_columns
    height = top + sum(head + down * len(block.rows) for block in blocks) + 0.35
    with plt.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(width, height))
        figure.text(0.12 / width, 1 - 0.3 / height, title, fontsize=13, fontweight="bold")
        y = height - top
        for block in blocks:
            figure.text(0.12 / width, (y - 0.28) / height, block.title, fontweight="bold")
            y -= head
            for number, (name, maps) in enumerate(block.rows.items()):
                bottom = y - side
                figure.text(
                    0.12 / width, (bottom + side / 2) / height, name, va="center", color=MUTED
                )
                for column, entry in enumerate(maps):
                    x = left + across * column
                    if number == 0:
                        figure.text(
                            (x + side / 2) / width, (y + 0.08) / height, block.columns[column],
                            ha="center", va="bottom", fontsize=9,
                        )  # fmt: skip
                    if entry is not None:
                        box = (x / width, bottom / height, side / width, side / height)
                        draw_joint(figure.add_axes(box), entry.joint, caption=entry.caption)
                y -= down
        figure.text(0.12 / width, 0.12 / height, note, fontsize=8, color=MUTED)
        return save(figure, path)
