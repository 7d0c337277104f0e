"""Pictures of the joint policy's way over training on the matrix games, closed form and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from inspo.experiments.cells import Cell, finished_run_of
from inspo.experiments.plots import GRID, INK, MUTED, STYLE, plt, save
from inspo.experiments.records import Run, provenance
from inspo.experiments.tables import fixed, write_json
from inspo.tabular.game import joint_policy
from inspo.tabular.matrix_games import payoff_tensor
from inspo.tabular.paper_games import dataset
from paper.closed_form import beta_of, closed_form, potential
from paper.heat_maps import joint_of
from paper.options import Options, changed
from paper.tables import failures, run_missing

GAMES = (("xor", "b"), ("xor", "c"), ("m_ne", "imbalanced"))
NAMES = {"xor": "XOR", "m_ne": "M-NE"}
COLOURS = ("#2e6f95", "#d1495b", "#3a9c97", "#e8a04c")  # of joint actions


@dataclass(frozen=True)
class PolicyPath:
    """How joint policies went: share of the policies' training `[K]`, joints `[K, A_1, A_2]`."""

    share: np.ndarray
    joints: np.ndarray
    betas: np.ndarray


def reproduce(options: Options) -> bool:
    """Run InSPO on three games, one seed, and draw; whether nothing failed."""
    folder = options.results / "runs" / "paper"
    cells = {}
    for game, quality in GAMES:
        overrides = {"map_name": game, "quality": quality, "test_interval": 10_240}
        overrides |= {"test_nepisode": 1, "seed": 0}
        name = f"paths_{game}_{quality}/inspo/seed0"
        cells[game, quality] = Cell(name, "inspo", "matrix_offline", overrides)
    cells = changed(cells, options.changes)
    report = run_missing(list(cells.values()), options, folder, "paths")
    runs = {key: run for key, cell in cells.items() if (run := finished_run_of(folder, cell))}
    if runs:
        path = draw_paths(options.results / "paper" / "paths.png", runs)
        record = {
            cells[key].id: provenance(run) | {"tests": run.tests} for key, run in runs.items()
        }
        numbers = write_json(path.with_suffix(".json"), record)
        print("written:", path, numbers, sep="\n  ")
    return not failures(report)


def path_of_network(run: Run) -> PolicyPath:
    """From the tests of a run, beginning where the policies begin to be trained."""
    config = run.config
    warmup = config["critic_warmup"]
    share = np.array([test["t_env"] / config["t_max"] for test in run.tests])
    share = np.clip((share - warmup) / (1 - warmup), -1, 1)
    # The last test of the warm-up is that of pi^0.
    first = max(int(np.searchsorted(share, 0.0, side="right")) - 1, 0)
    share = np.clip(share[first:], 0, 1)
    joints = np.stack([joint_of(test) for test in run.tests[first:]])
    return PolicyPath(share, joints, np.array([beta_of(config)(s) for s in share]))


def path_of_closed_form(game: str, quality: str, config: Mapping[str, Any]) -> PolicyPath:
    history = closed_form(game, quality, config["alpha"], beta_of(config))
    share = np.linspace(0, 1, len(history))
    joints = np.stack([joint_policy(policies)[0] for policies in history])
    return PolicyPath(share, joints, np.array([beta_of(config)(s) for s in share]))


def rise(game: str, quality: str, path: PolicyPath, alpha: float) -> np.ndarray:
    """How far the potential has risen, `[K]`: the sum of its steps, each at the beta of that step.

    With a constant beta this is Phi - Phi(pi^0). While beta falls Phi falls with it, which is the
    schedule's doing and not the policies'; this sum leaves that out.
    """
    mu = dataset(game, quality).behaviour()
    steps = [0.0]
    for old, new, beta in zip(path.joints, path.joints[1:], path.betas):
        before, after = (potential(game, joint, mu, alpha, beta) for joint in (old, new))
        steps.append(after - before)
    return np.cumsum(steps)


def draw_paths(path: Path, runs: Mapping[tuple[str, str], Run]) -> Path:
    """For each game: joint actions over training, and the potential's rise; both forms."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(runs), 2, figsize=(11.5, 3.2 * len(runs) + 0.9), squeeze=False, width_ratios=[3, 2]
        )
        for (left, right), ((game, quality), run) in zip(axes, runs.items()):
            both = {
                "closed form": path_of_closed_form(game, quality, run.config),
                "network": path_of_network(run),
            }
            _draw_joint_actions(left, both)
            _shade_schedule(left, run.config)
            returns = " and ".join(
                f"{fixed(float((way.joints[-1] * payoff_tensor(game)).sum()))} ({name})"
                for name, way in both.items()
            )
            left.set_title(f"{NAMES[game]} {quality}: return {returns}", fontsize=10)
            for name, way in both.items():
                line = "-" if name == "network" else (0, (1.5, 1.5))
                risen = rise(game, quality, way, run.config["alpha"])
                right.plot(way.share, risen, color=INK, ls=line, label=name)
            right.set_title("Rise of the potential Φ", fontsize=10)
            right.set(
                xlabel="share of the policies' training", ylabel="Φ − Φ(π⁰), at each step's β"
            )
            right.legend(loc="best")
        figure.suptitle(
            "Paths of the joint policy: closed form (dotted) and networks (solid)",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.supxlabel(
            "Φ = E[R] − α Σ KL(πᵢ ‖ μᵢ) + β Σ H(πᵢ), summed over steps at the β of each. It rises "
            "in every sweep where the data show all of the game (Prop. 4);\nXOR (b) lacks (B, B), "
            "whose payoff Φ counts and the data do not know, and there it may fall.",
            x=0.01, ha="left", fontsize=8, color=MUTED,
        )  # fmt: skip
        return save(figure, path)


def _draw_joint_actions(ax: Axes, both: Mapping[str, PolicyPath]) -> None:
    """The probabilities of the joint actions that are seen most."""
    for colour, (i, j) in zip(COLOURS, _most_seen(list(both.values()), len(COLOURS))):
        for name, way in both.items():
            network = name == "network"
            ax.plot(
                way.share, way.joints[:, i, j], color=colour,
                ls="-" if network else (0, (1.5, 1.5)), lw=1.8 if network else 2.4,
                label=f"({chr(ord('A') + i)}, {chr(ord('A') + j)})" if network else None,
            )  # fmt: skip
    ax.set(xlabel="share of the policies' training", ylabel="probability of joint action")
    ax.set_ylim(-0.03, 1.09)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title="joint action")


def _shade_schedule(ax: Axes, config: Mapping[str, Any]) -> None:
    """Where beta is held, where it falls, and from where on it is 0."""
    beta, hold, end = (config[key] for key in ("beta", "beta_hold", "beta_end"))
    if not beta:
        return
    ax.axvspan(0, hold, color=GRID, alpha=0.55, lw=0)
    ax.axvspan(hold, end, color=GRID, alpha=0.28, lw=0)
    for x, text in ((0.01, f"β = {beta:g}"), (hold + 0.01, "β falls"), (end, " β = 0")):
        ax.text(x, 1.02, text, fontsize=8, color=MUTED)


def _most_seen(paths: Sequence[PolicyPath], count: int) -> list[tuple[int, int]]:
    """The joint actions that were most probable at any time, in the order of their names."""
    peak = np.max([path.joints.max(0) for path in paths], axis=0)  # [A_1, A_2]
    order = np.argsort(-peak.ravel(), kind="stable")[:count]
    return sorted((int(k) // peak.shape[1], int(k) % peak.shape[1]) for k in order)
