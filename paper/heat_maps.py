"""Heat maps of joint policies of two agents."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from inspo.experiments.plots import HEAT, INK, MUTED, STYLE, plt, save


@dataclass(frozen=True)
class Map:
    """A heat map of a joint policy `[A_1, A_2]` and the text under it."""

    joint: np.ndarray
    caption: str


@dataclass(frozen=True)
class Block:
    """A titled block of heat maps: columns (their titles) by rows (name -> a map or None each)."""

    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[Map | None]]


def joint_of(test: Mapping[str, float]) -> np.ndarray:
    """The joint policy `[A_1, A_2]` of a test on a matrix game."""
    prefix = "test_joint_"
    entries = {key[len(prefix) :]: value for key, value in test.items() if key.startswith(prefix)}
    size = [max(int(key[i]) for key in entries) + 1 for i in range(2)]
    joint = np.zeros(size)
    for key, value in entries.items():
        joint[int(key[0]), int(key[1])] = value
    return joint


def in_lines(label: str) -> str:
    """A label broken into lines that fit above a map."""
    return "\n".join(textwrap.wrap(label, 22))


def draw_blocks(path: str | Path, title: str, blocks: Sequence[Block], note: str) -> Path:
    """Blocks of heat maps, one above the other; laid out by hand, in inches."""
    side, across, down = 1.45, 2.0, 2.15
    left, head, top = 1.0, 0.95, 0.55
    width = left + across * max(len(block.columns) for block in blocks)
    height = top + sum(head + down * len(block.rows) for block in blocks) + 0.35
    with plt.rc_context({**STYLE, "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(width, height))

        def write(x: float, y: float, text: str, **style) -> None:
            figure.text(x / width, y / height, text, **style)

        write(0.12, height - 0.3, title, fontsize=13, fontweight="bold")
        y = height - top
        for block in blocks:
            write(0.12, y - 0.28, block.title, fontweight="bold")
            y -= head
            for column, label in enumerate(block.columns):
                x = left + across * column + side / 2
                write(x, y + 0.08, label, ha="center", va="bottom", fontsize=9)
            for name, maps in block.rows.items():
                bottom = y - side
                write(0.12, bottom + side / 2, name, va="center", color=MUTED)
                for column, entry in enumerate(maps):
                    if entry is not None:
                        x = left + across * column
                        box = (x / width, bottom / height, side / width, side / height)
                        _draw_map(figure.add_axes(box), entry)
                y -= down
        write(0.12, 0.12, note, fontsize=8, color=MUTED)
        return save(figure, path)


def _draw_map(ax: Axes, entry: Map) -> None:
    """A joint policy with its numbers; agent 1 down, agent 2 across."""
    joint = np.asarray(entry.joint, dtype=float)
    ax.imshow(joint, cmap=HEAT, vmin=0, vmax=1)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)
    for (row, column), value in np.ndenumerate(joint):
        ink = "white" if value > 0.45 else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    letters = [chr(ord("A") + k) for k in range(max(joint.shape))]
    ax.set_xticks(range(joint.shape[1]), letters[: joint.shape[1]])
    ax.set_yticks(range(joint.shape[0]), letters[: joint.shape[0]])
    ax.tick_params(length=0, labelsize=8)
    if entry.caption:
        ax.set_xlabel(entry.caption, fontsize=8, color=MUTED)
