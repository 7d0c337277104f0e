"""Tables and figures by command: `python src/reproduce.py COMMAND`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.evaluation import paper, starcraft
from inspo.evaluation.comparison import (
    Comparison,
    Data,
    Key,
    Method,
    cells_of,
    check_measured,
    compare,
    origin,
    to_markdown,
    to_record,
    to_rows,
)
from inspo.evaluation.comparison import write as write_comparison
from inspo.evaluation.grid import Cell, GridReport, Result, read_result, run_grid
from inspo.evaluation.gridfile import TAKEN, is_offline
from inspo.evaluation.jobs import BACKENDS, check_options, make_launcher
from inspo.evaluation.preflight import check_algorithms, check_data, check_game
from inspo.evaluation.recorded import read_recorded
from inspo.evaluation.statistics import bootstrap, normal_interval, wilson
from inspo.evaluation.tables import (
    fixed,
    interval,
    provenance,
    text_table,
    write_csv,
    write_json,
    write_text,
)
from inspo.utils.config import expand_user, has, load_config, names, parse_value
from inspo.utils.errors import ConfigError, UserError, nearest
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import CONFIG_DIR, PROJECT_ROOT

SMAX_MAP = "2s3z"
# Points of the learning curve: enough episodes to read a trend from, few enough to cost little.
CURVE = {"test_nepisode": 96}


@dataclass(frozen=True)
class Options:
    """What the command line says, checked."""

    algorithms: list[str] | None
    seeds: int | None
    jobs: int | None  # None: what the backend takes by itself
    results: Path
    qualities: list[str] | None
    changes: dict[str, Any]
    on: str
    maps: list[str] | None
    backend: str
    address: str | None
    gpus: float
    fill: bool = False  # leave out the runs that the table's file holds already


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
        for name in choose_algorithms(options.algorithms or ["inspo", "bc"])
    }
    cells = changed(cells, options.changes)
    print(f"InSPO and BC on SMAX {SMAX_MAP}, dataset {quality}, one seed each.")
    for name, cell in cells.items():
        print(f"  {name}: {budget(cell.config().values)}")
    print(
        f"The data are made first if they are missing. {options.jobs or 2} runs at a time; "
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

    from inspo.offline.collect import dataset_path
    from inspo.offline.formats.canonical import open_source, read_metadata

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
    from inspo.evaluation import plots  # matplotlib; the help need not wait for it

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
# Tables 4 to 7: StarCraft II, or SMAX


def starcraft_table(number: int, always_on: str | None = None) -> Callable[[Options], bool]:
    """The command of Table 4, 5 or 6. always_on: the simulator, where the command has no choice."""

    def command(options: Options) -> bool:
        on = starcraft.find_simulator(always_on or options.on)
        make = {4: starcraft.table4, 5: starcraft.table5, 6: starcraft.table6}[number]
        maps = starcraft.check_maps(on, number, options.maps)
        tables = make(on, options.seeds, options.maps)
        known = {quality for table in tables for quality in qualities_of(table)}
        check_qualities(options.qualities, known)
        done = []
        for table in tables:
            wanted_data = {
                data.key
                for data in table.comparison.datasets
                if data.overrides["map_name"] in maps
                and data.overrides["quality"] in (options.qualities or known)
            }
            done.append(
                run_comparison(
                    table.comparison,
                    options,
                    options.results / "runs" / table.folder,
                    options.results / on.key,
                    wanted_data,
                    table.cells,
                    prepare=lambda cells: prepare_starcraft(on, options, cells),
                    accept=starcraft.check_tested_in_the_game if on.is_the_game else None,
                )
            )
        return all(done)

    return command


def qualities_of(table: starcraft.Table) -> list[str]:
    return [data.overrides["quality"] for data in table.comparison.datasets]


def check_qualities(asked: Sequence[str] | None, known: Iterable[str]) -> None:
    for quality in asked or ():
        if quality not in known:
            raise ConfigError(
                f"--qualities: unknown quality '{quality}'.{nearest(quality, known)} "
                f"Known: {', '.join(sorted(known))}"
            )


def prepare_starcraft(on: starcraft.Simulator, options: Options, cells: Sequence[Cell]) -> None:
    """What must be here before anything runs: the game, where it is that, and the data."""
    check_algorithms(cells)
    if options.backend == "local":
        check_game(cells)
    if on.is_the_game:
        starcraft.download_data(cells, say=print)
    check_data(cells)


def table7(options: Options) -> bool:
    """Training time of CFCQL and of InSPO."""
    on = starcraft.find_simulator(options.on)
    maps = starcraft.check_maps(on, 7, options.maps)
    folder = options.results / "runs" / starcraft.timing_folder(on)
    choose_algorithms(starcraft.TIMED)
    cells = changed(starcraft.timed_cells(on, options.seeds, options.maps), options.changes)
    results = {k: r for k, cell in cells.items() if (r := read_result(folder, cell))}
    missing = [cell for key, cell in cells.items() if key not in results]
    if missing:
        prepare_starcraft(on, options, missing)
    report = run(missing, options, folder, "table7")
    results = {k: r for k, cell in cells.items() if (r := read_result(folder, cell))}
    if on.is_the_game:
        starcraft.check_tested_in_the_game(results.values())
    paths = starcraft.write_times(on, results, maps, options.results / on.key)
    print(paths[0].read_text())
    print("written:", *paths, sep="\n  ")
    return not failures(report)


# --------------------------------------------------------------------------------------------------
# The paper's tables

JOINT_KL = Method(
    "inspo_joint_kl",
    "inspo",
    "InSPO + joint KL",
    {"joint_kl_coef": 1.0},
    "not the paper's algorithm: the others' divergence from the data, "
    "α KL(π⁻ⁱ ‖ μ(· | s, aᵢ)), is taken off the critic's target (docs/theory.md, item 3). "
    "Without it exactly balanced data (a) give no reason to prefer either of their two actions.",
    only=("xor_a",),
)
EXACT = (
    "Expected return of the last policies, computed exactly from the probabilities they act with "
    "(`test_expected_return`; policies are sampled, no argmax; CFCQL and MACQL, "
    "which have values and no policy, take the action of largest value)."
)


def paper_comparison(name: str, options: Options) -> Comparison:
    datasets, title, caption = {
        "table1": (
            [game_data("xor", q, f"({q})") for q in ("a", "b", "c")],
            "Table 1: XOR game",
            f"{EXACT} Datasets: (a) AB and BA, (b) AA, AB and BA, (c) all four, in equal parts.",
        ),
        "table2": (
            [game_data("m_ne", q, q) for q in ("balanced", "imbalanced")],
            "Table 2: M-NE game",
            f"{EXACT} Datasets: balanced, every action equally often; imbalanced, each agent "
            "plays A with probability 0.8, B and C with 0.1.",
        ),
        "table3": (
            [game_data("bridge", q, q) for q in ("optimal", "mixed")],
            "Table 3: Bridge",
            "Mean return of the final test of the last policies, 320 episodes with actions "
            "drawn from the policies (not greedy; CFCQL, which has none, plays the action of "
            "largest value), episode limit 20. Datasets: optimal, 500 "
            "episodes of the two optimal orders of crossing; mixed, 500 uniformly random ones "
            "besides.",
        ),
    }[name]
    with_data = name == "table3"
    return Comparison(
        name=name,
        title=title,
        caption=caption,
        datasets=datasets,
        methods=paper_methods(options, joint_kl=name == "table1"),
        seeds=range(options.seeds or 5),
        metric="test_return_mean" if with_data else "test_expected_return",
        unit="return",
        data_row=with_data,
    )


RELAXED = Method(
    "omiga_relaxed",
    "omiga",
    "OMIGA (relaxed)",
    {"alpha": 0.1},
    'the paper\'s "more relaxed behaviour policy constraint": the smallest temperature that it '
    "says it tried.",
)


def figure3(options: Options) -> bool:
    """The final joint policies on XOR (b), all methods, and OMIGA with a small temperature."""
    from inspo.evaluation import games

    methods = paper_methods(options, joint_kl=False)
    place = next((k for k, m in enumerate(methods) if m.key == "omiga"), len(methods) - 1)
    methods.insert(place + 1, RELAXED)
    comparison = Comparison(
        name="figure3",
        title="Figure 3: final joint policies on XOR, dataset (b)",
        caption=f"{EXACT} Data: AA, AB and BA, in equal parts; the joint policies are in the "
        "picture and, as `test_joint_*`, in the JSON file.",
        datasets=[game_data("xor", "b", "(b)")],
        methods=methods,
        seeds=range(options.seeds or 5),
        metric="test_expected_return",
        unit="return",
        picture=games.draw_figure3,
    )
    folder = options.results / "runs" / "paper"
    return run_comparison(comparison, options, folder, options.results / "paper")


def game_data(map_name: str, quality: str, label: str) -> Data:
    return Data(
        f"{map_name}_{quality}",
        label,
        "bridge_offline" if map_name == "bridge" else "matrix_offline",
        {"map_name": map_name, "quality": quality},
        paper.RETURNS[map_name, quality],
        paper.DATA_RETURNS.get((map_name, quality)),
    )


def paper_methods(options: Options, joint_kl: bool) -> list[Method]:
    """Every offline algorithm that is registered, in the paper's order of columns."""
    registered = choose_algorithms(None)
    folder = options.results / "runs" / "paper"
    registered += further_algorithms(options, folder, set(registered))
    methods = [Method(name, name, display(name)) for name in registered]
    if joint_kl and has(load_config(["--config=inspo"]).values, "joint_kl_coef"):
        methods.append(JOINT_KL)
    return methods


