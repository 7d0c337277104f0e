"""The commands of `src/reproduce.py`: what each makes, and which options it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from inspo.utils.errors import ConfigError

from paper.bridge import write_bridge
from paper.figure3 import write_figure3
from paper.figure5 import write_figure5
from paper.main_job import main_job
from paper.options import Options
from paper.paths import write_paths
from paper.starcraft import write_starcraft_table
from paper.tables import write_paper_table
from paper.timing import write_table7

Command = Callable[[Options], bool]  # whether everything is finished


def everything(options: Options) -> bool:
    """All of the paper's games, then SMAX. Goes on to the next command where runs failed."""
    names = ("table1", "table2", "table3", "figure3", "figure5", "paths", "bridge", "smax")
    return all([COMMANDS[name][0](options) for name in names])


# name -> what it does, its line in --help
COMMANDS: dict[str, tuple[Command, str]] = {
    "main_job": (main_job, "InSPO and BC on SMAX 2s3z medium, one seed; ./run.sh does this"),
    "table1": (partial(write_paper_table, "table1"), "XOR (a), (b), (c), 5 seeds"),
    "table2": (partial(write_paper_table, "table2"), "M-NE balanced, imbalanced, 5 seeds"),
    "table3": (partial(write_paper_table, "table3"), "Bridge optimal, mixed, 5 seeds"),
    "table4": (
        partial(write_starcraft_table, 4),
        "StarCraft II, all offline algorithms, 5 seeds; SMAX: 3",
    ),
    "table5": (partial(write_starcraft_table, 5), "InSPO with fixed α and with tuned α, there"),
    "table6": (partial(write_starcraft_table, 6), "InSPO by the order of the agents, there"),
    "table7": (write_table7, "training time of CFCQL and InSPO, there"),
    "smax": (partial(write_starcraft_table, 4, on="smax"), "the same as table4 --on smax"),
    "figure3": (write_figure3, "the final joint policies on XOR (b), all methods"),
    "figure5": (write_figure5, "the ablations: without entropy, without sequential updates"),
    "paths": (write_paths, "pictures: the joint policy over training, closed form and network"),
    "bridge": (
        write_bridge,
        "pictures: a GIF of the policy learnt on Bridge, both orders of crossing",
    ),
    "all": (everything, "tables 1 to 3, figures 3, 5, paths, bridge, and smax at the end"),
}
# The options that are not for every command.
OWN_OPTIONS = {
    "qualities": ("main_job", "bridge", "smax", "table4", "table5", "table6"),
    "maps": ("smax", "table4", "table5", "table6", "table7"),
    "on": ("table4", "table5", "table6", "table7"),
    "fill": ("table1", "table2", "table3", "table4", "table5", "table6", "smax", "figure3"),
}
WITH_OWN_ALGORITHMS = ("figure5", "paths", "all", "table5", "table6", "table7")


def check_belongs(command: str, option: str) -> None:
    """ConfigError for an option that a command does not take."""
    if option == "algs" and command in WITH_OWN_ALGORITHMS:
        raise ConfigError(f"--algs: {command} has its own algorithms")
    commands = OWN_OPTIONS.get(option, (command,))
    if command not in commands:
        raise ConfigError(f"--{option} belongs to {', '.join(commands)}, not {command}")


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
