"""Cells: single runs of `main.py`, told apart by names; and what can be checked before they run.

    cell = Cell("xor_b/inspo/seed0", "inspo", "matrix_offline",
                {"map_name": "xor", "quality": "b", "seed": 0})
    run = finished_run_of(folder, cell)        # None: not finished

A cell keeps everything in `{folder}/{cell.id}/`: Sacred's record, checkpoints, and `log.txt`, all
that its process wrote.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from inspo.experiments.records import Run, differences, finished_run
from inspo.utils.config import PATH_KEYS, Config, get, is_offline, load_config
from inspo.utils.errors import ConfigError, DatasetError, UserError
from inspo.utils.paths import IN_CHECKOUT, PROJECT_ROOT
from inspo.utils.settings import Settings

Key = tuple[str, str, int]  # dataset, method, seed
PART_BYTES = 200  # of one folder's name; file systems take 255
FOLDER_NAMES = f"Expected letters, digits and _ . + -, at most {PART_BYTES} bytes for each folder"


def is_folder_name(text: str) -> bool:
    """Whether it can name a folder below another one, slashes allowed."""
    parts = text.split("/")
    plain = all(re.fullmatch(r"[\w.+-]+", part) for part in parts) and ".." not in text
    return plain and all(len(part.encode()) <= PART_BYTES for part in parts)


@dataclass(frozen=True)
class Cell:
    """One run: `--config=algorithm --env-config=environment with overrides`.

    id: its name and its folder; may have slashes. overrides: dotted key -> value, `seed` among
    them; where results are written is the campaign's to say. t_max and the like belong in the YAML
    files, so that the single run does what the grid does.
    """

    id: str
    algorithm: str
    environment: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not is_folder_name(self.id):
            raise UserError(
                f"'{self.id[:100]}' cannot be the name of a cell: it names its folder too. "
                f"{FOLDER_NAMES}"
            )

    @property
    def key(self) -> Key:
        """Dataset, method and seed, of a cell whose id is made of these."""
        data, _, rest = self.id.partition("/")
        return data, rest.rpartition("/")[0], self.overrides["seed"]

    def arguments(self) -> list[str]:
        """What stands after `python src/main.py`, without the paths."""
        words = [f"{key}={value}" for key, value in self.overrides.items()]
        return [f"--config={self.algorithm}", f"--env-config={self.environment}", "with", *words]

    def config(self) -> Config:
        """The whole configuration requested, not to be changed; ConfigError if it is none."""
        return _config(tuple(self.arguments()), Path.cwd())


@cache
def _config(arguments: tuple[str, ...], cwd: Path) -> Config:
    # It takes 15 ms, and a grid of hundreds of cells asks for each several times.
    return load_config(arguments, cwd=cwd)


def command_of(cell: Cell, folder: Path, resume: Path | None = None) -> list[str]:
    """The words of a cell's process; paths among its overrides are absolute, for any node."""
    values = cell.config().values
    paths = {key: get(values, key) for key in cell.overrides if key in PATH_KEYS}
    overrides = {**cell.overrides, **paths}
    if resume:  # the weights that it began with are its own by now
        overrides.pop("checkpoint_path", None)
    program = [str(PROJECT_ROOT / "src" / "main.py")] if IN_CHECKOUT else ["-m", "inspo.main"]
    return [
        sys.executable,
        *program,
        *replace(cell, overrides=overrides).arguments(),
        "torch_threads=1",
        f"local_results_path={folder / cell.id}",
        *([f"resume={resume}"] if resume else []),
    ]


def finished_run_of(folder: str | Path, cell: Cell) -> Run | None:
    """The finished run of a cell; None if there is none.

    UserError if what is finished there is a run of another configuration.
    """
    home = Path(folder) / cell.id
    run = finished_run(home)
    differing = run and differences(run.config, cell.config().values, cell.overrides)
    if differing:
        raise UserError(
            f"{home} holds a finished run of another configuration: {'; '.join(differing)}. "
            "Move that folder away to run it anew, or choose another one with --results"
        )
    return run


def check_cells(cells: Sequence[Cell]) -> None:
    """UserError if two cells share a name, or a cell's configuration is none."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.id in seen:
            raise UserError(
                f"two cells share the name {cell.id}: {shlex.join(seen[cell.id].arguments())} and "
                f"{shlex.join(cell.arguments())}"
            )
        seen[cell.id] = cell
    for cell in cells:
        cell.config()


def check_algorithms(cells: Iterable[Cell]) -> None:
    """ConfigError if an algorithm is to run where it cannot: without data, or without playing."""
    pairs = {(cell.algorithm, cell.environment): cell for cell in cells}
    for (algorithm, environment), cell in pairs.items():
        has_data = cell.config().values["offline"]
        if is_offline(algorithm) and not has_data:
            raise ConfigError(
                f"{algorithm} learns from data alone, and {environment} has none. Use an offline "
                f"environment ({environment}_offline), or an online learner (qmix, mappo)"
            )
        if has_data and not is_offline(algorithm):
            raise ConfigError(
                f"{algorithm} learns as it plays, and {environment} is for learning from data. "
                f"Use {environment.removesuffix('_offline')}, or an algorithm that learns offline"
            )


def check_data(cells: Iterable[Cell]) -> None:
    """DatasetError if data are missing that cannot be made here either; each dataset once."""
    from inspo.offline.collect import check_obtainable, dataset_path  # torch; the help does without

    seen = set()
    for cell in cells:
        args = Settings(cell.config().values)
        if not args.offline or (path := dataset_path(args)) in seen:
            continue
        seen.add(path)
        if not args.dataset["path"]:
            check_obtainable(args)
        elif not path.exists():
            raise DatasetError(f"dataset.path: there is no such file or folder: {path}")


def check_game(cells: Iterable[Cell]) -> None:
    """ConfigError if cells are to be tested in StarCraft II, and it is not on this machine."""
    from inspo.envs import sc2

    maps = []
    for values in (cell.config().values for cell in cells):
        if values["env"] == "sc2" and (values["test_nepisode"] or not values["offline"]):
            maps.append(values["map_name"])
    if maps:
        sc2.smac_class()
    for name in dict.fromkeys(maps):
        sc2.require_game(name)
