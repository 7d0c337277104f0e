"""The files of an estimation: table, CSV, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from inspo.estimation.estimates import ESTIMATORS, Choice, Estimate, PolicyEstimate
from inspo.experiments.plots import INK, MUTED, STYLE, colour, save
from inspo.experiments.tables import (
    NONE,
    fixed,
    interval,
    markdown_table,
    write_csv,
    write_json,
    write_text,
)

MAX_PANELS = 6


def used(estimates: Sequence[PolicyEstimate]) -> list[str]:
    """The estimators that have a number for some policy, in the order of ESTIMATORS."""
    return [name for name in ESTIMATORS if any(name in e.estimates for e in estimates)]


def cells(estimates: Sequence[PolicyEstimate], order: Sequence[int]) -> list[list[str]]:
    """Header and rows of the table, best policy first."""
    columns = used(estimates)
    played = any(e.played for e in estimates)
    supported = any(e.support is not None for e in estimates)
    header = ["policy", "played as", "agreement"] + ["support"] * supported
    rows = [[*header, *columns, *["played return"] * played]]
    for k in [*order, *(k for k in range(len(estimates)) if k not in order)]:
        e = estimates[k]
        row = [e.name, e.way, fixed(e.agreement)]
        row += [NONE if e.support is None else fixed(e.support)] * supported
        row += [_cell(e.estimates.get(name)) for name in columns]
        if played:
            row.append(f"{fixed(e.played[0])} ± {fixed(e.played[1])}" if e.played else NONE)
        rows.append(row)
    return rows


def _cell(e: Estimate | None) -> str:
    return NONE if e is None else f"{fixed(e.value)} {interval(e.low, e.high)}"


def verdict(estimates: Sequence[PolicyEstimate], choice: Choice, n: int = 3) -> str:
    """Who is best by an estimator, and with how much doubt."""
    ranked = list(zip(choice.order, choice.probability))
    best = estimates[ranked[0][0]]
    lines = [
        f"best by {choice.estimator}: {best.name}, {_cell(best.estimates[choice.estimator])}; best "
        f"in {ranked[0][1]:.0%} of the resamples"
    ]
    rivals = sorted(ranked[1:], key=lambda pair: -pair[1])[: n - 1]
    others = [f"{estimates[k].name} in {share:.0%}" for k, share in rivals if share >= 0.005]
    if others:
        lines.append(f"otherwise {', '.join(others)}")
    return "; ".join(lines)


def rows_of(estimates: Sequence[PolicyEstimate], choice: Choice) -> list[dict[str, Any]]:
    """One flat dictionary a policy, for the CSV."""
    probability = dict(zip(choice.order, choice.probability))
    rows = []
    for k, e in enumerate(estimates):
        row = _facts(e) | {f"best_by_{choice.estimator}": probability.get(k)}
        for name, one in e.estimates.items():
            row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
            if "effective_episodes" in one.facts:
                row[f"{name}_effective_episodes"] = one.facts["effective_episodes"]
        rows.append(row)
    return rows


def _facts(e: PolicyEstimate) -> dict[str, Any]:
    keys = ("name", "folder", "step", "algorithm", "seed", "way", "agreement", "support", "seconds")
    row: dict[str, Any] = {key: getattr(e, key) for key in keys}
    if e.played:
        row |= {"played": e.played[0], "played_standard_error": e.played[1]}
    return row


def write(
    out: Path,
    estimates: Sequence[PolicyEstimate],
    choice: Choice,
    about: Mapping[str, Any],
) -> list[Path]:
    """Write estimates.md, .csv, .json and .png into `out`; returns them.

    about: what there is to say of the data and the estimation, for the JSON file.
    """
    table, warnings = cells(estimates, choice.order), list_warnings(estimates)
    text = ["# Estimates", markdown_table(table[0], table[1:]), verdict(estimates, choice)]
    text += [f"- {line}" for line in warnings]
    content = {
        **about,
        "choice": {
            "estimator": choice.estimator,
            "ranking": [estimates[k].name for k in choice.order],
            "probability_of_being_best": choice.probability,
        },
        "policies": [
            _facts(e)
            | {
                "estimates": {
                    name: {"value": one.value, "low": one.low, "high": one.high, **one.facts}
                    for name, one in e.estimates.items()
                },
                "missing": e.missing,
                "warnings": e.warnings,
            }
            for e in estimates
        ],
    }
    paths = [
        write_text(out / "estimates.md", "\n\n".join(text) + "\n"),
        write_csv(out / "estimates.csv", rows_of(estimates, choice)),
        write_json(out / "estimates.json", content),
    ]
    picture = draw(estimates, out / "estimates.png")
    return [*paths, picture] if picture else paths


def list_warnings(estimates: Sequence[PolicyEstimate]) -> list[str]:
    """Every warning once, why estimators have no number, and what was not looked at."""
    missing = [f"{name}: {why}" for e in estimates for name, why in e.missing.items()]
    if all(e.support is None for e in estimates):
        missing.append(
            "whether the data know what the policies do together was not looked at: "
            "--estimators fqe_joint wis fits the data's policy and does"
        )
    return list(dict.fromkeys([*(line for e in estimates for line in e.warnings), *missing]))


def draw(estimates: Sequence[PolicyEstimate], path: Path) -> Path | None:
    """Estimate against estimate, or against the played return where there is one; a dot a policy.

    None if there is only one column and nothing to compare it with.
    """
    columns = used(estimates)
    played = any(e.played for e in estimates)
    pairs = [("played", name) for name in columns] if played else list(combinations(columns, 2))
    if not pairs:
        return None
    pairs = pairs[:MAX_PANELS]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(pairs), figsize=(1 + 3.4 * len(pairs), 3.8), squeeze=False
        )
        for ax, (x, y) in zip(axes[0], pairs):
            points = []
            for e in estimates:
                a, b = _point(e, x), _point(e, y)
                if a is None or b is None or not np.isfinite([*a, *b]).all():
                    continue
                points += [a[0], b[0]]
                ax.errorbar(
                    a[0], b[0], xerr=_bars(a), yerr=_bars(b), fmt="o", ms=5, lw=1,
                    color=colour(e.algorithm), ecolor=MUTED, alpha=0.9,
                )  # fmt: skip
            if points:
                ends = [min(points), max(points)]
                ax.plot(ends, ends, color=INK, lw=0.8, ls=(0, (4, 3)), zorder=0)
            ax.set_xlabel("played return" if x == "played" else x)
            ax.set_ylabel(y)
        names = dict.fromkeys(e.algorithm for e in estimates)
        for name in names:
            axes[0][0].plot([], [], "o", color=colour(name), label=name)
        figure.legend(loc="outside upper right", ncols=len(names))
        return save(figure, path)


def _point(e: PolicyEstimate, name: str) -> tuple[float, float, float] | None:
    """Value and interval."""
    if name == "played":
        if not e.played:
            return None
        mean, error = e.played
        return mean, mean - 1.96 * error, mean + 1.96 * error
    one = e.estimates.get(name)
    return (one.value, one.low, one.high) if one else None


def _bars(point: tuple[float, float, float]) -> list[list[float]]:
    """Lengths of the error bars; an interval need not hold its value."""
    value, low, high = point
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
