"""What can be known of a grid before anything of it runs: one clear error instead of many."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

from inspo.evaluation.grid import Cell
from inspo.evaluation.gridfile import is_offline
from inspo.utils.errors import ConfigError, DatasetError


def check_algorithms(cells: Iterable[Cell]) -> None:
    """ConfigError if an algorithm is to run where it cannot: without data, or without playing."""
    of_pair = {(cell.algorithm, cell.environment): cell for cell in cells}
    for (algorithm, environment), cell in of_pair.items():
        if is_offline(algorithm) and not cell.config().values["offline"]:
            raise ConfigError(
                f"{algorithm} learns from data alone, and {environment} has none. Use an offline "
                f"environment ({environment}_offline), or an online learner (qmix, mappo)"
            )
        elif not is_offline(algorithm) and cell.config().values["offline"]:
            raise ConfigError(
                f"{algorithm} learns as it plays, and {environment} is for learning from data. "
                f"Use {environment.removesuffix('_offline')}, or an algorithm that learns offline"
            )


def check_data(cells: Iterable[Cell]) -> None:
    """DatasetError if data are missing that cannot be made here either; each dataset once."""
    from inspo.offline.collect import (  # torch; the help need not wait
        check_obtainable,
        dataset_path,
    )

    seen = set()
    for cell in cells:
        args = SimpleNamespace(**cell.config().values)
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

    maps = {}
    for cell in cells:
        values = cell.config().values
        if values["env"] == "sc2" and (values["test_nepisode"] or not values["offline"]):
            maps[values["map_name"]] = None
    if maps:
        sc2.smac_class()
    for name in maps:
        sc2.require_game(name)
