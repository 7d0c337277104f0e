"""What teams earn whose members belong to two of them: `python src/crossplay.py TEAMS...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.utils.command_line import Parser, positive, text_table
from inspo.utils.config import expand_user
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT

DESCRIPTION = """\
Play every mixture of members of two teams, and write their returns as a matrix.

TEAMS are policies: runs' model folders (results/models/RUN: its last step), folders of single
steps, shipped policies (src/policies/ENV/MAP/NAME), or any folder below which such lie. --scripts
adds the scripted teams of simple spread and Overcooked, whose data are called `conventions`.
"""

EPILOG = """\
In the matrix, row a and column b, agent 0 is of team a and the others of a and b (with two agents,
of b). Teams that earn as much with each other's members as among themselves hold no conventions
that clash. docs/conventions.md says more.

examples:
  python src/crossplay.py --scripts 4 --env overcooked --map coord_ring
  python src/crossplay.py results/models/RUN_A results/models/RUN_B
  python src/crossplay.py src/policies/smax/2s3z/mappo_expert results/models/RUN --policy greedy

exit status: 0; 2 for an error in what was asked or found
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="crossplay.py", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("teams", nargs="*", metavar="TEAMS", help="policies; see above")
    add("--scripts", type=positive, default=0, metavar="K", help="the first K scripted teams too")
    add("--env", metavar="ENV", help="of scripted teams: mpe or overcooked")
    add("--map", metavar="MAP", help="of scripted teams: the map")
    add("--episodes", type=positive, default=128, metavar="N",
        help="of each mixture (default: 128)")  # fmt: skip
    add("--mixtures", type=positive, default=8, metavar="N",
        help="of each pair of teams and each team of agent 0, at most (default: 8)")  # fmt: skip
    add("--policy", choices=("run", "greedy", "sampled"), default="run",
        help="how policies are played (default: as their runs' own tests do)")  # fmt: skip
    add("--seed", type=int, default=0, help="the same seed gives the same numbers (default: 0)")
    add("--out", default=PROJECT_ROOT / "results" / "crossplay", metavar="DIR",
        help="where the files go (default: results/crossplay)")  # fmt: skip
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> list[Path]:
    """Find, play, write; returns the files, the Markdown first."""
    # Only now, so that the help need not wait for torch and matplotlib.
    from inspo.estimation.crossplay import cross_play, task_of
    from inspo.estimation.policies import find_policies
    from inspo.experiments import crossplay as pages
    from inspo.utils.phases import Phase

    out = expand_user(options.out, "--out")
    folders = find_policies([expand_user(path, "TEAMS") for path in options.teams])
    found = cross_play(
        folders, options.scripts, task_of(folders, options.env, options.map), way=options.policy,
        n_episodes=options.episodes, most=options.mixtures, seed=options.seed,
        phase=partial(Phase, bar=True),
    )  # fmt: skip
    header, *rows = pages.cells(found)
    print(text_table(header, rows))
    print(f"\n{pages.verdict(found)}")
    return pages.write(out, found, {"seed": options.seed, "policy": options.policy})


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2: the user's error; 130, 143: stopped."""

    def run_command() -> int:
        paths = measure(parse(argv))
        print("\nwritten:", *paths, sep="\n  ")
        return 0

    return exit_status(run_command)


if __name__ == "__main__":
    sys.exit(main())