def further_algorithms(options: Options, folder: Path, known: set[str]) -> list[str]:
    """Those asked for, and those that have runs already, beside the known ones."""
    asked = choose_algorithms(options.algorithms, known) if options.algorithms else []
    present = {path.name for path in folder.glob("*/*") if path.is_dir()}
    offline = [name for name in names("algs", CONFIG_DIR) if is_offline(name)]
    return [name for name in offline if name not in known and name in {*asked, *present}]


def paper_table(name: str) -> Callable[[Options], bool]:
    def command(options: Options) -> bool:
        comparison = paper_comparison(name, options)
        folder = options.results / "runs" / "paper"
        return run_comparison(comparison, options, folder, options.results / "paper")

    return command


def run_comparison(
    comparison: Comparison,
    options: Options,
    folder: Path,
    target: Path,
    datasets: set[str] | None = None,
    cells: Mapping[Key, Cell] | None = None,
    prepare: Callable[[Sequence[Cell]], None] | None = None,
    accept: Callable[[Iterable[Result]], None] | None = None,
) -> bool:
    """Run what is missing, of the algorithms and datasets asked for; write after every run.

    The files always show the whole comparison; what is not there is named as missing. Runs that
    the files hold already stay in them until they are run anew.
    cells: the comparison's, where it does not make them itself. prepare: called with the cells that
    are to be run, before the first. accept: called with results before they are written; UserError
    for one that has no place in the table, which is then a failed run. A result without the table's
    metric has none either.
    """

    def check(new: Iterable[Result]) -> None:
        new = list(new)
        check_measured(comparison, new)
        if accept:
            accept(new)

    known = {method.key for method in comparison.methods}
    if options.algorithms:
        choose_algorithms(options.algorithms, known)
    cells = changed(cells_of(comparison) if cells is None else cells, options.changes)
    finished_runs = {k: r for k, cell in cells.items() if (r := read_result(folder, cell))}
    recorded = read_recorded(comparison, cells, target, folder)
    results = recorded | finished_runs
    keys = {cell.id: key for key, cell in cells.items()}
    asked = [
        cell
        for (data, method, seed), cell in cells.items()
        if (datasets is None or data in datasets)
        and wanted(method, options, comparison)
        and not (options.fill and (data, method, seed) in recorded)
    ]
    check(finished_runs.values())
    if prepare and (missing := [cell for cell in asked if keys[cell.id] not in finished_runs]):
        prepare(missing)

    def finished(cell: Cell, result: Result) -> None:
        check([result])
        results[keys[cell.id]] = result
        write_comparison(comparison, results, target)

    write_comparison(comparison, results, target)
    report = run(asked, options, folder, comparison.name, finished)
    paths = write_comparison(comparison, results, target)
    print(to_markdown(comparison, results).split("\n## Every seed")[0])
    print("written:", *paths, sep="\n  ")
    print(f"runs, with their logs: {folder}")
    return not failures(report)


