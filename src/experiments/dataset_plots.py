"""The picture of a dataset: what came out, what the agents did, how far they act together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from inspo.experiments.plots import HEAT, INK, MUTED, STYLE, save

WON, LOST, PLAIN, SHUFFLED = "#2e6f95", "#d1495b", "#2e6f95", "#c9cdd4"


def draw_dataset(path: str | Path, found) -> Path:
    """Six panels of an `offline.inspection.Inspection`, as PNG."""
    meta, stats = found.metadata, found.statistics
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(14.5, 8.0))
        _returns(axes[0, 0], found)
        _lengths(axes[0, 1], found)
        _actions(axes[0, 2], stats.action_frequencies)
        _entropies(axes[1, 0], found)
        _pairs(axes[1, 1], found.dependence.mutual_information)
        _coverage(axes[1, 2], found.coverage)
        won = "" if stats.win_rate is None else f", {stats.win_rate:.1%} won"
        names = [n for n in (meta.env, meta.map_name, meta.quality) if n and n != "unknown"]
        figure.suptitle(
            f"{' '.join(names) or 'dataset'}: {stats.n_episodes:,} episodes, "
            f"{stats.n_steps:,} steps{won}",
            x=0.01, ha="left", fontsize=14, fontweight="bold",
        )  # fmt: skip
        return save(figure, path)


def _edges(values: np.ndarray, bins: int = 40) -> np.ndarray:
    """Edges of at most `bins` bins; one bin around values that are all the same."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, bins + 1)


def _returns(ax: Axes, found) -> None:
    edges = _edges(found.returns)
    if found.won is None:
        ax.hist(found.returns, edges.tolist(), color=PLAIN)
    else:
        won = found.won.astype(bool)
        parts = [found.returns[~won], found.returns[won]]
        ax.hist(parts, edges.tolist(), stacked=True, color=[LOST, WON], label=["lost", "won"])
        ax.legend(loc="best")
    mean = found.statistics.returns.mean
    ax.axvline(mean, color=INK, linewidth=1.2, linestyle="--")
    ax.set(
        title=f"Returns (mean {mean:.2f}, dashed)", xlabel="undiscounted return", ylabel="episodes"
    )


def _lengths(ax: Axes, found) -> None:
    low, high = int(found.lengths.min()), int(found.lengths.max())
    step = max(1, -(-(high - low + 1) // 40))
    ax.hist(found.lengths, (np.arange(low, high + step + 1, step) - 0.5).tolist(), color=PLAIN)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if low == high:
        ax.set_xlim(low - 5, high + 5)
    limit = found.metadata.episode_limit
    ax.set(title=f"Lengths (limit {limit})", xlabel="transitions", ylabel="episodes")


def _actions(ax: Axes, frequencies: np.ndarray) -> None:
    """frequencies: `[n, A]`."""
    n, n_actions = frequencies.shape
    image = ax.imshow(frequencies, cmap=HEAT, vmin=0, aspect="auto")
    _numbers(ax, frequencies)
    ax.set(title="What each agent does", xlabel="action", ylabel="agent")
    ax.set_xticks(range(n_actions))
    ax.set_yticks(range(n))
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label="share of its steps", shrink=0.85)


def _numbers(ax: Axes, values: np.ndarray) -> None:
    """The value in each cell that has one, where they can be read."""
    if max(values.shape) > 12:
        return
    dark = 0.6 * np.nanmax(values, initial=0.0)
    for i, j in np.argwhere(~np.isnan(values)):
        colour = "white" if values[i, j] > dark else INK
        text = f"{values[i, j]:.2f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)


def _entropies(ax: Axes, found) -> None:
    """The agents' entropies, summed, beside the joint one: the gap is what they share."""
    dep = found.dependence
    bottom = 0.0
    shades = plt.get_cmap("Blues")(np.linspace(0.35, 0.8, len(dep.agent_entropy)))
    for i, (value, shade) in enumerate(zip(dep.agent_entropy, shades)):
        ax.bar(0, value, bottom=bottom, color=shade, width=0.6, edgecolor="white")
        if value > 0.05 * dep.agent_entropy.sum():
            ax.text(0, bottom + value / 2, f"{i}: {value:.2f}", ha="center", va="center",
                    fontsize=8, color="white" if i > 0.4 * len(shades) else INK)  # fmt: skip
        bottom += value
    ax.bar(1, dep.joint_entropy, color=PLAIN, width=0.55)
    ax.text(1, dep.joint_entropy / 2, f"{dep.joint_entropy:.2f}", ha="center", va="center",
            fontsize=9, color="white")  # fmt: skip
    ax.bar(1, dep.total_correlation, bottom=dep.joint_entropy, color=LOST, width=0.55, alpha=0.85)
    ax.annotate(
        f"{dep.total_correlation:.2f} apart\n({dep.shuffled:.2f} if independent)",
        (1.28, dep.joint_entropy + dep.total_correlation / 2), xytext=(6, 0),
        textcoords="offset points", va="center", fontsize=9, color=LOST,
    )  # fmt: skip
    ax.set_xticks([0, 1], ["agents, summed", "jointly"])
    ax.set(title="Entropy of the actions", ylabel="nats, whatever the state", xlim=(-0.45, 2.05))
    ax.grid(axis="x", visible=False)


def _pairs(ax: Axes, mutual: np.ndarray) -> None:
    """mutual: `[n, n]`."""
    shown = np.where(np.eye(len(mutual), dtype=bool), np.nan, mutual)
    image = ax.imshow(shown, cmap=HEAT, vmin=0, vmax=max(float(mutual.max()), 1e-3))
    _numbers(ax, shown)
    ax.set(title="What a pair of agents shares", xlabel="agent", ylabel="agent")
    ax.set_xticks(range(len(mutual)))
    ax.set_yticks(range(len(mutual)))
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label="mutual information, nats", shrink=0.85)


def _coverage(ax: Axes, coverage) -> None:
    """The share of the transitions that the k most frequent joint actions make up."""
    for counts, colour, label in (
        (coverage.shuffled_counts, SHUFFLED, "if the agents were independent"),
        (coverage.counts, PLAIN, "in the data"),
    ):
        rank = np.arange(1, len(counts) + 1)
        ax.plot(rank, np.cumsum(counts) / counts.sum(), color=colour, label=label)
        ax.plot(rank[-1], 1.0, "o", color=colour, markersize=5, clip_on=False)
    ax.set_xscale("log")
    ax.set_xlim(1, max(coverage.possible, 2))
    ax.set_ylim(0, 1.03)
    ax.set(
        title=f"Joint actions: {coverage.joint_actions:,} of {coverage.possible:,}",
        xlabel="the k most frequent", ylabel="share of all transitions",
    )  # fmt: skip
    ax.legend(loc="upper left", labelcolor=MUTED)
