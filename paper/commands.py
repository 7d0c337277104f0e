"""The commands of `src/reproduce.py`: what each makes, and which options it takes."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

from inspo.utils.errors import ConfigError
from paper.options import Options

# name -> the module whose `reproduce(options)` makes it, its line in --help
COMMANDS = {
    "main_job": ("main_job", "InSPO and BC on SMAX 2s3z medium, one seed; ./run.sh does this"),
    "table1": ("tables", "XOR (a), (b), (c), 5 seeds"),
    "table2": ("tables", "M-NE balanced, imbalanced, 5 seeds"),
    "table3": ("tables", "Bridge optimal, mixed, 5 seeds"),
    "table4": ("starcraft", "StarCraft II, all offline algorithms, 5 seeds; SMAX: 3"),
    "table5": ("starcraft", "InSPO with fixed α and with tuned α, there"),
    "table6": ("starcraft", "InSPO by the order of the agents, there"),
    "table7": ("timing", "training time of CFCQL and InSPO, there"),
    "smax": ("starcraft", "the same as table4 --on smax"),
    "figure3": ("figure3", "the final joint policies on XOR (b), all methods"),
    "figure5": ("figure5", "the ablations: without entropy, without sequential updates"),
    "beyond_two": (
        "beyond_two",
        "InSPO's variants beyond two agents (ours), as follows",
    ),
    "beyond_two_games": ("beyond_two", "matrix games of 2 to 8 agents, closed form and networks"),
    "beyond_two_bridge": ("beyond_two", "Bridge with 3 and 4 agents"),
    "beyond_two_battles": ("beyond_two", "SMAX 2s3z, medium and mixed_90_10"),
    "conventions": ("conventions", "data of teams that clash (ours): simple spread, two kitchens"),
    "online": ("online", "MAPPO and QMIX with and without the head start of an offline run"),
    "copies": ("copies", "what copies of episodes do, on a file of SMAX 2s3z made so on purpose"),
    "selection": ("selection_study", "how good estimates from data are at choosing policies"),
    "paths": ("paths", "pictures: the joint policy over training, closed form and network"),
    "bridge": (
        "bridge",
        "pictures: a GIF of the policy learnt on Bridge, both orders of crossing",
    ),
    "all": ("commands", "tables 1 to 3, figures 3, 5, paths, bridge, and smax at the end"),
}
ALL = ("table1", "table2", "table3", "figure3", "figure5", "paths", "bridge", "smax")
# The options that are not for every command.
OWN_OPTIONS = {
    "qualities": ("main_job", "bridge", "smax", "table4", "table5", "table6"),
    "maps": (
        "smax",
        "online",
        "copies",
        "selection",
        "table4",
        "table5",
        "table6",
        "table7",
        "conventions",
    ),
    "on": ("table4", "table5", "table6", "table7"),
    "fill": (
        "table1",
        "table2",
        "table3",
        "table4",
        "table5",
        "table6",
        "smax",
        "figure3",
        "figure5",
        "beyond_two",
        "beyond_two_games",
        "beyond_two_bridge",
        "beyond_two_battles",
        "conventions",
    ),
}
WITH_OWN_ALGORITHMS = (
    "online",
    "copies",
    "selection",
    "figure5",
    "paths",
    "all",
    "table5",
    "table6",
    "table7",
)


def run_command(options: Options) -> bool:
    """Run what is missing of a table or figure, then write it; whether nothing failed."""
    # Imported here: --help need not wait for pandas and the like.
    return import_module(f"paper.{COMMANDS[options.command][0]}").reproduce(options)


def reproduce(options: Options) -> bool:
    """The command `all`: it goes on to the next one where runs failed."""
    return all([run_command(replace(options, command=name)) for name in ALL])


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
  online, copies    {smax,bridge}/online_MAP.png .json, {smax,bridge}/duplicates_MAP.json
  conventions       paper/conventions.md .csv .json .png, paper/conventions_seeds.md .json
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
