"""Tables and figures by command: `python src/reproduce.py COMMAND`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation import paper
from evaluation.grid import Cell, GridReport, Result, read_result, run_grid
from evaluation.statistics import bootstrap, normal_interval, wilson
from evaluation.tables import fixed, interval, text_table, write_json
from utils.config import CONFIG_DIR, PROJECT_ROOT, has, load_config, names, parse_value
from utils.errors import ConfigError, UserError, nearest
from utils.interrupts import Interrupted

SMAX_MAP = "2s3z"
# Points of the learning curve: enough episodes to read a trend from, few enough to cost little.
CURVE = {"test_interval": 100_000, "test_nepisode": 96}


@dataclass(frozen=True)
class Options:
    """What the command line says, checked."""

    algorithms: list[str] | None
    seeds: int
    jobs: int
    results: Path
    qualities: list[str] | None
    changes: dict[str, Any]
    progress: bool = True


# --------------------------------------------------------------------------------------------------
# The main job


def main_job(options: Options) -> bool:
    """InSPO and BC on SMAX 2s3z medium, one seed: the closing table and the learning curve."""
    folder = options.results / "main_job"
    quality = (options.qualities or ["medium"])[0]
    cells = {
        name: Cell(
            name if quality == "medium" else f"{quality}_{name}",
            name,
            "smax_offline",
            {"map_name": SMAX_MAP, "quality": quality, "seed": 0, **CURVE},
        )
        for name in options.algorithms or ["inspo", "bc"]
    }
    cells = changed(cells, options.changes)
    print(f"InSPO and BC on SMAX {SMAX_MAP}, dataset {quality}, one seed each.")
    for name, cell in cells.items():
        print(f"  {name}: {budget(cell.config().values)}")
    print(
        f"The data are made first if they are missing. {options.jobs} runs at a time; "
        "at most 12 minutes on 2 cores. Ctrl-C saves, the same command goes on."
    )
    report = run(list(cells.values()), options, folder / "runs", "main job")
    results = {name: read_result(folder / "runs", cell) for name, cell in cells.items()}
    done = {name: result for name, result in results.items() if result}
    if done:
        facts = dataset_facts(next(iter(done.values())))
        header, rows = closing_table(done, quality, facts)
        print(f"\nSMAX {SMAX_MAP} {quality}, last checkpoint, greedy, final test:\n")
        print(text_table(header, rows))
        write_json(
            folder / "table.json",
            {"rows": [dict(zip(header, row)) for row in rows], "data": facts}
            | {name: {"final": r.final, "raw": r.raw} for name, r in done.items()},
        )
        curve = draw_curve(folder / "learning_curve.png", done, quality, facts)
        print(f"\nlearning curve  {curve}\nnumbers         {folder / 'table.json'}")
        for name, result in done.items():
            print(f"{display(name):<15} policy {result.model_folder}")
            print(f"{'':<15} record {result.run_folder}")
        if report.reused and not report.finished:
            print(f"\nNothing was left to train. To train anew, remove {folder}.")
    for name in results.keys() - done.keys():
        print(f"missing: {name}, see the error above", file=sys.stderr)
    return len(done) == len(cells)


def budget(values: Mapping[str, Any]) -> str:
    return (
        f"trains for {values['t_max']:,} steps of data, {values['batch_size']} episodes an update; "
        f"then {values['final_test_nepisode']} test episodes"
    )


def closing_table(
    results: Mapping[str, Result], quality: str, facts: Mapping[str, Any]
) -> tuple[list[str], list[list[str]]]:
    header = ["", "win rate", "95 % interval", "return", "95 % interval ", "episodes"]
    rows = []
    for name, result in results.items():
        won, returns = result.raw["battle_won"], result.raw["returns"]
        share = sum(won) / len(won)
        rows.append(
            [
                display(name),
                fixed(share, 3),
                interval(*wilson(sum(won), len(won)), 3),
                fixed(sum(returns) / len(returns)),
                interval(*bootstrap(returns)),
                str(len(returns)),
            ]
        )
    n, rate = facts["n_episodes"], facts["win_rate"]
    spread = facts.get("return_std")
    mean = facts["return_mean"]
    rows.append(
        [
            f"data ({quality})",
            "" if rate is None else fixed(rate, 3),
            "" if rate is None else interval(*wilson(rate * n, n), 3),
            fixed(mean),
            "" if spread is None else interval(*normal_interval(mean, spread, n)),
            str(n),
        ]
    )
    return header, rows


def dataset_facts(result: Result) -> dict[str, Any]:
    """Mean, spread and win rate of the data that a run was trained on.

    The spread comes from the file; without it (it was removed, or is another one by now) the run's
    own record says the rest.
    """
    from types import SimpleNamespace

    from offline.collect import dataset_path
    from offline.formats.canonical import open_source, read_metadata

    known = result.dataset
    facts = {
        "n_episodes": known["episodes"],
        "return_mean": known["return_mean"],
        "return_std": None,
        "win_rate": known["win_rate"],
        "hash": known["hash"],
    }
    try:
        with open_source(dataset_path(SimpleNamespace(**result.config))) as source:
            metadata = read_metadata(source)
    except UserError:
        return facts
    if metadata is not None and metadata.content_hash == known["hash"]:
        facts["return_std"] = metadata.return_std
    return facts


def draw_curve(
    path: Path, results: Mapping[str, Result], quality: str, facts: Mapping[str, Any]
) -> Path:
    from evaluation import plots  # matplotlib; the help need not wait for it

    def curve(name: str, result: Result, key: str, last) -> plots.Curve:
        points = result.tests[:-1] or result.tests
        return plots.Curve(
            label=display(name),
            name=name,
            updates=[result.updates_of(test["t_env"]) for test in points],
            values=[test[key] for test in points],
            last=last,
        )

    wins, returns = [], []
    for name, result in results.items():
        won, reached = result.raw["battle_won"], result.raw["returns"]
        share, mean = sum(won) / len(won), sum(reached) / len(reached)
        last = (share, wilson(sum(won), len(won)))
        wins.append(curve(name, result, "test_battle_won_mean", last))
        returns.append(curve(name, result, "test_return_mean", (mean, bootstrap(reached))))
    rate = facts["win_rate"]
    n_test = next(iter(results.values())).config["test_nepisode"]
    n_final = len(next(iter(results.values())).raw["returns"])
    return plots.learning_curves(
        path,
        f"Offline on SMAX {SMAX_MAP}, {quality} data",
        [
            plots.Panel(
                "Win rate", "battles won, %", wins,
                None if rate is None else (f"data ({quality})", rate), percent=True,
            ),
            plots.Panel(
                "Return", "return of an episode", returns,
                (f"data ({quality})", facts["return_mean"]),
            ),
        ],
        note=f"Greedy tests of {n_test} episodes along the way; points: last checkpoint, "
        f"{n_final} episodes, 95 % intervals (Wilson; bootstrap).",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# What the commands share


def run(
    cells: Sequence[Cell],
    options: Options,
    folder: Path,
    title: str,
    rewrite: Callable[[], Any] | None = None,
) -> GridReport:
    """The grid, and the table rewritten after every cell."""
    return run_grid(
        cells,
        options.jobs,
        folder,
        on_finished=None if rewrite is None else lambda cell, result: rewrite(),
        progress=options.progress,
        title=title,
    )


def changed(cells: Mapping[Any, Cell], changes: Mapping[str, Any]) -> dict[Any, Cell]:
    """The cells with the keys of `--with` set: in each cell that has the key.

    ConfigError for a key that no cell has.
    """
    result = dict(cells)
    for key, value in changes.items():
        having = [name for name, cell in cells.items() if has(cell.config().values, key)]
        if not having:
            raise ConfigError(f"--with: no run of this command has the key '{key}'")
        for name in having:
            result[name] = replace(
                result[name], overrides={**result[name].overrides, key: value}
            )
    return result


def display(algorithm: str) -> str:
    """An algorithm's name as papers write it."""
    return (paper.NAMES | paper.FURTHER_NAMES).get(algorithm, algorithm)


