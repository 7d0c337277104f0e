"""Pictures of Bridge: one board, an episode as a strip of boards (PNG), episodes as a GIF.

All take states as the simulator gives them (`[T, 8]` coordinates or `[T, 324]` one-hot), the
terminal one included, so that an episode of L steps has T = L + 1 boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from PIL import Image

from inspo.envs.bridge import GOALS, MOVES, N_COLUMNS, N_ROWS, WALLS, decode, is_done, same_cell

COLOURS = ("#d1495b", "#2e6f95")  # agent 1, agent 2; apart for the colour-blind too
FLOOR, WALL, LINE, INK = "#faf8f3", "#4a4e57", "#d8d3c8", "#33363d"


def draw_board(ax, cells: np.ndarray, actions: np.ndarray | None = None, title: str = "") -> None:
    """One board `[2, 2]` in a matplotlib axes; with `actions [2]`, arrows of what is played."""
    ax.set(xlim=(-0.06, N_COLUMNS + 0.06), ylim=(N_ROWS + 0.06, -0.06), aspect="equal")
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=9, color=INK, pad=4)
    for row in range(N_ROWS):
        for column in range(N_COLUMNS):
            colour = WALL if (row, column) in WALLS else FLOOR
            ax.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=LINE, lw=0.8))
    for agent, (row, column) in enumerate(GOALS):
        ax.add_patch(
            FancyBboxPatch(
                (column + 0.14, row + 0.14),
                0.72,
                0.72,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=COLOURS[agent] + "22",
                edgecolor=COLOURS[agent],
                lw=1.6,
            )
        )
    together = same_cell(cells[0], cells[1])
    done = is_done(cells)
    for agent, (row, column) in enumerate(cells):
        shift = (0.2 if agent else -0.2) if together else 0.0
        x, y = column + 0.5 + shift, row + 0.5
        radius = 0.2 if together else 0.3
        ax.add_patch(
            Circle((x, y), radius, facecolor=COLOURS[agent], edgecolor="white", lw=1.2, zorder=3)
        )
        ax.text(
            x,
            y,
            str(agent + 1),
            color="white",
            fontsize=9 if not together else 7,
            ha="center",
            va="center_baseline",
            fontweight="bold",
            zorder=4,
        )
        if actions is not None and not done[agent] and actions[agent] != 0:
            down, right = MOVES[actions[agent]] * 0.34
            ax.annotate(
                "",
                xy=(x + 1.9 * right, y + 1.9 * down),
                xytext=(x + right, y + down),
                zorder=5,
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": COLOURS[agent],
                    "lw": 1.6,
                    "shrinkA": 0,
                    "shrinkB": 0,
                    "mutation_scale": 9,
                },
            )


def _caption(t: int, n_boards: int) -> str:
    return f"step {t} of {n_boards - 1}"


def episode_png(
    path: str | Path,
    states: np.ndarray,
    actions: np.ndarray | None = None,
    columns: int = 5,
    title: str = "",
) -> None:
    """An episode as a strip of boards. states `[T, S]`, actions int `[T - 1 or more, 2]`."""
    boards = decode(states)
    columns = min(columns, len(boards))
    rows = -(-len(boards) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.45 * rows + (0.35 if title else 0)), dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for t, ax in enumerate(axes):
        if t >= len(boards):
            ax.axis("off")
            continue
        played = actions[t] if actions is not None and t < len(boards) - 1 else None
        draw_board(ax, boards[t], played, _caption(t, len(boards)))
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    figure.tight_layout(pad=0.6)
    figure.savefig(path)


def _frame(
    boards: Sequence[np.ndarray], actions: Sequence, titles: Sequence[str], t: int
) -> Image.Image:
    """Frame t of several episodes side by side; one that has ended shows its last board."""
    figure = Figure(figsize=(3.4 * len(boards), 2.1), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(boards), squeeze=False)[0]
    for ax, cells, plan, title in zip(axes, boards, actions, titles):
        now = min(t, len(cells) - 1)
        played = plan[now] if plan is not None and now < len(cells) - 1 else None
        caption = _caption(now, len(cells))
        draw_board(ax, cells[now], played, f"{title}  ·  {caption}" if title else caption)
    figure.tight_layout(pad=0.5)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def episodes_gif(
    path: str | Path,
    states: Sequence[np.ndarray],
    actions: Sequence[np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
    ms_per_step: int = 600,
) -> None:
    """Episodes side by side as an endless GIF (both orders of crossing, for example).

    states: one `[T_k, S]` per episode. actions: one int `[T_k - 1 or more, 2]` per episode.
    """
    boards = [decode(episode) for episode in states]
    plans = list(actions) if actions is not None else [None] * len(boards)
    names = list(titles) if titles is not None else [""] * len(boards)
    length = max(map(len, boards))
    frames = [_frame(boards, plans, names, t) for t in range(length)]
    # one palette for all frames: a palette each makes colours flicker
    palette = frames[0].quantize(64)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [ms_per_step] * (length - 1) + [3 * ms_per_step]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1
    )
