"""Tables and figures by command: `python src/reproduce.py COMMAND`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a file of a checkout: src/ is the package inspo, paper/ lies beside it
    sys.path[:1] = [str(ROOT / "package"), str(ROOT)]

from inspo.experiments.pool import BACKENDS, check_options
from inspo.utils.config import expand_user
from inspo.utils.interrupts import exit_status
from paper.commands import COMMANDS, EPILOG, OWN_OPTIONS, check_belongs, run_command
from paper.options import Options, read_changes


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def make_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    own = {option: ", ".join(commands) for option, commands in OWN_OPTIONS.items()}
    parser = argparse.ArgumentParser(
        prog="reproduce.py",
        description=f"Run what is missing of a table or figure, then write it.\n\n"
        f"commands:\n{listing}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", choices=COMMANDS, metavar="COMMAND", help="see above")
    add("--algs", nargs="+", metavar="ALG", help="run these alone (default: all registered)")
    add("--seeds", type=positive, metavar="N", help="seeds 0 to N - 1 (default: 5; SMAX: 3)")
    add(
        "--jobs", type=positive, metavar="N",
        help="runs at a time (default: 2; with --backend ray: the cluster's CPUs)",
    )  # fmt: skip
    add(
        "--results", type=Path, metavar="DIR", default=Options.results,
        help="where runs and tables go (default: results/)",
    )  # fmt: skip
    add("--qualities", nargs="+", metavar="QUALITY", help=f"these alone; for {own['qualities']}")
    add("--maps", nargs="+", metavar="MAP", help=f"these alone; for {own['maps']}")
    add(
        "--on", metavar="sc2|smax",
        help="table4 to table7: StarCraft II itself (sc2, default), or SMAX",
    )  # fmt: skip
    add(
        "--fill", action="store_true",
        help="leave out the runs that the table's file in the results folder holds already (from "
        f"a checkout, or another machine), and run the others; for {own['fill']}",
    )  # fmt: skip
    add(
        "--with", nargs="+", metavar="KEY=VALUE", dest="changes", default=[],
        help="change keys of every run that has them; use another --results with it",
    )  # fmt: skip
    add(
        "--backend", default="local", metavar="|".join(BACKENDS),
        help="where runs go: this machine, or a Ray cluster (src/sweep.py --help says how)",
    )  # fmt: skip
    add("--address", metavar="A", help="ray: the cluster to run on")
    add("--gpus", type=float, metavar="G", default=0.0, help="ray: a run's share of a GPU")
    return parser


def parse(argv: Sequence[str]) -> Options:
    given = make_parser().parse_args(argv)
    changes = read_changes(given.changes)
    for option in (*OWN_OPTIONS, "algs"):
        if getattr(given, option):
            check_belongs(given.command, option)
    check_options(given.backend, given.jobs, given.address, given.gpus)
    return Options(
        command=given.command,
        algorithms=given.algs,
        seeds=given.seeds,
        jobs=given.jobs,
        results=expand_user(given.results, "--results").resolve(),
        qualities=given.qualities,
        maps=given.maps,
        on=given.on or Options.on,
        changes=changes,
        backend=given.backend,
        address=given.address,
        gpus=given.gpus,
        fill=given.fill,
    )


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0; 1 if runs failed; 2: the user's error; 130, 143: stopped."""
    return exit_status(lambda: 0 if run_command(parse(argv)) else 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
