"""Pictures of play: one drawing per environment, and the GIF of an episode (`record=battle.gif`).

A drawing is a function of (axes, environment, episode, step). The episode is one row of an
EpisodeBatch as numpy arrays `[L + 1, ...]`, the terminal step included; of step t it shows the
state and the actions that are played in it (none in the last).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inspo.envs import bridge
from inspo.envs.overcooked import DIRECTIONS, NOTHING, ONION, PLATE, SOUP
from inspo.utils import files
from inspo.utils.errors import ConfigError
from inspo.utils.settings import Settings

if TYPE_CHECKING:  # matplotlib takes half a second, which most runs do not need
    from matplotlib.axes import Axes

Episode = dict[str, np.ndarray]
Drawing = Callable[["Axes", Any, Episode, int], None]

TEAMS = ("#2e6f95", "#d1495b")  # ours and theirs; the colour-blind see both
AGENTS = (*TEAMS, "#3a9c97", "#e8a04c")  # of Bridge
GROUND, WALL, LINE, INK, HEALTH = "#faf8f3", "#4a4e57", "#d8d3c8", "#33363d", "#5aa469"
PIXELS, DPI = 560, 100  # the width of a frame
STEP_MS, END_MS = 200, 2000  # how long a step stays, and the last one


def check_record(args: Settings) -> None:
    """ConfigError unless the key `record`, if it is given, names a GIF that can be drawn."""
    if args.record is None:
        return
    path = Path(args.record)
    if args.env not in DRAWINGS:
        raise ConfigError(
            f"record: episodes of '{args.env}' cannot be drawn, only those of "
            f"{', '.join(DRAWINGS)}; StarCraft II writes replays with save_replay=True."
        )
    if path.suffix.lower() != ".gif":
        raise ConfigError(f"record: expected the name of a .gif file, found {args.record}.")
    if not path.parent.is_dir():
        raise ConfigError(f"record: there is no folder {path.parent} for {path.name}; make it.")


def write_gif(path: str | Path, draw: Drawing, env: Any, episode: Episode) -> None:
    """Draw an episode of `env` into an endless GIF."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    n_steps, returns = len(episode["filled"]), np.cumsum(episode["reward"][:, 0])
    canvas, frames = FigureCanvasAgg(Figure(dpi=DPI, facecolor="white")), []
    for t in range(n_steps):
        canvas.figure.clear()
        ax = canvas.figure.subplots()
        ax.set(xticks=[], yticks=[], aspect="equal", facecolor=GROUND)
        draw(ax, env, episode, t)
        so_far = returns[t - 1] if t else 0.0
        ax.set_title(env.map_name, loc="left", color=INK, fontsize=11, fontweight="bold")
        caption = f"step {t} of {n_steps - 1}    return {so_far:.2f}"
        ax.set_title(caption, loc="right", color=INK, fontsize=10)
        width, height = (abs(high - low) for low, high in (ax.get_xlim(), ax.get_ylim()))
        inches = PIXELS / DPI, PIXELS / DPI * height / width + 0.8  # the titles take 0.3 and 0.5
        canvas.figure.set_size_inches(inches)
        canvas.figure.subplots_adjust(0.06, 0.5 / inches[1], 0.98, 1 - 0.3 / inches[1])
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    # One palette for all, taken from several frames: with one each the colours would flicker.
    some = [np.asarray(frame) for frame in frames[:: max(1, n_steps // 8)]]
    palette = Image.fromarray(np.concatenate(some)).quantize(128)
    first, *others = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    durations = [STEP_MS] * (n_steps - 1) + [END_MS]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    files.write(Path(path), content.getvalue())


def _cell(ax: Axes, row: int, column: int, margin: float = 0.0, **style: Any) -> None:
    left, right, top, bottom = column + margin, column + 1 - margin, row + margin, row + 1 - margin
    ax.fill([left, right, right, left], [top, top, bottom, bottom], **style)


# ---- matrix games --------------------------------------------------------------------------------


def draw_matrix(ax: Axes, env: Any, episode: Episode, t: int) -> None:
    """The payoffs, agent 1's actions down and agent 2's across; the chosen cell has a frame.

    A game of one agent is one row; of more than two, the table shows the others' chosen actions.
    """
    actions = episode["actions"][0, :, 0]
    payoff = env.payoff.reshape(1, -1) if env.n_agents == 1 else env.payoff
    payoff = payoff[(..., *actions[2:])] if t else payoff.reshape(*payoff.shape[:2], -1)[..., 0]
    rows, columns = payoff.shape
    ax.set(xlim=(0, columns), ylim=(rows, 0), xlabel="agent 2", ylabel="agent 1")
    ax.set_xticks(np.arange(columns) + 0.5, [f"{k}" for k in range(columns)])
    ax.set_yticks(np.arange(rows) + 0.5, [f"{k}" for k in range(rows)])
    ax.tick_params(length=0, labelcolor=INK)
    largest = max(np.abs(payoff).max(), 1e-9)
    for (row, column), value in np.ndenumerate(payoff):
        colour, alpha = HEALTH if value > 0 else TEAMS[1], 0.6 * abs(value) / largest
        _cell(ax, row, column, facecolor=colour, alpha=alpha, edgecolor=LINE)
        ax.text(column + 0.5, row + 0.5, f"{value:g}", ha="center", va="center", fontsize=15)
    if t:
        row, column = (0, actions[0]) if env.n_agents == 1 else actions[:2]
        _cell(ax, row, column, fc="none", ec=INK, lw=5, clip_on=False, zorder=3)


# ---- Bridge --------------------------------------------------------------------------------------


def draw_board(
    ax: Axes, cells: np.ndarray, actions: np.ndarray | None = None, size: float = 14
) -> None:
    """The board of cells `[n, 2]`: goals as squares, agents as discs; with `actions [n]`, an arrow
    for each move that is played. size: of the agents' numbers, in points."""
    from matplotlib.patches import Circle

    board, done = bridge.board_of(cells), bridge.is_done(cells)
    rows, columns = board.wall.shape
    ax.set(xlim=(-0.06, columns + 0.06), ylim=(rows + 0.06, -0.06), aspect="equal")
    for (row, column), wall in np.ndenumerate(board.wall):
        _cell(ax, row, column, facecolor=WALL if wall else GROUND, edgecolor=LINE)
    for i, (row, column) in enumerate(cells):
        colour, (goal_row, goal_column) = AGENTS[i], board.goals[i]
        _cell(ax, goal_row, goal_column, 0.14, fc=colour + "22", ec=colour, lw=size / 7)
        sharing = np.flatnonzero(bridge.same_cell(cells, cells[i]))
        alone = len(sharing) == 1
        x = column + (np.flatnonzero(sharing == i)[0] + 1) / (len(sharing) + 1)
        y = row + 0.5
        radius = 0.3 if alone else 0.2
        ax.add_patch(Circle((x, y), radius, facecolor=colour, edgecolor="white", zorder=3))
        style: dict[str, Any] = {"color": "white", "fontweight": "bold"}
        style["fontsize"] = size if alone else 0.8 * size
        ax.text(x, y, f"{i + 1}", ha="center", va="center_baseline", zorder=4, **style)
        if actions is not None and actions[i] != bridge.STAY and not done[i]:
            down, right = bridge.MOVES[actions[i]] * 0.34
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": size / 6, "mutation_scale": size}
            arrow |= {"shrinkA": 0, "shrinkB": 0}
            ends = (x + 1.9 * right, y + 1.9 * down), (x + right, y + down)
            ax.annotate("", *ends, zorder=5, arrowprops=arrow)


def draw_bridge(ax: Axes, env: Any, episode: Episode, t: int) -> None:
    """The board of a step, and what is played in it."""
    cells = bridge.decode(episode["state"][t : t + 1])[0]
    played = episode["actions"][t, :, 0] if t < len(episode["state"]) - 1 else None
    draw_board(ax, cells, played)


# ---- SMAX ----------------------------------------------------------------------------------------


def draw_smax(ax: Axes, env: Any, episode: Episode, t: int) -> None:
    """The units of both teams where they stand, their health, and whom they shoot at.

    The fallen stay, faded, where they were last seen. The lines are four map units apart.
    """
    smax, n = env.program.smax, env.n_agents
    n_units, features = n + smax.num_enemies, list(smax.own_features)
    units = episode["state"][:, : n_units * len(features)].reshape(-1, n_units, len(features))
    health = units[..., features.index("health")]  # [L + 1, n_units], a share
    first = features.index("position_x")
    places = units[..., first : first + 2] * (smax.map_width, smax.map_height)
    kinds = units[0, :, features.index("unit_type_bit_0") :].argmax(-1)
    seen_at = [np.flatnonzero(health[: t + 1, i] > 0)[-1] for i in range(n_units)]
    at = places[seen_at, np.arange(n_units)]  # [n_units, 2]

    # The camera follows the living, slowly: means of their bounding boxes over nine steps.
    alive = health[max(0, t - 4) : t + 5, :, None] > 0
    living = np.where(alive, places[max(0, t - 4) : t + 5], np.nan)
    low, high = np.nanmin(living, axis=1).mean(0), np.nanmax(living, axis=1).mean(0)
    middle, half = (low + high) / 2, max(6.0, (high - low).max() / 2 + 1.5)
    ax.set(xlim=middle[0] + [-half, half], ylim=middle[1] + [-half, half], facecolor=LINE)
    edges = [0, smax.map_width, smax.map_width, 0], [0, 0, smax.map_height, smax.map_height]
    ax.fill(*edges, facecolor=GROUND, edgecolor=WALL, linewidth=3, zorder=0)
    for line in range(4, smax.map_width, 4):
        ax.plot([line, line], [0, smax.map_height], color=LINE, linewidth=0.7, zorder=0)
        ax.plot([0, smax.map_width], [line, line], color=LINE, linewidth=0.7, zorder=0)
    points = PIXELS / (2 * half) * 72 / DPI  # of a map unit
    for i, (x, y) in enumerate(at):
        alive, radius = health[t, i] > 0, float(smax.unit_type_radiuses[kinds[i]])
        style = {"markersize": 2 * radius * points, "color": TEAMS[i >= n], "mec": "white"}
        ax.plot(x, y, "o", **style, alpha=1.0 if alive else 0.2, zorder=2 if alive else 1)
        letter = smax.unit_type_shorthands[kinds[i]] if alive else "×"
        ax.text(x, y, letter, color="white", ha="center", va="center", fontsize=11, zorder=4)
        if alive:
            left, top = x - radius, y + radius + 5 / points
            ends = left, left + 2 * radius * health[t, i], left + 2 * radius
            ax.plot(ends[::2], [top, top], color=WALL, linewidth=4, solid_capstyle="butt", zorder=5)
            ax.plot(
                ends[:2], [top, top], color=HEALTH, linewidth=4, solid_capstyle="butt", zorder=6
            )
    for shooter, target in _shots(smax, episode, t).items():
        if health[t, shooter] > 0 and health[t, target] > 0:
            shot = at[shooter] + np.outer([0.25, 0.9], at[target] - at[shooter])
            ax.plot(*shot.T, color="white", linewidth=3.5, zorder=3)
            ax.plot(*shot.T, color=TEAMS[shooter >= n], linewidth=2, zorder=3)
            ax.plot(*shot[1], "o", markersize=5, color=TEAMS[shooter >= n], mec="white", zorder=7)
    names = [
        f"{smax.unit_type_shorthands[k]} {smax.unit_type_names[k]}" for k in sorted(set(kinds))
    ]
    allies, enemies = (health[t, :n] > 0).sum(), (health[t, n:] > 0).sum()
    ax.set_xlabel(
        f"{allies} allies (blue), {enemies} enemies (red)    {', '.join(names)}",
        color=INK,
    )


def _shots(smax: Any, episode: Episode, t: int) -> dict[int, int]:
    """Who is told to attack whom in step t, as indices of units, allies first.

    What enemies do is read from the allies' next observations: of an enemy out of everybody's sight
    it is not known.
    """
    if t == len(episode["state"]) - 1:
        return {}
    n, m, moves = smax.num_allies, smax.num_enemies, smax.num_movement_actions
    attacks = {i: n + int(a) - moves for i, a in enumerate(episode["actions"][t, :, 0])}
    # An observation has the last action of the enemies in sight, as a share of the highest.
    width, targeted = len(smax.unit_features), list(smax.unit_features).index("last_targeted")
    others = episode["obs"][t + 1][:, : (n - 1 + m) * width].reshape(n, n - 1 + m, width)
    orders = np.rint(others[:, n - 1 :, targeted].max(axis=0) * (smax.num_enemy_actions - 1))
    attacks |= {n + e: n - 1 - (int(a) - moves) if a >= moves else -1 for e, a in enumerate(orders)}
    return {i: j for i, j in attacks.items() if (j >= n if i < n else j >= 0)}


# ---- MPE -----------------------------------------------------------------------------------------


def draw_spread(ax: Axes, env: Any, episode: Episode, t: int) -> None:
    """The landmarks as squares, the agents as discs of their size with the way they came."""
    from matplotlib.patches import Circle

    n = env.n_agents
    places = episode["state"][:, : 2 * n].reshape(-1, n, 2)
    landmarks = episode["state"][0, 4 * n :].reshape(n, 2)
    reach = max(1.2, float(np.abs(episode["state"][:, : 2 * n]).max()) + 0.2)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    ax.plot(*landmarks.T, "s", markersize=14, color=LINE, mec=WALL)
    colours = [AGENTS[i % len(AGENTS)] for i in range(n)]
    for i, colour in enumerate(colours):
        ax.plot(*places[: t + 1, i].T, color=colour, linewidth=1.5, alpha=0.5)
        disc = Circle(places[t, i], 0.15, facecolor=colour, edgecolor="white", alpha=0.85)
        ax.add_patch(disc)
        x, y = places[t, i]
        ax.text(x, y, f"{i + 1}", color="white", ha="center", va="center_baseline")


# ---- Overcooked ----------------------------------------------------------------------------------

KITCHEN = {"W": "#b58b5a", "P": WALL, "O": "#e8c04c", "B": "#c9d3dd", "X": HEALTH}
FOOD = {ONION: "#f3d774", PLATE: "white", SOUP: "#d97a3a"}


def draw_kitchen(ax: Axes, env: Any, episode: Episode, t: int) -> None:
    """The kitchen from above: the cooks, what they look at and hold, what lies about and cooks."""
    from matplotlib.patches import Circle

    kitchen = env.kitchen
    seen = kitchen.read(episode["state"][t])
    rows, columns = kitchen.grid.shape
    ax.set(xlim=(0, columns), ylim=(rows, 0))
    names = {"O": "onions", "B": "plates", "X": "out"}
    for (row, column), letter in np.ndenumerate(kitchen.grid):
        _cell(ax, row, column, facecolor=KITCHEN.get(letter, GROUND), edgecolor=LINE)
        ax.text(column + 0.5, row + 0.5, names.get(letter, ""), ha="center", va="center")

    def food(x: float, y: float, item: int, radius: float) -> None:
        if item != NOTHING:
            ax.add_patch(Circle((x, y), radius, facecolor=FOOD[item], edgecolor=INK, zorder=4))

    for (row, column), item in zip(kitchen.counters, seen["lying"]):
        food(column + 0.5, row + 0.5, item, 0.2)
    for (row, column), (onions, left, done) in zip(kitchen.pots, seen["pots"]):
        for k in range(onions):
            food(column + 0.25 * (k + 1), row + 0.35, SOUP if done else ONION, 0.1)
        label = "done" if done else f"{left}" if left else ""
        ax.text(column + 0.5, row + 0.75, label, color="white", ha="center", va="center")
    for i, (cell, facing, held) in enumerate(zip(seen["cell"], seen["facing"], seen["held"])):
        (row, column), (down, right) = kitchen.floor[cell], DIRECTIONS[facing]
        x, y = column + 0.5, row + 0.5
        ax.add_patch(Circle((x, y), 0.34, facecolor=AGENTS[i], edgecolor="white", zorder=3))
        ax.plot([x, x + 0.45 * right], [y, y + 0.45 * down], color=INK, linewidth=3, zorder=3)
        ax.text(x, y + 0.05, f"{i + 1}", color="white", ha="center", va="center", zorder=5)
        food(x + 0.3 * right, y + 0.3 * down, held, 0.16)


DRAWINGS: dict[str, Drawing] = {
    "matrix": draw_matrix,
    "bridge": draw_bridge,
    "smax": draw_smax,
    "mpe": draw_spread,
    "overcooked": draw_kitchen,
}
