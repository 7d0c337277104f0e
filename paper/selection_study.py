"""How good estimates of policies are: many policies, each estimated from data and then played.

For every task all offline algorithms train for a short time and keep their checkpoints; every
estimator of `src/estimation` values each of them, and each is played. `TASKS` says with which keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from inspo.estimation.estimates import (
    ESTIMATORS,
    LITTLE_SUPPORT,
    Evaluator,
    PolicyEstimate,
)
from inspo.estimation.play import play
from inspo.estimation.policies import find_policies, load_policies
from inspo.experiments.cells import Cell, finished_run_of
from inspo.experiments.plots import INK, MUTED, STYLE, plt, save
from inspo.experiments.records import provenance
from inspo.experiments.tables import fixed, markdown_table, write_json, write_text
from inspo.offline import load_dataset
from inspo.offline.collect import dataset_path
from inspo.utils.config import offline_algorithms
from inspo.utils.phases import Phase
from inspo.utils.settings import Settings
from paper.options import Options, changed, check_maps
from paper.tables import failures, run_missing

FIT = {"behaviour.updates": 100, "behaviour.others_updates": 100}  # where there is such a key
EARLY = {"keep_checkpoints": 0, "test_nepisode": 0, "log_interval": 10_000_000}
# task -> environment, keys of the runs, episodes that each policy plays
FIFTHS = {"t_max": 250_000, "save_model_interval": 50_000}
BATTLES = {"t_max": 150_000, "save_model_interval": 30_000}
MATRIX = {"t_max": 25_600, "save_model_interval": 5_120}
TASKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "xor": ("matrix", {"quality": "b", **MATRIX}, 960),
    "m_ne": ("matrix", {"quality": "imbalanced", **MATRIX}, 960),
    "bridge": ("bridge", {"quality": "mixed", **FIFTHS}, 320),
    "2s3z": ("smax", {"quality": "medium", **BATTLES}, 320),
}  # fmt: skip
STEPS = 15_000  # logged ones that the estimators read
SHORTLIST = 5  # policies that are played when estimates have been looked at first
BUDGETS = (0, 10, 32, 100, 320, 1000, 3200)  # episodes played in all
DRAWS = 2000  # of what would have been played
COLOURS = ("#d1495b", "#2e6f95", "#8aa29e", "#e8a04c", "#5b8e3e", "#7d5ba6", "#33363d")
NOT_VALUES = ("fqe_agents",)  # a diagnostic: it estimates something else


@dataclass(frozen=True)
class Quality:
    """What an estimator was worth on a task. spearman_known: over the policies that do what the
    data know; the others are chosen last. coverage: the share of the 95 % intervals that hold the
    played return (within two standard errors of that)."""

    spearman: float
    spearman_known: float
    regret_1: float
    regret_3: float
    error: float
    coverage: float


def reproduce(options: Options) -> bool:
    """Train, estimate and play what is missing, then write tables and pictures."""
    check_maps("selection", "smax", options.maps, TASKS)
    folder = options.results / "paper"
    fine = all([one_task(task, options, folder) for task in options.maps or TASKS])
    studies = {
        task: json.loads(path.read_text(encoding="utf-8"))
        for task in TASKS
        if (path := folder / f"selection_{task}.json").exists()
    }
    if studies:
        text = page(studies)
        write_text(folder / "selection.md", text)
        draw(folder / "selection.png", studies)
        print(text)
    return fine


def one_task(task: str, options: Options, folder: Path) -> bool:
    """Train what is missing of a task; estimate and play all of it unless the file has it."""
    env, keys, n_episodes = TASKS[task]
    cells = {
        name: Cell(f"{task}/{name}", name, f"{env}_offline", {"map_name": task, "seed": 10} | own)
        for name in offline_algorithms()
        if (own := keys_of(name, keys, env))
    }
    cells = changed(cells, options.changes)
    runs = options.results / "runs" / "selection"
    report = run_missing(list(cells.values()), options, runs, f"selection {task}")
    folders = [run.model_folder for cell in cells.values() if (run := finished_run_of(runs, cell))]
    path, known = folder / f"selection_{task}.json", [str(f.name) for f in folders if f]
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["runs"] == known:
        return not failures(report)
    args = Settings(next(iter(cells.values())).config().values)
    phase = partial(Phase, bar=True)
    dataset = load_dataset(dataset_path(args), phase=phase)
    steps = find_policies([Path(f) for f in folders if f], every_step=True)
    policies = load_policies(steps, dataset.metadata)
    estimators = [name for name in ESTIMATORS if env != "smax" or name != "model"]
    cache = Path(args.datasets_dir) / "cache"
    evaluator = Evaluator(dataset, estimators, max_steps=STEPS, cache=cache, phase=phase)
    results = []
    with phase("estimating", len(policies), unit="policy") as bar:
        for policy in policies:
            results.append(evaluator.evaluate(policy))
            bar.update(1, policy.name)
    for result, played in zip(results, play(policies, dataset.metadata, n_episodes, phase=phase)):
        result.played = played
    write_json(
        path,
        {
            "task": task, "runs": known, "data": dataset.metadata.content_hash,
            "episodes_played": n_episodes, "keys": keys,
            "policies": [record_of(result) for result in results],
            "from": [provenance(r) for c in cells.values() if (r := finished_run_of(runs, c))],
        },
    )  # fmt: skip
    return not failures(report)


def keys_of(algorithm: str, keys: Mapping[str, Any], env: str) -> dict[str, Any]:
    """The task's keys, and a short fit of behaviour policies for algorithms that need one."""
    config = Cell("config", algorithm, f"{env}_offline", {"seed": 0}).config().values
    fit = {k: v for k, v in FIT.items() if k.partition(".")[2] in config.get("behaviour", {})}
    return {**keys, **EARLY, **fit}


