"""What policies are worth, from data alone: `python src/evaluate.py CHECKPOINTS... --data FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.utils.command_line import Parser, text_table
from inspo.utils.config import expand_user
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT

DESCRIPTION = """\
Estimate what trained policies would earn, and choose one, without a simulator.

CHECKPOINTS are runs' model folders (results/models/RUN: its last step), folders of single steps
(results/models/RUN/10000), shipped policies (src/policies/ENV/MAP/NAME), or any folder below which
such lie. --data is a dataset of their environment and map; it need not be the one that they were
trained on, and a part of the data that none of them has seen is better.
"""

EPILOG = """\
estimators (--estimators; the default is the first two):
  fqe_joint     fitted Q evaluation: the value of joint actions, learnt from the logged steps, for
                the policy's own next actions. The one to choose by.
  fqe_additive  the same, where the value is a sum over agents: less to learn, blind to how the
                agents' actions fit together. Where it differs much from fqe_joint, doubt both.
  fqe_agents    a diagnostic: the mean over agents of what the data's return becomes if one agent
                alone follows the policy. The JSON file has each agent.
  is wis dr     importance sampling, step by step and weighted; weighted doubly robust. Look at the
                effective number of episodes first (JSON, CSV): below 10 they say nothing. The
                JSON file has the curve of wis over the power of the ratio.
  model         on finite games alone: transitions are counted, the policy is solved exactly.
  ratios        AlberDICE's own ratios of occupancies, of its runs alone.
is, wis, dr, ratios fit the data's policy first (minutes, kept in --cache), and with it tell the
share of steps in which the data support what a policy does.

An estimate is of the played return: the undiscounted sum of rewards until the end or the limit of
an episode. Its interval (95 %) comes from resampling episodes, copies of an episode together, and,
for FQE, from three sets of features. It does not hold what the data cannot tell: `agreement` (the
policy's mean probability of the logged joint actions) and `support` say how far a policy leaves
them.

examples:
  python src/evaluate.py results/models/RUN --data datasets/smax/2s3z_medium.h5
  python src/evaluate.py results/runs/smax/2s3z_medium --data datasets/smax/2s3z_medium.h5 \\
    --out results/choice
  python src/evaluate.py src/policies/smax/2s3z --data datasets/smax/2s3z_medium.h5 --play 320
  python src/evaluate.py RUN_A RUN_B --data my.h5 --estimators fqe_joint wis dr --policy sampled

exit status: 0; 2 for an error in what was asked or found
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="evaluate.py", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINTS", help="what to estimate; see above")
    add("--data", required=True, metavar="FILE", help="a dataset of any known format")
    add("--out", default=PROJECT_ROOT / "results" / "estimates", metavar="DIR",
        help="where the files go (default: results/estimates)")  # fmt: skip
    add("--estimators", nargs="+", metavar="NAME", default=["fqe_joint", "fqe_additive"],
        help="see below; `all` is all")  # fmt: skip
    add("--by", metavar="NAME", help="the estimator to rank by (default: the first)")
    add("--policy", choices=("run", "greedy", "sampled"), default="run",
        help="how policies are played (default: as their runs' own tests do)")  # fmt: skip
    add("--epsilon", type=float, default=0.05, metavar="E",
        help="random actions of a greedy policy in is, wis, dr (default: 0.05)")  # fmt: skip
    add("--load-step", type=int, default=0, metavar="N",
        help="of each model folder, the step nearest to N (default: the last)")  # fmt: skip
    add("--every-step", action="store_true", help="all saved steps of each model folder")
    add("--gamma", type=float, default=1.0, help="discount of the return (default: 1)")
    add("--steps", type=int, default=50_000, metavar="N",
        help="logged steps that are used, as whole episodes (default: 50000; 0: all)")  # fmt: skip
    add("--play", type=int, default=0, metavar="N",
        help="also play N episodes of each policy in the simulator, to compare")  # fmt: skip
    add("--seed", type=int, default=0, help="the same seed gives the same numbers (default: 0)")
    add("--cache", default=PROJECT_ROOT / "datasets" / "cache", metavar="DIR",
        help="where fitted behaviour policies are kept (default: datasets/cache)")  # fmt: skip
    return parser.parse_args(argv)


def evaluate(options: argparse.Namespace) -> list[Path]:
    """Find, estimate, write; returns the files, the Markdown first."""
    # Only now, so that the help need not wait for torch and matplotlib.
    from inspo.estimation.estimates import ESTIMATORS, Evaluator, select
    from inspo.estimation.play import play
    from inspo.estimation.policies import find_policies, load_policies
    from inspo.experiments import estimates as pages
    from inspo.offline import load_dataset
    from inspo.utils.phases import Phase

    phase = partial(Phase, bar=True)
    data, out = expand_user(options.data, "--data"), expand_user(options.out, "--out")
    roots = [expand_user(path, "CHECKPOINTS") for path in options.checkpoints]
    folders = find_policies(roots, options.load_step, options.every_step)
    dataset = load_dataset(data, phase=phase)
    facts = dataset.metadata
    policies = load_policies(folders, facts, options.policy)
    chosen = list(ESTIMATORS) if options.estimators == ["all"] else options.estimators
    evaluator = Evaluator(
        dataset, chosen, gamma=options.gamma, epsilon=options.epsilon, max_steps=options.steps,
        seed=options.seed, cache=expand_user(options.cache, "--cache"), phase=phase,
    )  # fmt: skip
    results = []
    with phase("estimating", len(policies), unit="policy") as bar:
        for policy in policies:
            results.append(evaluator.evaluate(policy))
            bar.update(1, policy.name)
    if options.play:
        for result, played in zip(results, play(policies, facts, options.play, phase=phase)):
            result.played = played
    choice = select(results, options.by or chosen[0])
    about = {
        "data": {
            "path": str(data), "hash": facts.content_hash, "env": facts.env,
            "map_name": facts.map_name, "quality": facts.quality, "episodes": facts.n_episodes,
            "return_mean": facts.return_mean, "episodes_used": len(evaluator.data),
            "independent_episodes_used": evaluator.data.n_groups,
        },
        "gamma": options.gamma, "seed": options.seed, "epsilon": options.epsilon,
    }  # fmt: skip
    table = pages.cells(results, choice.order)
    print(text_table(table[0], table[1:]))
    print(f"\n{pages.verdict(results, choice)}")
    print(
        f"the data: mean return {facts.return_mean:.2f}; used {len(evaluator.data)} of "
        f"{facts.n_episodes} episodes, {evaluator.data.n_groups} of them independent"
    )
    for line in pages.list_warnings(results):
        print(f"note: {line}", file=sys.stderr)
    return pages.write(out, results, choice, about)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0; 2: the user's error; 130, 143: stopped."""

    def run_command() -> int:
        paths = evaluate(parse(argv))
        print("\nwritten:", *paths, sep="\n  ")
        return 0

    return exit_status(run_command)


if __name__ == "__main__":
    sys.exit(main())