def wanted(method: str, options: Options, comparison: Comparison) -> bool:
    """Whether --algs asks for a method: by its own name, or by that of its algorithm.

    The control on SMAX is asked for by its own name alone: it is no row of InSPO's.
    """
    if options.algorithms is None or method in options.algorithms:
        return True
    algorithm = next(m.algorithm for m in comparison.methods if m.key == method)
    return algorithm in options.algorithms and method != "control"


# --------------------------------------------------------------------------------------------------
# Figure 5 and the paths of the matrix games


def figure5(options: Options) -> bool:
    """The ablations without entropy and without sequential updates, under several conditions."""
    from inspo.evaluation import games

    folder, stem = options.results / "runs" / "paper", options.results / "paper" / "figure5"
    seeds = range(options.seeds or 5)
    comparisons = {
        ablation.data.key: Comparison(
            name="figure5",
            title=ablation.title,
            caption="",
            datasets=[ablation.data],
            methods=[condition.method() for condition in ablation.conditions],
            seeds=seeds,
            metric="test_expected_return",
            unit="return",
        )
        for ablation in games.ABLATIONS
    }
    cells = {}
    for comparison in comparisons.values():
        cells |= cells_of(comparison)
    cells = changed(cells, options.changes)
    results = {k: r for k, cell in cells.items() if (r := read_result(folder, cell))}
    keys = {cell.id: key for key, cell in cells.items()}
    endings = {}
    for ablation in games.ABLATIONS:
        config = cells[ablation.data.key, "inspo", 0].config().values
        endings[ablation.data.key] = games.settle(ablation, config)

    def write() -> list[Path]:
        runs = {
            ablation.data.key: {
                condition.key: [
                    results[ablation.data.key, condition.key, seed]
                    for seed in seeds
                    if (ablation.data.key, condition.key, seed) in results
                ]
                for condition in ablation.conditions
            }
            for ablation in games.ABLATIONS
        }
        parts = ["# Figure 5: ablations", games.FIGURE_5_CAPTION]
        record: dict[str, Any] = {"name": "figure5", "caption": games.FIGURE_5_CAPTION}
        rows = []
        for ablation in games.ABLATIONS:
            key = ablation.data.key
            parts += [f"## {ablation.title}"]
            parts += [games.ablation_table(ablation, endings[key], runs[key], len(seeds))]
            entries = compare(comparisons[key], results)
            parts += [origin(comparisons[key], entries)]
            rows += to_rows(comparisons[key], entries)
            record[key] = to_record(comparisons[key], entries) | {
                "paper": ablation.printed.tolist(),
                "closed_form": {
                    name: {"returns": end.returns, "joints": [j.tolist() for j in end.joints]}
                    for name, end in endings[key].items()
                },
            }
        return [
            write_text(f"{stem}.md", "\n\n".join(part for part in parts if part) + "\n"),
            write_csv(f"{stem}.csv", rows),
            write_json(f"{stem}.json", record),
            games.draw_figure5(Path(f"{stem}.png"), endings, runs),
        ]

    def finished(cell: Cell, result: Result) -> None:
        results[keys[cell.id]] = result

    report = run(list(cells.values()), options, folder, "figure5", finished)
    paths = write()
    print(paths[0].read_text())
    print("written:", *paths, sep="\n  ")
    return not failures(report)