def record_of(result: PolicyEstimate) -> dict[str, Any]:
    """A policy's estimates and its played return, for the file."""
    assert result.played is not None
    return {
        "policy": f"{result.algorithm} {result.step}",
        "algorithm": result.algorithm, "step": result.step, "way": result.way,
        "played": result.played[0], "played_error": result.played[1], "support": result.support,
        "seconds": round(result.seconds, 2),
        "estimates": {
            name: {"value": e.value, "low": e.low, "high": e.high}
            for name, e in result.estimates.items()
        },
        "missing": result.missing,
    }  # fmt: skip


def quality_of(estimator: str, policies: Sequence[Mapping[str, Any]]) -> Quality | None:
    """None where it has no number for most of the policies."""
    have = [p for p in policies if estimator in p["estimates"]]
    if len(have) < max(3, len(policies) // 2):
        return None
    value = np.array([p["estimates"][estimator]["value"] for p in have])
    low, high = (np.array([p["estimates"][estimator][k] for p in have]) for k in ("low", "high"))
    played = np.array([p["played"] for p in have])
    margin = 2 * np.array([p["played_error"] for p in have])
    unknown = np.array([is_unknown(p) for p in have])
    order, best = np.lexsort((-value, unknown)), max(p["played"] for p in policies)
    inside = (played + margin >= low) & (played - margin <= high)
    return Quality(
        rank_correlation(value, played),
        rank_correlation(value[~unknown], played[~unknown]),
        float(best - played[order[0]]),
        float(best - played[order[:3]].max()),
        float(np.abs(value - played).mean()),
        float(inside.mean()),
    )


def is_unknown(policy: Mapping[str, Any]) -> bool:
    """Whether it mostly plays joint actions that the data do not know."""
    return policy["support"] is not None and policy["support"] < LITTLE_SUPPORT


def rank_correlation(value: np.ndarray, played: np.ndarray) -> float:
    """Spearman's; nan where there is nothing to rank."""
    if len(value) < 3 or np.ptp(value) == 0 or np.ptp(played) == 0:
        return math.nan
    return float(spearmanr(value, played).statistic)


def regret_curve(
    estimator: str | None, policies: Sequence[Mapping[str, Any]], n: int
) -> list[float]:
    """The mean regret of choosing after so many played episodes (BUDGETS), shared out equally.

    estimator: whose SHORTLIST best are played, and the best without any; None: all are played, and
    one is drawn without any. What a policy returns in k episodes is drawn from the normal
    distribution of its recorded mean and error, which are of n episodes.
    """
    rng = np.random.default_rng(0)
    played = np.array([p["played"] for p in policies])
    spread = np.array([p["played_error"] for p in policies]) * math.sqrt(n)
    chosen = np.arange(len(policies))
    if estimator is not None:
        value = [p["estimates"].get(estimator, {"value": -math.inf})["value"] for p in policies]
        unknown = np.array([is_unknown(p) for p in policies])
        chosen = np.lexsort((-np.array(value), unknown))[:SHORTLIST]
    curve = []
    for budget in BUDGETS:
        share = budget / len(chosen)
        if share < 1:
            curve.append(float(played.max() - (played[chosen[0]] if estimator else played.mean())))
            continue
        draws = rng.normal(played[chosen], spread[chosen] / math.sqrt(share), (DRAWS, len(chosen)))
        curve.append(float(played.max() - played[chosen][draws.argmax(1)].mean()))
    return curve


def page(studies: Mapping[str, Mapping[str, Any]]) -> str:
    """`selection.md`: a table for each task, and the curves as numbers."""
    text = [
        "# Choosing policies from data",
        "Every policy is a checkpoint of a short run; each was estimated from the data alone and "
        "then played. Spearman: of all policies, and of those that do what the data know; the "
        "others are chosen last. Regret: the best policy's played return less that of the chosen "
        "one, of the first by the estimate, or the best of its first three. Error: the mean "
        "absolute one. Coverage: of the 95 % intervals. Written by "
        "`python src/reproduce.py selection`.",
    ]
    header = ["", "Spearman", "of the known", "regret at 1", "at 3", "error", "coverage"]
    for task, study in studies.items():
        policies = study["policies"]
        played = [p["played"] for p in policies]
        rows = []
        for name in ESTIMATORS:
            if name not in NOT_VALUES and (found := quality_of(name, policies)):
                rows.append([name, *map(short, vars(found).values())])
        drawn = max(played) - sum(played) / len(played)
        seconds = sum(p["seconds"] for p in policies) / len(policies)
        text += [
            f"## {task} {study['keys']['quality']}: {len(policies)} policies, played returns from "
            f"{fixed(min(played))} to {fixed(max(played))}",
            markdown_table(header, rows),
            f"{sum(map(is_unknown, policies))} policies mostly play joint actions that the data do "
            f"not know. One drawn at random: regret {fixed(drawn)}. {seconds:.1f} s a policy for "
            f"all estimators on {STEPS:,} logged steps, {study['episodes_played']} episodes played "
            "with each.",
        ]
    return "\n\n".join(text) + "\n"


def short(value: float) -> str:
    """Two digits; the power of ten of what is absurdly large, as importance sampling may be."""
    return fixed(value) if abs(value) < 1e4 else f"{value:.0e}"


def draw(path: Path, studies: Mapping[str, Mapping[str, Any]]) -> Path:
    """Above: estimate against played return; below: regret against episodes played."""
    shown = [name for name in ESTIMATORS if name not in NOT_VALUES]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(studies), figsize=(4 * len(studies), 7), squeeze=False, constrained_layout=True
        )
        for (task, study), above, below in zip(studies.items(), *axes):
            policies, played = study["policies"], [p["played"] for p in study["policies"]]
            above.plot([min(played), max(played)], [min(played), max(played)], color=MUTED, lw=1)
            for k, name in enumerate(shown):
                points = [(p["played"], p["estimates"][name]["value"]) for p in policies
                          if name in p["estimates"]]  # fmt: skip
                if points:
                    above.scatter(*zip(*points), s=12, color=COLOURS[k], label=name, alpha=0.8)
            above.set(title=f"{task} {study['keys']['quality']}", xlabel="played return")
            reach = max(played) - min(played) or 1.0
            above.set_ylim(min(played) - reach, max(played) + reach)
            regret = partial(regret_curve, policies=policies, n=study["episodes_played"])
            at = [max(budget, 3) for budget in BUDGETS]
            below.plot(at, regret(None), marker=".", color=INK, ls=":")
            for k, name in enumerate(shown):
                if quality_of(name, policies):
                    below.plot(at, regret(name), marker=".", color=COLOURS[k])
            below.set(xscale="log", xlabel="episodes played in all (left end: none)")
        axes[0, 0].set_ylabel("estimated return")
        axes[1, 0].set_ylabel(f"regret; the best {SHORTLIST} by the estimate are played\n"
                              "(dotted: all are, without estimates)")  # fmt: skip
        handles = {label: handle for ax in axes[0]
                   for handle, label in zip(*ax.get_legend_handles_labels())}  # fmt: skip
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=7)
        return save(figure, path)
