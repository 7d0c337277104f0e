"""The plugin for EPyMARL: `python src/plugin.py install|status|remove PATH`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.epymarl import installation
from inspo.epymarl.configs import DEFAULT, chosen, configs, offline_algorithms
from inspo.main import git_commit
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT

DESCRIPTION = """\
Puts our offline learners into an EPyMARL checkout (uoe-agents/epymarl, or a fork of it):

  src/inspo_plugin/      our files as they are, and what joins them to the checkout
  src/config/algs/       inspo.yaml, inspo_matrix.yaml, ...: settings, per environment
  a line at the end of __init__.py in src/learners, src/controllers and src/runners

Then, in the checkout:

  python src/main.py --config=inspo --env-config=sc2 with env_args.map_name=2s3z \\
      env_args.state_last_action=True dataset.path=PATH/2s3z_medium.h5
"""

EPILOG = """\
The checkout's environment needs, beside what EPyMARL needs: h5py and tqdm (tensorstore for vaults).
Its own algorithms are not touched. docs/epymarl.md: what trains how, and what was tried.
"""


def main(argv: Sequence[str]) -> int:
    """Run a command; returns the exit status (0; 2: the user's error; 130, 143: stopped)."""
    options = parse(argv)
    return exit_status(lambda: options.function(options), "the checkout is as it was")


def run_install(options) -> int:
    algorithms = chosen(options.algs)
    before = installation.read_manifest(options.path)
    outcome = installation.install(
        options.path, algorithms, git_commit(PROJECT_ROOT), force=options.force
    )
    after = installation.read_manifest(options.path)
    names = ", ".join(after.algorithms)
    if outcome == installation.Outcome():
        print(f"{options.path}: nothing to do: {names}, of {_version(after)}")
        return 0
    print(f"{options.path}: {names}, of {_version(after)}")
    if before:
        print(f"  was: {', '.join(before.algorithms)}, of {_version(before)}")
    _print_outcome(outcome, listed=before is not None)
    needs = ", ".join(installation.packages_needed(after.algorithms))
    print(f"Needed in that checkout's environment: {needs}")
    files = [name.removesuffix(".yaml") for alg in after.algorithms for name in configs(alg)]
    print("Now, there: python src/main.py --config=CONFIG --env-config=... with dataset.path=...")
    print(f"CONFIG: {', '.join(files)}")
    return 0


def run_status(options) -> int:
    found = installation.status(options.path)
    if found.installed is None:
        print(f"{options.path}: the plugin is not there")
        return 0
    there = found.installed
    print(f"{options.path}: {', '.join(there.algorithms)}, of {_version(there)}")
    print(f"  {len(there.files)} files, a line in each of {', '.join(there.lines)}")
    for line in found.edited:
        print(f"  {line}")
    newer = "differ from this project's: `install` brings them up to date"
    print(f"  its files {newer if found.pending else 'are what this project installs'}")
    return 0


def run_remove(options) -> int:
    outcome = installation.remove(options.path, force=options.force)
    print(f"{options.path}: taken out")
    _print_outcome(outcome, listed=False)
    return 0


def _version(there: installation.Installed) -> str:
    return f"commit {there.commit}" if there.commit else "an unknown commit"


def _print_outcome(outcome: installation.Outcome, listed: bool) -> None:
    for what, paths in vars(outcome).items():
        if paths:
            print(f"  {len(paths)} files {what}" + (f": {', '.join(paths)}" if listed else ""))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python src/plugin.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", type=Path, metavar="PATH", help="the checkout's folder")
        command.set_defaults(function=function)
        return command

    command = add(
        "install",
        run_install,
        "put the plugin there, or bring it up to date; a second time it changes nothing",
    )
    command.add_argument(
        "--algs",
        metavar="NAMES",
        help=f"all, or names with commas between them ({', '.join(offline_algorithms())}); "
        f"default: those that are there, or {', '.join(DEFAULT)}",
    )
    command.add_argument(
        "--force", action="store_true", help="overwrite files of the plugin that were edited there"
    )
    add("status", run_status, "which algorithms are there, of which commit, and what was edited")
    command = add("remove", run_remove, "take out exactly what was put there")
    command.add_argument(
        "--force", action="store_true", help="delete files of the plugin that were edited there"
    )
    return parser.parse_args(argv)


def command() -> int:
    """The console command."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