COMMON = 0.1  # share of the episodes from which an order of crossing is the policy's, not noise
PATHS = (("xor", "b"), ("xor", "c"), ("m_ne", "imbalanced"))


def paths(options: Options) -> bool:
    """The joint policy's way over training, closed form beside network, one seed."""
    from inspo.evaluation import games

    folder = options.results / "runs" / "paper"
    cells = {}
    for game, quality in PATHS:
        data = game_data(game, quality, "")
        overrides = {**data.overrides, "test_interval": 10_240, "test_nepisode": 1, "seed": 0}
        name = f"paths_{data.key}/inspo/seed0"
        cells[game, quality] = Cell(name, "inspo", data.environment, overrides)
    cells = changed(cells, options.changes)
    report = run(list(cells.values()), options, folder, "paths")
    runs = {k: r for k, cell in cells.items() if (r := read_result(folder, cell))}
    if runs:
        path = games.draw_paths(options.results / "paper" / "paths.png", runs)
        record = {
            cell.id: provenance(runs[key]) | {"tests": runs[key].tests}
            for key, cell in cells.items()
            if key in runs
        }
        numbers = write_json(path.with_suffix(".json"), record)
        print("written:", path, numbers, sep="\n  ")
    return not failures(report)


def bridge(options: Options) -> bool:
    """A GIF of the policies learnt on Bridge: both orders of crossing, as the seeds chose them.

    Seeds are taken in turn, run if they are missing, until both orders have been seen.
    """
    from inspo.evaluation.bridge_pictures import episode_png, episodes_gif
    from inspo.evaluation.bridge_play import one_of_each_mode

    quality = (options.qualities or ["optimal"])[0]
    comparison = paper_comparison("table3", options)
    known = [data.overrides["quality"] for data in comparison.datasets]
    if quality not in known:
        raise ConfigError(f"--qualities: Bridge has {', '.join(known)}; found '{quality}'")
    name = (choose_algorithms(options.algorithms) if options.algorithms else ["inspo"])[0]
    cells = changed(cells_of(comparison), options.changes)
    folder = options.results / "runs" / "paper"
    shown: dict[int, tuple[str, dict[str, Any]]] = {}  # who crosses first -> title, episode
    record: dict[str, Any] = {}
    for seed in comparison.seeds:
        cell = cells[f"bridge_{quality}", name, seed]
        report = run([cell], options, folder, "bridge")
        if failures(report):
            return False
        result = read_result(folder, cell)
        seen = one_of_each_mode(result)
        orders = [{k: e[k] for k in ("first", "share", "played", "return")} for e in seen]
        record[cell.id] = provenance(result) | {"orders_of_crossing": orders}
        for episode in seen:
            words = f"agent {episode['first'] + 1} first, return {episode['return']:.2f}"
            print(f"seed {seed}: {words}, {episode['share']:.0%} of {episode['played']} episodes")
            if episode["share"] >= COMMON:
                shown.setdefault(episode["first"], (f"seed {seed}: {words}", episode))
        if len(shown) == 2:
            break
    if not shown:
        raise UserError(
            f"{name} on Bridge {quality}: no seed crosses in {COMMON:.0%} of its episodes"
        )
    titles, episodes = zip(*shown.values())
    states, actions = ([e[k] for e in episodes] for k in ("states", "actions"))
    stem = options.results / "paper" / f"bridge_{quality}_{name}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    episodes_gif(f"{stem}.gif", states, actions, titles)
    episode_png(f"{stem}.png", states[0], actions[0], title=f"{display(name)}, {titles[0]}")
    numbers = write_json(f"{stem}.json", record)
    print("written:", f"{stem}.gif", f"{stem}.png", numbers, sep="\n  ")
    return True


