"""What is compared: methods on datasets, and what is known of each, for tables and reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspo.experiments.records import Run
from inspo.experiments.statistics import mean_std, welch_p
from inspo.experiments.tables import fixed, mean_pm_std

LEVEL = 0.05  # of Welch's test


@dataclass(frozen=True)
class Method:
    """A row: an algorithm, or a variant of one.

    deviation: what it does otherwise than the paper, for a footnote. only: the datasets it is run
    on (all).
    """

    key: str
    algorithm: str
    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    deviation: str = ""
    only: tuple[str, ...] | None = None

    def runs_on(self, data: Data) -> bool:
        return self.only is None or data.key in self.only


@dataclass(frozen=True)
class Data:
    """A column: a dataset. published: method -> (mean, std) as the paper prints it."""

    key: str
    label: str
    environment: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    published_data: float | None = None  # the data's own mean, as printed


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how it is written. metric: a key of the final test."""

    name: str
    title: str
    caption: str
    datasets: Sequence[Data]
    methods: Sequence[Method]
    seeds: Sequence[int]
    metric: str
    unit: str
    further: Sequence[tuple[str, str]] = ()  # (metric, title) of further tables
    digits: int = 2
    data_row: bool = False
    share: bool = False  # the metric is a share of episodes: Wilson's intervals, percent in the PNG
    with_paper: bool = True
    limits: tuple[float, float] | None = None
    datasets_down: bool = False  # many datasets: they stand in the rows, the methods across
    published_average: Mapping[str, float] | None = None  # method -> over all datasets, as printed
    picture: Callable[[Sequence[Entry], Path], Path] | None = None  # draws it; None: bars


@dataclass
class Entry:
    """A method on a dataset: a cell of the tables.

    runs: seed -> run that counts. values: seed -> the metric of its final test. complete: it may be
    compared. unequal: why its runs may not even be averaged, in words.
    """

    data: Data
    method: Method
    runs: dict[int, Run]
    values: dict[int, float]
    missing: list[int]  # seeds
    complete: bool = False
    unequal: str = ""
    mean: float = field(init=False, default=math.nan)
    std: float = field(init=False, default=math.nan)
    best: bool = False
    p: float = math.nan  # of Welch's test against the best one

    def __post_init__(self) -> None:
        if self.averaged:
            self.mean, self.std = mean_std(list(self.values.values()))

    @property
    def averaged(self) -> bool:
        return bool(self.values) and not self.unequal

    @property
    def published(self) -> tuple[float, float] | None:
        return self.data.published.get(self.method.key)

    @property
    def as_good(self) -> bool:
        """Not the best, and no difference from it found."""
        return not self.best and self.p >= LEVEL

    def text(self, digits: int) -> str:
        """Mean and deviation: bold for the best, with an asterisk for one that is as good."""
        text = mean_pm_std(self.mean, self.std, digits)
        return f"**{text}**" if self.best else text + "\\*" * self.as_good


def judge(column: Sequence[Entry], digits: int) -> None:
    """Mark the best of a column (all that print the same mean) and test the others against it."""
    for entry in column:
        top = max(column, key=lambda other: other.mean)
        entry.best = fixed(entry.mean, digits) == fixed(top.mean, digits)
        entry.p = 1.0 if entry is top else welch_p([*entry.values.values()], [*top.values.values()])


def data_mean(entries: Sequence[Entry], data: Data, metric: str) -> float | None:
    """The data's own mean (win rate or return) by the record of a run on them; None if unknown."""
    fact = "win_rate" if metric == "test_battle_won_mean" else "return_mean"
    runs = (run for entry in entries if entry.data is data for run in entry.runs.values())
    return next((run.dataset.get(fact) for run in runs), None)