def is_offline(algorithm: str) -> bool:
    """Whether it learns from data: an online learner says how often it trains as it plays."""
    return "train_interval" not in load_config([f"--config={algorithm}"]).values


def choose_algorithms(asked: Sequence[str] | None) -> list[str]:
    """The asked ones, else all offline ones that the paper compares, in its order."""
    registered = names("algs", CONFIG_DIR)
    if asked is None:
        return [name for name in paper.NAMES if name in registered]
    for name in asked:
        if name not in registered:
            raise ConfigError(
                f"--algs: unknown algorithm '{name}'.{nearest(name, registered)} "
                f"Known: {', '.join(n for n in registered if is_offline(n))}"
            )
        if not is_offline(name):
            raise ConfigError(f"--algs: {name} learns online; these tables compare offline ones")
    return list(dict.fromkeys(asked))


# --------------------------------------------------------------------------------------------------
# The command line

COMMANDS: dict[str, tuple[Callable[[Options], bool], str]] = {
    "main_job": (main_job, "InSPO and BC on SMAX 2s3z medium, one seed: ./run.sh does this"),
}


def parse(argv: Sequence[str]) -> tuple[Callable[[Options], bool], Options]:
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description="Runs what is missing of a table or figure, then writes it.",
        epilog="Every command goes on where it was stopped: finished runs are kept, interrupted\n"
        "ones resume from their checkpoints, failed ones are tried again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=_command_help())
    parser.add_argument("--algs", nargs="+", metavar="ALG")
    parser.add_argument("--seeds", type=int, metavar="N")
    parser.add_argument("--jobs", type=int, metavar="N", default=2)
    parser.add_argument("--results", type=Path, metavar="DIR", default=PROJECT_ROOT / "results")
    parser.add_argument("--qualities", nargs="+", metavar="QUALITY")
    parser.add_argument("--with", nargs="+", metavar="KEY=VALUE", dest="changes", default=[])
    given = parser.parse_args(argv)
    command, _ = COMMANDS[given.command]
    changes = {}
    for word in given.changes:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"--with: '{word}' is not of the form key=value")
        changes[key] = parse_value(text)
    return command, Options(
        algorithms=None if given.algs is None else choose_algorithms(given.algs),
        seeds=given.seeds,
        jobs=given.jobs,
        results=given.results.expanduser().resolve(),
        qualities=given.qualities,
        changes=changes,
    )


def _command_help() -> str:
    return "; ".join(f"{name}: {words}" for name, (_, words) in COMMANDS.items())


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0; 1 if runs failed; 2: the user's error; 130, 143: stopped."""
    try:
        command, options = parse(argv)
        return 0 if command(options) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