def everything(options: Options) -> bool:
    """All of the paper's games, then SMAX. Goes on to the next command where runs failed."""
    steps = [paper_table(name) for name in ("table1", "table2", "table3")]
    smax = starcraft_table(4, always_on="smax")
    return all([step(options) for step in (*steps, figure3, figure5, paths, bridge, smax)])


# --------------------------------------------------------------------------------------------------
# What the commands share


def run(
    cells: Sequence[Cell],
    options: Options,
    folder: Path,
    title: str,
    on_finished: Callable[[Cell, Result], None] | None = None,
) -> GridReport:
    launcher = make_launcher(options.backend, options.jobs, options.address, options.gpus)
    try:
        return run_grid(cells, launcher, folder, on_finished, title=title)
    finally:
        launcher.close()


def failures(report: GridReport) -> bool:
    """Say once more, at the end, what failed; whether anything did."""
    for failure in report.failed.values():
        print(f"failed: {failure.cell.id}, see {failure.log}", file=sys.stderr)
    return bool(report.failed)


def changed(cells: Mapping[Any, Cell], changes: Mapping[str, Any]) -> dict[Any, Cell]:
    """The cells with the keys of `--with` set: in each cell that has the key.

    ConfigError for a key that no cell has, and for one that tells the cells apart.
    """
    result = dict(cells)
    for key, value in changes.items():
        if key in TAKEN:
            option = TAKEN[key] if " " in TAKEN[key] else f"--{TAKEN[key].lstrip('-')}"
            raise ConfigError(f"--with: '{key}' does not belong there; it is said by {option}")
        having = [name for name, cell in cells.items() if has(cell.config().values, key)]
        if not having:
            raise ConfigError(f"--with: no run of this command has the key '{key}'")
        for name in having:
            result[name] = replace(result[name], overrides={**result[name].overrides, key: value})
    return result


