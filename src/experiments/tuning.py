"""The tuning stage of a grid: as many configurations for every algorithm, chosen once, then frozen.

A grid file with a section `tuning` has two stages. `sweep.py GRID.yaml --tune` runs every
configuration on the tuning data and seeds, takes each algorithm's best by the score, and writes
them into GRID_tuned.yaml beside the grid. `sweep.py GRID.yaml` then runs the grid itself with these
choices: on other seeds, and only once that file is committed.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inspo.experiments.cells import Cell, finished_run_of
from inspo.experiments.records import Run
from inspo.utils.config import read_yaml
from inspo.utils.errors import ConfigError, UserError
from inspo.utils.files import temporary
from inspo.utils.settings import Settings

FORMAT = """\
# Steps of data for a run, the fit of behaviour policies counted; `own`: each algorithm's t_max.
budget: {steps: 2000000, episode_steps: 56}   # and the mean length of an episode, to count with
tuning:
  seeds: [10, 11]             # none of the grid's own
  maps: 2s3z                  # the data: as in the grid
  qualities: mixed
  score: test_battle_won_mean # of the final test, mean over data and seeds; `fqe` plays nothing
  configurations:             # as many for each of the grid's algorithms
    bc: [{lr: 0.003}, {lr: 0.001}]
    inspo: [{alpha: 0.1}, {alpha: 0.3}]
"""
KEYS = ("seeds", "maps", "qualities", "score", "configurations")
FQE = "fqe"
Scores = Callable[[Sequence[Run]], list[float]]  # of runs on one dataset


@dataclass(frozen=True)
class Tuning:
    """The stage as the grid file describes it.

    file: where the choices are frozen. cells: algorithm -> its cells, one tuple for each
    configuration. configurations: algorithm -> the overrides of each.
    """

    file: Path
    score: str
    seeds: tuple[int, ...]
    configurations: Mapping[str, Sequence[Mapping[str, Any]]]
    cells: Mapping[str, Sequence[tuple[Cell, ...]]]

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        """Seed by seed, so that a stop leaves whole seeds."""
        cells = [cell for tried in self.cells.values() for one in tried for cell in one]
        return tuple(sorted(cells, key=lambda cell: cell.overrides["seed"]))

    def chosen(self) -> dict[str, dict[str, Any]]:
        """algorithm -> overrides, as frozen; nothing before `--tune` has finished.

        ConfigError for a file of other settings.
        """
        if not self.file.exists():
            return {}
        content = read_yaml(self.file)
        try:
            tried = {
                name: [dict(one["overrides"]) for one in entry["configurations"]]
                for name, entry in content["algorithms"].items()
            }
            found = {"score": content["score"], "seeds": content["seeds"], "configurations": tried}
            best = {n: dict(entry["chosen"]) for n, entry in content["algorithms"].items()}
        except (TypeError, KeyError, AttributeError):
            raise ConfigError(
                f"{self.file}: this is no file that --tune has written. Remove it, and tune again"
            ) from None
        wanted = {
            "score": self.score,
            "seeds": list(self.seeds),
            "configurations": {n: [dict(c) for c in cs] for n, cs in self.configurations.items()},
        }
        for key, value in wanted.items():
            if found[key] != value:
                raise ConfigError(
                    f"{self.file}: it was made for other settings: {key} was {found[key]}, and is "
                    f"{value} in the grid now. Move the file away, and tune again"
                )
        return best

    def hashes(self) -> dict[str, str]:
        """Dataset -> the content hash of the data that were tuned on, as frozen."""
        return dict(read_yaml(self.file).get("data", {}))

    def require_frozen(self, final: Sequence[Cell]) -> None:
        """UserError unless the choices are made and committed, and no seed is used twice."""
        if not self.file.exists():
            raise UserError(
                f"{self.file}: nothing is chosen yet. Run `sweep.py GRID.yaml --tune` first"
            )
        if twice := sorted({cell.overrides["seed"] for cell in final} & set(self.seeds)):
            raise ConfigError(
                f"seeds: {', '.join(map(str, twice))} served for tuning, and a tuning seed is "
                "never reported; take others"
            )
        for cell in final:
            data, known = cell.key[0], self.hashes().get(cell.key[0])
            if known and (found := hash_of_data(cell)) not in (None, known):
                raise ConfigError(
                    f"{self.file}: it was tuned on other data: {data} had the hash {known[:16]}, "
                    f"and has {found[:16]} now. Move the file away, and tune again"
                )
        require_committed(self.file)

    def freeze(self, folder: Path, scores: Scores) -> dict[str, dict[str, Any]]:
        """Choose each algorithm's best configuration, write the file, and return its content.

        folder: where the cells' runs are. UserError if one is missing.
        """
        runs = {cell.id: _finished(folder, cell) for cell in self.all_cells}
        score_of = dict(zip(runs, scores(list(runs.values()))))
        algorithms: dict[str, Any] = {}
        for name, tried in self.cells.items():
            entries, means = [], []
            for overrides, cells in zip(self.configurations[name], tried):
                means.append(math.fsum(score_of[cell.id] for cell in cells) / len(cells))
                entries.append(
                    {
                        "overrides": dict(overrides),
                        "score": round(means[-1], 6),
                        "scores": {cell.id: round(score_of[cell.id], 6) for cell in cells},
                        "minutes": round(sum(60 * runs[cell.id].hours for cell in cells), 2),
                        "updates": [runs[cell.id].updates for cell in cells],
                    }
                )
            best = dict(self.configurations[name][means.index(max(means))])  # the first of equals
            algorithms[name] = {"chosen": best, "configurations": entries}
        data = {cell.key[0]: runs[cell.id].dataset.get("hash") for cell in self.all_cells}
        commits = sorted({str(run.commit) for run in runs.values()})
        content = {"score": self.score, "seeds": list(self.seeds), "data": data}
        content |= {"commits": commits, "algorithms": algorithms}
        head = "# Chosen by `sweep.py --tune`; to be committed before the grid itself runs.\n"
        with temporary(self.file) as new:
            new.write_text(head + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
            new.replace(self.file)
        return algorithms


def _finished(folder: Path, cell: Cell) -> Run:
    run = finished_run_of(folder, cell)
    if run is None:
        raise UserError(f"{cell.id}: this run of the tuning stage is not finished; tune again")
    return run


def hash_of_data(cell: Cell) -> str | None:
    """The content hash of a cell's dataset as its file says; None where there is none yet."""
    from inspo.offline.collect import dataset_path
    from inspo.offline.formats.canonical import open_source, read_metadata

    path = dataset_path(Settings(cell.config().values))
    if not path.exists():
        return None
    with open_source(path) as source:
        facts = read_metadata(source)
    return facts.content_hash if facts else None


