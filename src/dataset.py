"""The tool for datasets: `python src/dataset.py COMMAND ...`. `--help` says more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.utils.command_line import Parser
from inspo.utils.errors import UserError, printable
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT, commands_here

if TYPE_CHECKING:
    from inspo.offline import DatasetMetadata

FORMATS = ("canonical", "alberdice", "vault")
Options = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0; 2: the user's error; 130, 143: stopped)."""
    options = parse(sys.argv[1:] if argv is None else argv)
    return exit_status(lambda: options.function(options), "nothing was left under the final name")


# --------------------------------------------------------------------------------------------------
# The commands


def run_list(options: Options) -> int:
    from inspo.offline.sources import known_datasets, list_text

    _say(commands_here(list_text(known_datasets(options.datasets_dir))))
    return 0


def run_download(options: Options) -> int:
    """The paths that were written go to stdout, all else to stderr."""
    from tqdm import tqdm

    from inspo.offline.download import download

    def log(message: str) -> None:
        tqdm.write(printable(message), file=sys.stderr)

    chosen = _given(options, "from_file", "force")
    try:
        made = download(options.name, options.datasets_dir, log=log, **chosen)
    except KeyboardInterrupt:
        log("stopped; the same command goes on where this one was")
        raise
    print(*made, sep="\n", end="\n" if made else "")
    return 0


def run_convert(options: Options) -> int:
    from inspo.offline.operations import LEFT_OUT, convert, target_format

    name = target_format(options.target, options.to)
    chosen = _given(options, "to", "force", "env", "map_name", "quality", "episode_limit")
    data = convert(options.source, options.target, **chosen)
    print(f"{options.target}: {_facts(data.metadata)} ({name})")
    for note in data.metadata.notes:
        _say(f"  note: {note}")
    if name in LEFT_OUT:
        print(f"  left out, which the format does not store: {LEFT_OUT[name]}")
    return 0


def run_validate(options: Options) -> int:
    from inspo.offline import load_dataset
    from inspo.offline.formats import recognise

    name = recognise(options.path)
    data = load_dataset(options.path, in_memory="auto")
    print(f"{options.path}: valid ({name}), {_facts(data.metadata)}")
    if data.equal.n_copies:
        print(f"  warning: {data.equal}; `dedupe` leaves them out")
    return 0


def run_inspect(options: Options) -> int:
    from inspo.offline import load_dataset
    from inspo.offline.inspection import inspect, to_text

    inspection = inspect(load_dataset(options.path, in_memory="auto"))
    _say(json.dumps(inspection.as_dict(), indent=1) if options.json else to_text(inspection))
    if options.plot:
        from inspo.experiments.dataset_plots import draw_dataset

        draw_dataset(options.plot, inspection)
        print(f"picture: {options.plot}", file=sys.stderr)
    return 0


def run_mix(options: Options) -> int:
    from inspo.offline.operations import mix

    chosen = _given(options, "seed", "quality", "force")
    facts = mix(options.parts, options.target, total=options.episodes, **chosen)
    print(f"{options.target}: {_facts(facts)}")
    return 0


def run_subsample(options: Options) -> int:
    from inspo.offline.operations import Choice, subsample

    choice = Choice(
        episodes=options.episodes,
        returns=tuple(options.returns) if options.returns else None,
        quantiles=tuple(options.quantiles) if options.quantiles else None,
        won=True if options.won else False if options.lost else None,
        seed=options.seed,
    )
    chosen = _given(options, "quality", "force")
    facts = subsample(options.source, options.target, choice, **chosen)
    print(f"{options.target}: {_facts(facts)}")
    return 0


def run_split(options: Options) -> int:
    from inspo.offline.operations import split

    paths = (options.training, options.held_out_file)
    parts = split(
        options.source, *paths, share=options.held_out, **_given(options, "seed", "force")
    )
    for path, facts in zip(paths, parts):
        print(f"{path}: {_facts(facts)}")
    return 0


def run_dedupe(options: Options) -> int:
    from inspo.offline.operations import dedupe

    facts, equal = dedupe(options.source, options.target, force=options.force)
    print(f"{options.source}: {equal}\n{options.target}: {_facts(facts)}")
    return 0


