"""The command line of a run: its grammar, its values, and what `--help` prints."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspo.utils.errors import ConfigError, nearest
from inspo.utils.keys import CONSTANTS
from inspo.utils.paths import CONFIG_DIR, commands_here

DEFAULT_ALGORITHM = "inspo"
DEFAULT_ENVIRONMENT = "smax_offline"
COMMANDS = ("run", "print_config", "help")
# Options of Sacred's that name a key here, and what to do in place of the others.
SACRED_KEYS = {
    "--name": "name", "-n": "name", "--comment": "label", "-c": "label",
    "--file_storage": "local_results_path", "-F": "local_results_path",
}  # fmt: skip
SACRED_OTHERS = {
    ("-l", "--loglevel"): "the log has one level; use_progress_bar=False leaves out the bar",
    ("-m", "--mongo_db", "-s", "--sql", "-t", "--tiny_db", "-S", "--s3"): "records are files, "
    "below local_results_path=DIR; use_wandb=True sends the numbers to Weights & Biases too",
    ("-f", "--force"): "there is nothing to force, since an unknown key is an error always",
    ("-p", "--print-config", "--print_config"): "print_config is a word: print_config --config=ALG",
    ("-u", "--unobserved"): "every run is recorded; local_results_path=DIR says where",
    ("-q", "--queue"): "src/sweep.py runs many, one after the other or beside each other",
    ("-d", "--debug", "-D", "--pdb"): "python -m pdb src/main.py starts the debugger",
    ("-b", "--beat-interval", "-C", "--capture", "-P", "--priority", "-e", "--enforce_clean", "-i",
     "--id"): "leave it out",
}  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """The words of the command line. `overrides` are (dotted key, text) in the order given."""

    command: str = "run"
    algorithm: str = DEFAULT_ALGORITHM
    environment: str = DEFAULT_ENVIRONMENT
    overrides: tuple[tuple[str, str], ...] = ()


def parse_arguments(argv: Iterable[str]) -> Arguments:
    """Split the command line (without the program's name) into its parts."""
    words = list(argv)
    if {"-h", "--help"} & set(words) or "help" in _before_with(words):
        return Arguments(command="help")
    commands: list[str] = []
    overrides: list[tuple[str, str]] = []
    chosen: dict[str, str] = {}
    after_with = False
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag in ("--config", "--env-config") or flag in SACRED_KEYS:
            if not equals and words and not words[0].startswith("--") and words[0] != "with":
                value = words.pop(0)
            if not value:
                raise ConfigError(f"{flag} needs a name: {flag}=NAME")
            if chosen.setdefault(flag, value) != value:
                raise ConfigError(f"{flag} is given twice: {chosen[flag]} and {value}")
            if flag in SACRED_KEYS:
                overrides.append((SACRED_KEYS[flag], value))
        elif word == "with":
            after_with = True
        elif word in COMMANDS and not commands:
            commands.append(word)
        elif after_with and not word.startswith("-"):
            overrides.append(_split_override(word))
        else:
            raise ConfigError(_unexpected(word))
    return Arguments(
        command=(commands or ["run"])[0],
        algorithm=chosen.get("--config", DEFAULT_ALGORITHM),
        environment=chosen.get("--env-config", DEFAULT_ENVIRONMENT),
        overrides=tuple(overrides),
    )


def _before_with(words: list[str]) -> list[str]:
    return words[: words.index("with")] if "with" in words else words


def _unexpected(word: str) -> str:
    if word.startswith("-"):
        flag = word.partition("=")[0]
        for flags, answer in SACRED_OTHERS.items():
            if flag in flags:
                return f"{flag} is an option of Sacred's that is none here: {answer}"
        hint = nearest(flag, ["--config", "--env-config", "--help"])
        return f"unknown option {flag}.{hint} (--help lists what there is)"
    if "=" in word:
        return f"'{word}' stands outside of 'with'. Write: with {word}"
    hint = nearest(word, [*COMMANDS, "with"])
    return f"unexpected word '{word}'.{hint} (--help shows how to write the command line)"


def _split_override(item: str) -> tuple[str, str]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{item}' after 'with' is not of the form key=value")
    return key.strip(), text


def parse_value(text: str) -> Any:
    """A Python literal, else a YAML word (true, null, ..), else the text itself.

    >>> parse_value("1e6"), parse_value("true"), parse_value("2s3z"), parse_value("[1, 2]")
    (1000000.0, True, '2s3z', [1, 2])
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return CONSTANTS.get(text.strip().lower(), text)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | str | list | dict | None) else text


# --------------------------------------------------------------------------------------------------
# Help


class Parser(argparse.ArgumentParser):
    """The parser of a tool. Its help keeps its lines, and names the commands as typed here."""

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def format_help(self) -> str:
        return commands_here(super().format_help())


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def positive(text: str) -> int:
    """The type of an option that is a number of things, at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def names(kind: str, config_dir: Path = CONFIG_DIR) -> list[str]:
    """The algorithms (`algs`) or environments (`envs`) that have a file."""
    return sorted(path.stem for path in (config_dir / kind).glob("*.yaml"))


def one_liner(path: Path) -> str:
    """The first comment of a YAML file: what it is, in one line."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("#") and line.strip("# \n"):
                return line.strip("# \n")
            if line.strip() and not line.startswith("#"):
                break
    return ""


def help_text(config_dir: Path = CONFIG_DIR) -> str:
    """What `--help` prints."""

    def listing(kind: str) -> str:
        found = names(kind, config_dir)
        width = max(map(len, found), default=0)
        lines = [
            f"  {name:<{width}}  {one_liner(config_dir / kind / f'{name}.yaml')}".rstrip()
            for name in found
        ]
        return "\n".join(lines) or "  none"

    return commands_here(HELP).format(
        algorithm=DEFAULT_ALGORITHM,
        environment=DEFAULT_ENVIRONMENT,
        algorithms=listing("algs"),
        environments=listing("envs"),
    )


HELP = """\
Offline multi-agent reinforcement learning: collect data, train on it, test.

usage: ./run.sh [print_config] [--config=ALG] [--env-config=ENV] [with key=value ...]
       (python src/main.py ... in an environment of your own)

  --config=ALG        the algorithm, a file of src/config/algs/     (default: {algorithm})
  --env-config=ENV    the environment, a file of src/config/envs/   (default: {environment})
  with key=value ...  override keys, nested ones with a dot: with batch_size=64 dataset.path=my.h5
  print_config        print the configuration that would run, and stop
  -F DIR, -n NAME, -c WORD   as Sacred's: local_results_path=DIR, name=NAME, label=WORD
  --help              this text

examples:
  ./run.sh                                                    the main job: train, test, compare
  ./run.sh --config=inspo with map_name=2s3z quality=medium seed=1
  ./run.sh --config=bc with map_name=2s3z dataset.path=path/to/data.h5
  ./run.sh with resume=results/models/RUN                     go on after an interruption
  ./run.sh with evaluate=True checkpoint_path=results/models/RUN   test a saved policy
  ./run.sh print_config --config=bc                           every key of a run, and its value

algorithms:
{algorithms}

environments:
{environments}

main keys (all of them, with comments: src/config/default.yaml and the files above):
  map_name            the map (the same as env_args.map_name)
  quality             which dataset of the map: datasets/ENV/MAP_QUALITY.h5
  dataset.path        a dataset file of your own instead
  seed                one number fixes a run; null draws one and records it
  t_max, batch_size   how long to train, and on how many episodes at a time
  test_nepisode       episodes of a test; 0 trains offline with no simulator at all
  use_cuda            True: the GPU, if there is one
  use_presets         False: leave out what src/config/presets/ sets for this map and quality
  checkpoint_path, load_step, resume, evaluate
                      saved runs: a run's model folder, and the step in it (0: the last)

results:
  results/sacred/ALG/MAP/N/   configuration, metrics and log of run number N
  results/models/RUN/STEP/    checkpoints
  results/tb_logs/RUN/        TensorBoard, with use_tensorboard=True
"""