def fqe_scores(runs: Sequence[Run]) -> list[float]:
    """What fitted Q evaluation says of each run's last policy, from the data it learnt from."""
    from inspo.estimation.estimates import DEFAULT, estimate
    from inspo.offline import load_dataset
    from inspo.offline.collect import dataset_path

    scores: dict[Path, float] = {}
    of_data: dict[Path, list[Run]] = {}
    for run in runs:
        of_data.setdefault(dataset_path(Settings(run.config)), []).append(run)
    for path, own in of_data.items():
        for run in own:
            if run.model_folder is None:
                raise UserError(f"score: {run.folder} has kept no checkpoint (save_model)")
        folders = [run.model_folder for run in own if run.model_folder]
        found = estimate(folders, load_dataset(path), [DEFAULT])
        scores |= {run.folder: one.estimates[DEFAULT].value for run, one in zip(own, found)}
    return [scores[run.folder] for run in runs]


def final_scores(metric: str) -> Scores:
    """The final test's `metric` of each run; UserError for a run that has none."""

    def scores(runs: Sequence[Run]) -> list[float]:
        for run in runs:
            if metric not in run.final:
                known = ", ".join(key for key in run.final if key != "t_env")
                raise UserError(f"score: {run.folder} has no {metric}. Known: {known}, {FQE}")
        return [run.final[metric] for run in runs]

    return scores


def require_committed(path: Path) -> None:
    """UserError unless git has the file as it is."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(path.parent), *words, "--", path.name]
        return subprocess.run(command, capture_output=True, text=True)

    try:
        known, unchanged = git("ls-files", "--error-unmatch"), git("diff", "--quiet", "HEAD")
    except OSError:
        raise UserError(f"{path}: git is needed, to see that it is committed") from None
    if known.returncode or unchanged.returncode:
        raise UserError(
            f"{path}: it is not committed as it is. Commit it before the grid's own seeds run, so "
            "that nobody can choose by them"
        )
