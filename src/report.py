"""Finished runs -> one report: `python src/report.py RESULTS... --out DIR`. `--help` says more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.utils.command_line import Parser, positive
from inspo.utils.config import expand_user
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT

EPILOG = """\
RESULTS is any folder below which records of runs lie: results/sacred, results/runs/smax of
reproduce.py, a single cell, several of them together. A cell of the tables is a method on a task
(map and quality); a method is an algorithm, told apart further by the keys of --group-by.

what it writes into DIR:
  report.md                  tables, and everything that is incomplete or unequal, by name
  runs.csv cells.csv         every run and whether it counts; every mean with its interval
  aggregates.csv             interquartile means, profiles, probabilities of improvement
  curves.csv                 the learning curves
  learning_curves.png .pdf   mean over seeds with 95 % bootstrap interval, over updates
                             (one seed: with the 95 % interval of its tests' episodes)
  performance_profiles.png .pdf
  marl_eval.json             the aggregated runs, for marl-eval's tools

what is not averaged:
  runs of one method, task and seed group that differ in a key, the data or the simulator: the
  report says in which, and the --group-by that tells them apart
  runs that are not finished or failed, or whose final test has no number under the metric; cells
  with fewer seeds than others of their task are shown but not compared (--min-seeds says how many
  are enough), and none of one seed is
  methods on one task that were tested differently are shown, but neither compared nor aggregated

examples:
  python src/report.py results/runs/smax --out results/report_smax
  python src/report.py results/runs/smax \\
    --group-by name advantage_weighting global_cql_alpha softmax_temp
  python src/report.py results/runs/paper --metric return_mean --min-seeds 3
  python src/report.py results/sacred other/results/sacred --title "Mine and theirs"

exit status: 0; 2 for an error in what was asked or found
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="report.py",
        description="Tables, figures and files of finished runs: mean ± deviation with Welch's "
        "test, interquartile means, performance profiles, probabilities of improvement.",
        epilog=EPILOG,
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="see below")
    parser.add_argument(
        "--metric", metavar="NAME",
        help="of the final test, as battle_won or test_return_mean (default: win rate, else exact "
        "expected return, else return: the first that all runs have)",
    )  # fmt: skip
    parser.add_argument(
        "--group-by", nargs="+", metavar="KEY", default=["name", "label"],
        help="keys of the configuration that tell methods apart (default: name label)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=PROJECT_ROOT / "results" / "report",
        help="where the files go (default: results/report)",
    )  # fmt: skip
    parser.add_argument("--title", default="Report", help="of the page and the figures")
    parser.add_argument(
        "--min-seeds", type=positive, metavar="N",
        help="so many seeds are enough to compare a cell (default: all that any method has on "
        "its task)",
    )  # fmt: skip
    parser.add_argument(
        "--normalise", choices=("auto", "none", "min-max"), default="auto",
        help="scores of the aggregates: min-max scales each task's between its worst and best "
        "run; auto does so for returns, not for shares (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--reps", type=positive, metavar="N", default=2000,
        help="resamples of the bootstraps (default: 2000)",
    )  # fmt: skip
    parser.add_argument(
        "--digits", type=positive, metavar="N", default=2, help="after the point (default: 2)"
    )
    return parser.parse_args(argv)


def write_report(options: argparse.Namespace) -> list[Path]:
    """Read, sort, compute, write; returns the files, the Markdown first."""
    from inspo.experiments import pages  # it brings matplotlib; the help need not wait for it
    from inspo.experiments.aggregates import aggregate, curves_of
    from inspo.experiments.records import read_records
    from inspo.experiments.selection import select_runs

    records = read_records([expand_user(root, "RESULTS") for root in options.results])
    chosen = options.group_by, options.metric, options.min_seeds, options.digits
    selection = select_runs(records, *chosen)
    aggregates = aggregate(selection, options.normalise, options.reps)
    bands = curves_of(selection, options.reps)
    out = expand_user(options.out, "--out")
    paths = pages.write(out, options.title, selection, aggregates, bands)
    print(pages.main_table(selection), pages.attention(selection), sep="\n\n")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2: the user's error; 130, 143: stopped."""

    def run_command() -> int:
        paths = write_report(parse(argv))
        print("\nwritten:", *paths, sep="\n  ")
        return 0

    return exit_status(run_command)


if __name__ == "__main__":
    sys.exit(main())