def display(algorithm: str) -> str:
    """An algorithm's name as papers write it."""
    return starcraft.label(algorithm, algorithm)


def choose_algorithms(asked: Sequence[str] | None, known: Iterable[str] = ()) -> list[str]:
    """The asked ones, checked; else all registered ones that the paper compares, in its order.

    known: names of rows that are no algorithm's (`control`), which may be asked for as well.
    """
    registered = names("algs", CONFIG_DIR)
    if asked is None:
        return [name for name in paper.NAMES if name in registered]
    offline = [name for name in registered if is_offline(name)]
    for name in asked:
        if name in registered and name not in offline:
            raise ConfigError(f"--algs: {name} learns online; these tables compare offline ones")
        if name not in (everyone := [*offline, *(k for k in known if k not in offline)]):
            raise ConfigError(
                f"--algs: unknown algorithm '{name}'.{nearest(name, everyone)} "
                f"Known: {', '.join(everyone)}"
            )
    return list(dict.fromkeys(asked))


# --------------------------------------------------------------------------------------------------
# The command line

COMMANDS: dict[str, tuple[Callable[[Options], bool], str]] = {
    "main_job": (main_job, "InSPO and BC on SMAX 2s3z medium, one seed; ./run.sh does this"),
    "table1": (paper_table("table1"), "XOR (a), (b), (c), 5 seeds"),
    "table2": (paper_table("table2"), "M-NE balanced, imbalanced, 5 seeds"),
    "table3": (paper_table("table3"), "Bridge optimal, mixed, 5 seeds"),
    "table4": (starcraft_table(4), "StarCraft II, all offline algorithms, 5 seeds; SMAX: 3"),
    "table5": (starcraft_table(5), "InSPO with fixed α and with tuned α, there"),
    "table6": (starcraft_table(6), "InSPO by the order of the agents, there"),
    "table7": (table7, "training time of CFCQL and InSPO, there"),
    "smax": (starcraft_table(4, always_on="smax"), "the same as table4 --on smax"),
    "figure3": (figure3, "the final joint policies on XOR (b), all methods"),
    "figure5": (figure5, "the ablations: without entropy, without sequential updates"),
    "paths": (paths, "pictures: the joint policy over training, closed form and network"),
    "bridge": (bridge, "pictures: a GIF of the policy learnt on Bridge, both orders of crossing"),
    "all": (everything, "tables 1 to 3, figures 3, 5, paths, bridge, and smax at the end"),
}

EPILOG = """\
what they write (under results/, or --results DIR):
  main_job   main_job/learning_curve.png, main_job/table.json
  table1 to table3, figure3, figure5   paper/NAME.md .csv .json .png
  table4 to table7            sc2/NAME.md .csv .json .png
    with --on smax            smax/MAP.md .csv .json .png (table4), smax/NAME.md ... (the others)
  paths, bridge     paper/paths.png .json, paper/bridge_QUALITY_ALG.gif .png .json
  runs       runs/{smax,sc2,paper}: a folder each with log.txt, Sacred's record, checkpoints

Every command goes on where it was stopped: what is finished is not run again, what was
interrupted resumes from its newest checkpoint, what failed is tried again. Tables are rewritten
after every run and name what is missing. A run that a table holds already stays in it until the
same run is finished anew; --fill runs only those that it lacks. Ctrl-C saves and leaves.

table4 to table7 are the paper's on StarCraft II: they need the game (docs/starcraft.md), fetch
CFCQL's data where they are missing, and stand beside the paper's values. With --on smax they are
made on SMAX, which is another simulator: tables of their own, without the paper's values.
Table 4's cells are those of sweeps/sc2.yaml and sweeps/smax.yaml; `src/sweep.py` runs the same.

examples:
  python src/reproduce.py table1 --jobs 2
  python src/reproduce.py table3 --algs inspo --seeds 1 --results /tmp/try   one seed alone
  python src/reproduce.py smax --qualities medium mixed_90_10 --algs inspo bc control
  python src/reproduce.py table4 --maps 5m_vs_6m --algs inspo cfcql bc --seeds 2
  python src/reproduce.py table5 --on smax --qualities mixed
  python src/reproduce.py table7 --on smax --jobs 1
  python src/reproduce.py table4 --backend ray --address auto
  python src/reproduce.py smax --maps 3s_vs_5z --fill
  python src/reproduce.py table2 --results /tmp/try --with t_max=20000     a quick look

exit status: 0; 1 if runs failed; 2 for an error in what was asked; 130, 143 if stopped
"""