def run_collect(options: Options) -> int:
    """The collection mode of main.py, with its command line."""
    from inspo.main import main as run_main

    if not any(word.startswith("collect.n_episodes=") for word in options.words):
        raise UserError(
            "collect: expected collect.n_episodes=N and checkpoint_path=... after 'with'; "
            "`python src/dataset.py collect --help` has an example."
        )
    return run_main(options.words)


def _say(text: str) -> None:
    """Print what a file says of itself."""
    print(printable(text))


def _given(options: Options, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _facts(meta: DatasetMetadata) -> str:
    won = "" if meta.win_rate is None else f", win rate {meta.win_rate:.3f}"
    cut = f", {meta.n_cut:,} of them cut" if meta.n_cut else ""
    return (
        f"{meta.n_episodes:,} episodes{cut}, {meta.n_steps:,} steps, return "
        f"{meta.return_mean:.3f} ± {meta.return_std:.3f}{won}, hash {meta.content_hash[:16]}"
    )


# --------------------------------------------------------------------------------------------------
# The command line


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line; `function` among them says what to do."""
    if argv[:1] == ["collect"] and not {"-h", "--help"} & set(argv):
        return Options(function=run_collect, words=list(argv[1:]))  # main.py reads them
    return build_parser().parse_args(argv)


def build_parser() -> argparse.ArgumentParser:
    """All commands; each sets `function`, which takes the options and gives the exit status."""
    parser = Parser(
        prog="dataset.py",
        description="Find, fetch, convert, check, describe, mix, choose and split datasets.",
        epilog="COMMAND --help shows its options and examples. docs/datasets.md explains formats.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[Options], int], about: str, examples: str, *shared: str
    ) -> argparse.ArgumentParser:
        lines = "\n".join("  " + line.strip() for line in examples.strip().splitlines())
        one: argparse.ArgumentParser = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"examples:\n{lines}",
        )
        one.set_defaults(function=function)
        for option in shared:
            one.add_argument(option, **SHARED[option])
        return one

    command("list", run_list, "what is here, and how to get the rest", """
        python src/dataset.py list
    """, "--datasets-dir")  # fmt: skip

    one = command("download", run_download, "fetch a published dataset and convert it", """
        python src/dataset.py download cfcql/5m_vs_6m
        python src/dataset.py download cfcql/5m_vs_6m --from-file 5m_vs_6m.zip
        python src/dataset.py download alberdice/bridge --datasets-dir /data/marl

        The same command goes on with a download that was broken off. `list` shows all names.
    """, "--datasets-dir", "--force")  # fmt: skip
    one.add_argument("name", metavar="SOURCE/MAP", help="what to fetch, as `list` shows it")
    one.add_argument(
        "--from-file", type=Path, metavar="FILE",
        help="take this archive, folder or dataset, which was fetched by hand",
    )  # fmt: skip

    one = command("convert", run_convert, "from one format into another", """
        python src/dataset.py convert 5m_vs_6m.vlt/Medium medium.h5 --env sc2 --episode-limit 70
        python src/dataset.py convert bridge_optimal bridge.h5 --env bridge --map-name bridge
        python src/dataset.py convert medium.h5 2s3z.vlt/Medium
        python src/dataset.py convert medium.h5 folder --to alberdice
    """, "--force")  # fmt: skip
    one.add_argument("source", type=Path, metavar="SRC", help="any format, found by its content")
    one.add_argument(
        "target", type=Path, metavar="DST",
        help="NAME.h5: canonical, CFCQL; NAME.vlt, NAME.vlt/NAME: vault; NAME: AlberDICE's folder",
    )  # fmt: skip
    one.add_argument("--to", choices=FORMATS, help="the format to write, whatever the name says")
    for name in ("--env", "--map-name", "--quality"):
        one.add_argument(name, metavar="NAME", help="recorded where the source does not say it")
    one.add_argument(
        "--episode-limit", type=int, metavar="N", help="cut there; a vault does not say its limit"
    )

    command("validate", run_validate, "every rule; exit status 0 or 2", """
        python src/dataset.py validate datasets/smax/2s3z_medium.h5
    """, "path")  # fmt: skip

    one = command("inspect", run_inspect, "what is in a dataset, in numbers", """
        python src/dataset.py inspect datasets/smax/2s3z_medium.h5 --plot medium.png
        python src/dataset.py inspect datasets/bridge/bridge_optimal.h5 --json
    """, "path")  # fmt: skip
    one.add_argument("--json", action="store_true", help="print one JSON object")
    one.add_argument("--plot", type=Path, metavar="PNG", help="draw a picture as well")

    one = command("mix", run_mix, "episodes of several datasets in one", """
        python src/dataset.py mix medium.h5:0.5 expert.h5:0.5 mixed.h5
        python src/dataset.py mix medium.h5:900 expert.h5:100 mixed.h5 --quality mixed_90_10
    """, "--seed", "--force")  # fmt: skip
    one.add_argument(
        "parts", nargs="+", metavar="PATH:AMOUNT", help="a share (0.5) or a number of episodes"
    )
    one.add_argument("target", **SHARED["target"])
    one.add_argument(
        "--episodes", type=int, metavar="N", help="with shares: in all (default: as many as go)"
    )
    one.add_argument("--quality", default="mixed", metavar="NAME", help="the result's (mixed)")

    one = command("subsample", run_subsample, "some of the episodes", """
        python src/dataset.py subsample medium.h5 tenth.h5 --episodes 500 --seed 1
        python src/dataset.py subsample medium.h5 best.h5 --quantiles 0.75 1 --quality best_quarter
        python src/dataset.py subsample medium.h5 low.h5 --returns 0 10 --lost
    """, "source", "target", "--seed", "--force")  # fmt: skip
    one.add_argument("--episodes", type=int, metavar="N", help="so many, drawn at random")
    one.add_argument(
        "--returns", type=float, nargs=2, metavar=("LOW", "HIGH"), help="by return, bounds included"
    )
    one.add_argument(
        "--quantiles", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="by rank of the return: 0 0.25 are the worst quarter",
    )  # fmt: skip
    outcome = one.add_mutually_exclusive_group()
    outcome.add_argument("--won", action="store_true", help="victories alone")
    outcome.add_argument("--lost", action="store_true", help="all but victories")
    one.add_argument("--quality", metavar="NAME", help="the result's (default: as it was)")

    one = command("split", run_split, "a training and a held-out part", """
        python src/dataset.py split medium.h5 train.h5 held_out.h5 --held-out 0.1
    """, "source", "--seed", "--force")  # fmt: skip
    one.add_argument("training", type=Path, metavar="TRAIN.h5")
    one.add_argument("held_out_file", type=Path, metavar="HELD_OUT.h5")
    one.add_argument(
        "--held-out", type=float, default=0.1, metavar="SHARE", help="share held out (0.1)"
    )

    command("dedupe", run_dedupe, "the same data without copies of episodes", """
        python src/dataset.py dedupe medium.h5 distinct.h5
    """, "source", "target", "--force")  # fmt: skip

    one = command("collect", run_collect, "roll out a checkpoint (main.py's mode)", """
        python src/dataset.py collect --config=qmix --env-config=smax with map_name=3m \\
            checkpoint_path=results/models/TOKEN collect.n_episodes=5000 quality=medium
    """)  # fmt: skip
    one.add_argument("words", nargs="*", metavar="WORD", help="the command line of main.py")
    return parser


SHARED: dict[str, dict[str, Any]] = {
    "path": {"type": Path, "metavar": "PATH", "help": "a dataset of any format"},
    "source": {"type": Path, "metavar": "SRC", "help": "a dataset of any format"},
    "target": {"type": Path, "metavar": "OUT.h5"},
    "--force": {
        "action": "store_true",
        "help": "replace what is there, if it is a dataset of ours",
    },
    "--seed": {"type": int, "default": 0, "metavar": "N", "help": "of what is drawn (0)"},
    "--datasets-dir": {
        "type": Path,
        "metavar": "DIR",
        "default": PROJECT_ROOT / "datasets",
        "help": "where datasets stand (default: datasets/ in the repository's root)",
    },
}


if __name__ == "__main__":
    sys.exit(main())
