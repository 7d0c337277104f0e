"""The plugin for EPyMARL: `python src/plugin.py install|status|remove PATH`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo import __version__
from inspo.epymarl import checkout
from inspo.epymarl.configs import DEFAULT, chosen, configs
from inspo.utils.command_line import Parser
from inspo.utils.config import offline_algorithms
from inspo.utils.interrupts import exit_status

DESCRIPTION = """\
Makes our offline learners available in an EPyMARL checkout (uoe-agents/epymarl, or a fork of it)
whose Python has the package inspo (`pip install` of this project):

  src/config/algs/       inspo.yaml, inspo_matrix.yaml, ...: settings, per environment
  a line at the end of __init__.py in src/learners, src/controllers and src/runners

Then, in the checkout:

  python src/main.py --config=inspo --env-config=sc2 with env_args.map_name=2s3z \\
      env_args.state_last_action=True dataset.path=PATH/2s3z_medium.h5
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0; 2: the user's error; 130, 143: stopped)."""
    options = parse(argv)
    return exit_status(lambda: run(options), "the checkout is as it was")


def run(options: argparse.Namespace) -> int:
    root = options.path
    before = checkout.read_manifest(root)
    present = [name for name in offline_algorithms() if f"src/config/algs/{name}.yaml" in before]
    if options.command == "install":
        algorithms = chosen(options.algs) if options.algs else present or DEFAULT
        changed = checkout.install(root, algorithms, options.python, options.force)
        lines = changed or ["nothing to do"]
        names = ", ".join(name for alg in algorithms for name in configs(alg))
        lines.append("Now, there: python src/main.py --config=CONFIG ... with dataset.path=...")
        lines.append(f"CONFIG: {names.replace('.yaml', '')}")
        print(f"{root}: {', '.join(algorithms)} of inspo {__version__}", *lines, sep="\n  ")
    elif options.command == "remove":
        changed = checkout.remove(root, options.force)
        print(f"{root}: taken out ({len(changed)} files)")
    elif not before:
        print(f"{root}: the plugin is not there")
    else:
        lines = checkout.edited(root, before)
        if before != checkout.hashes(checkout.wanted(present)):
            lines.append(
                f"inspo {__version__} would write other files: `install` brings it up to date"
            )
        print(f"{root}: {', '.join(present)}", *lines, sep="\n  ")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        description=DESCRIPTION,
        epilog="docs/epymarl.md: what trains how, and what was tried.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("install", "put the plugin there, or bring it up to date; a second time changes nothing"),
        ("status", "which algorithms are there, and what was edited"),
        ("remove", "take out exactly what was put there"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", type=Path, metavar="PATH", help="the checkout's folder")
        if name != "status":
            command.add_argument("--force", action="store_true", help="in spite of edited files")
        if name == "install":
            known = f"all, or names with commas between them ({', '.join(offline_algorithms())})"
            command.add_argument("--algs", metavar="NAMES", help=f"{known}; default: "
                                 f"those that are there, or {', '.join(DEFAULT)}")  # fmt: skip
            command.add_argument("--python", default=sys.executable,
                                 help="what runs the checkout; default: %(default)s")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