# The options that are not for every command.
OWN_OPTIONS = {
    "qualities": ("main_job", "bridge", "smax", "table4", "table5", "table6"),
    "maps": ("smax", "table4", "table5", "table6", "table7"),
    "on": ("table4", "table5", "table6", "table7"),
    "fill": ("table1", "table2", "table3", "table4", "table5", "table6", "smax", "figure3"),
}


def parse(argv: Sequence[str]) -> tuple[Callable[[Options], bool], Options]:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {words}" for name, (_, words) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description=f"Run what is missing of a table or figure, then write it.\n\n"
        f"commands:\n{listing}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see above")
    parser.add_argument(
        "--algs", nargs="+", metavar="ALG", help="run these alone (default: all registered)"
    )
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="seeds 0 to N - 1 (default: 5; SMAX: 3)"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N",
        help="runs at a time (default: 2; with --backend ray: the cluster's CPUs)",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, metavar="DIR", default=PROJECT_ROOT / "results",
        help="where runs and tables go (default: results/)",
    )  # fmt: skip
    parser.add_argument(
        "--qualities", nargs="+", metavar="QUALITY",
        help=f"these alone; for {', '.join(OWN_OPTIONS['qualities'])}",
    )  # fmt: skip
    parser.add_argument(
        "--maps",
        nargs="+",
        metavar="MAP",
        help=f"these alone; for {', '.join(OWN_OPTIONS['maps'])}",
    )
    parser.add_argument(
        "--on", metavar="|".join(starcraft.SIMULATORS),
        help="table4 to table7: StarCraft II itself (sc2, default), or SMAX",
    )  # fmt: skip
    parser.add_argument(
        "--fill", action="store_true",
        help="leave out the runs that the table's file in the results folder holds already (from "
        "a checkout, or another machine), and run the others; for "
        f"{', '.join(OWN_OPTIONS['fill'])}",
    )  # fmt: skip
    parser.add_argument(
        "--with", nargs="+", metavar="KEY=VALUE", dest="changes", default=[],
        help="change keys of every run that has them; use another --results with it",
    )  # fmt: skip
    parser.add_argument(
        "--backend", default="local", metavar="|".join(BACKENDS),
        help="where runs go: this machine, or a Ray cluster (src/sweep.py --help says how)",
    )  # fmt: skip
    parser.add_argument("--address", metavar="A", help="ray: the cluster to run on")
    parser.add_argument(
        "--gpus", type=float, metavar="G", default=0.0, help="ray: a run's share of a GPU"
    )
    given = parser.parse_args(argv)
    changes = {}
    for word in given.changes:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"--with: '{word}' is not of the form key=value")
        changes[key] = parse_value(text)
    for option, commands in OWN_OPTIONS.items():
        if getattr(given, option) and given.command not in commands:
            raise ConfigError(f"--{option} belongs to {', '.join(commands)}, not {given.command}")
    if given.algs and given.command in ("figure5", "paths", "all", "table5", "table6", "table7"):
        raise ConfigError(f"--algs: {given.command} has its own algorithms")
    check_options(given.backend, given.jobs, given.address, given.gpus)
    return COMMANDS[given.command][0], Options(
        algorithms=given.algs,
        seeds=given.seeds,
        jobs=given.jobs,
        results=expand_user(given.results, "--results").resolve(),
        qualities=given.qualities,
        changes=changes,
        on=given.on or "sc2",
        maps=given.maps,
        backend=given.backend,
        address=given.address,
        gpus=given.gpus,
        fill=given.fill,
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0; 1 if runs failed; 2: the user's error; 130, 143: stopped."""

    def run_command() -> int:
        command, options = parse(argv)
        return 0 if command(options) else 1

    return exit_status(run_command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
