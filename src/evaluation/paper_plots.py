"""The paper's own figures: learning curves of the main job, heat maps of joint policies.

Only what stands in `paper/` draws these; move this file there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from inspo.experiments.plots import HEAT, INK, MUTED, STYLE, colour, plt, save
from matplotlib.axes import Axes

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
