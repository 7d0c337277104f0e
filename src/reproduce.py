"""Tables and figures by command: `python src/reproduce.py COMMAND`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a file of a checkout: src/ is the package inspo, paper/ lies beside it
    sys.path[:1] = [str(ROOT / "package"), str(ROOT)]

from inspo.experiments.pool import add_options, check_options, pool_options
from inspo.utils.command_line import Parser, positive
from inspo.utils.config import expand_user
from inspo.utils.interrupts import exit_status
from paper.commands import COMMANDS, EPILOG, OWN_OPTIONS, check_belongs, run_command
from paper.options import Options, read_changes


def make_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    own = {option: ", ".join(commands) for option, commands in OWN_OPTIONS.items()}
    parser = Parser(
        prog="reproduce.py",
        description=f"Run what is missing of a table or figure, then write it.\n\n"
        f"commands:\n{listing}",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("command", choices=COMMANDS, metavar="COMMAND", help="see above")
    add(
        "--algs", nargs="+", metavar="ALG", dest="algorithms",
        help="run these alone (default: all registered)",
    )  # fmt: skip
    add("--seeds", type=positive, metavar="N", help="seeds 0 to N - 1 (default: 5; SMAX: 3)")
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
    add_options(parser)
    return parser


def parse(argv: Sequence[str] | None) -> Options:
    given = {k: v for k, v in vars(make_parser().parse_args(argv)).items() if v is not None}
    for option in OWN_OPTIONS:
        if given.get(option):
            check_belongs(given["command"], option)
    if "algorithms" in given:
        check_belongs(given["command"], "algs")
    given["changes"] = read_changes(given["changes"])
    given["results"] = expand_user(given["results"], "--results").resolve()
    options = Options(**given)
    check_options(*pool_options(options))
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if runs failed; 2: the user's error; 130, 143: stopped."""
    return exit_status(lambda: 0 if run_command(parse(argv)) else 1)


if __name__ == "__main__":
    sys.exit(main())
