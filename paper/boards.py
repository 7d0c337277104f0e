"""Pictures of Bridge: one board, an episode as a strip of boards (PNG), episodes as a GIF.

All take states as the simulator gives them (`[T, 4 n]` coordinates or `[T, 324]` one-hot), the
terminal one included, so that an episode of L steps has T = L + 1 boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from inspo.envs.bridge import board_of, decode
from inspo.envs.drawing import INK, draw_board


def _draw(ax, cells: np.ndarray, actions: np.ndarray | None, title: str) -> None:
    draw_board(ax, cells, actions, size=9)
    ax.axis("off")
    ax.set_title(title, fontsize=9, color=INK, pad=4)


def _caption(t: int, n_boards: int) -> str:
    return f"step {t} of {n_boards - 1}"


def episode_png(
    path: str | Path,
    states: np.ndarray,
    actions: np.ndarray | None = None,
    columns: int = 5,
    title: str = "",
) -> None:
    """An episode as a strip of boards. states `[T, S]`, actions int `[T - 1 or more, n]`."""
    boards = decode(states)
    columns = min(columns, len(boards))
    rows = -(-len(boards) // columns)
    height, width = 0.385 * np.array(board_of(boards).wall.shape)
    above = 0.35 if title else 0
    figure = Figure(figsize=(width * columns, (height + 0.3) * rows + above), dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for t, ax in enumerate(axes):
        if t >= len(boards):
            ax.axis("off")
            continue
        played = actions[t] if actions is not None and t < len(boards) - 1 else None
        _draw(ax, boards[t], played, _caption(t, len(boards)))
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    figure.tight_layout(pad=0.6)
    figure.savefig(path)


def _frame(
    boards: Sequence[np.ndarray], actions: Sequence, titles: Sequence[str], t: int
) -> Image.Image:
    """Frame t of several episodes side by side; one that has ended shows its last board."""
    height, width = 0.567 * np.array(board_of(boards[0]).wall.shape)
    figure = Figure(figsize=(width * len(boards), height + 0.4), dpi=110)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(boards), squeeze=False)[0]
    for ax, cells, plan, title in zip(axes, boards, actions, titles):
        now = min(t, len(cells) - 1)
        played = plan[now] if plan is not None and now < len(cells) - 1 else None
        caption = _caption(now, len(cells))
        _draw(ax, cells[now], played, f"{title}  ·  {caption}" if title else caption)
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

    states: one `[T_k, S]` per episode. actions: one int `[T_k - 1 or more, n]` per episode.
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
