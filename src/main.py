"""The command line: `python src/main.py --config=ALG --env-config=ENV with key=value ...`.

Builds the final configuration, then runs it once as a Sacred experiment. `--help` says more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.utils.config import Config, help_text, load_config, map_label, sacred_folder
from inspo.utils.config import to_yaml as config_to_yaml
from inspo.utils.errors import CheckpointError, ConfigError
from inspo.utils.interrupts import exit_status
from inspo.utils.paths import PROJECT_ROOT
from inspo.utils.quiet import silence_third_parties

# What the record of a run names with its version.
PACKAGES = ("torch", "numpy", "sacred", "jax", "jaxlib", "jaxmarl", "h5py", "pysc2", "smac")


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status (0; 2: the user's error; 130, 143: stopped)."""
    return exit_status(
        lambda: run_command(argv), "stopped by SIGINT before there was anything to save"
    )


def run_command(argv: list[str]) -> int:
    """What the command line asks for."""
    config = load_config(argv)
    if config.command == "help":
        print(help_text())
    elif config.command == "print_config":
        print(print_config_text(config), end="")
    else:
        run_experiment(config, argv)
    return 0


def print_config_text(config: Config) -> str:
    """The configuration as YAML, what the presets did in comments above it."""
    head = [f"# --config={config.algorithm} --env-config={config.environment}"]
    head += [f"# {note}" for note in config.notes]
    return "\n".join(head) + "\n" + config_to_yaml(config.values)


def run_experiment(config: Config, argv: list[str]) -> Any:
    """One Sacred run of one configuration; returns what `run.run` returned.

    Torch and Sacred are imported here, so that the help and errors need not wait for them.
    """
    silence_third_parties()
    import sacred
    import torch
    from inspo.utils.logging import Logger, add_file, get_console_logger
    from inspo.utils.seeding import draw_seed, seed_everything
    from sacred.observers import FileStorageObserver

    values = dict(config.values)
    if values["seed"] is None:
        values["seed"] = resumed_seed(values) if values["resume"] else draw_seed()
    folder = sacred_folder(values)
    make_results_folder(folder)

    # No capture: Sacred's would swallow the progress bar. Our log writes cout.txt by itself.
    sacred.SETTINGS["CAPTURE_MODE"] = "no"
    sacred.SETTINGS["DISCOVER_SOURCES"] = "none"
    sacred.SETTINGS["DISCOVER_DEPENDENCIES"] = "none"
    sacred.SETTINGS["CONFIG"]["READ_ONLY_CONFIG"] = False
    sacred.SETTINGS["HOST_INFO"]["INCLUDE_GPU_INFO"] = False  # it would call nvidia-smi
    console = get_console_logger()
    experiment = sacred.Experiment(values["name"], save_git_info=False)
    experiment.logger = sacred_logger()
    experiment.observers.append(FileStorageObserver(folder, copy_sources=False))
    experiment.add_config(values)

    @experiment.main
    def sacred_main(_run):
        run_folder = Path(_run.observers[0].dir)
        log_file = add_file(console, run_folder / "cout.txt")
        try:
            logger = Logger(console)
            logger.setup_sacred(_run)
            _run.info.update(record_of(config, argv))
            args = SimpleNamespace(**values)
            args.device = "cuda" if args.use_cuda and torch.cuda.is_available() else "cpu"
            args.unique_token = unique_token(values)
            torch.set_num_threads(args.torch_threads)
            seed_everything(args.seed)
            if args.use_tensorboard:
                logger.setup_tb(Path(args.local_results_path) / "tb_logs" / args.unique_token)
            logger.info(f"{args.unique_token} on {args.device}; recorded in {run_folder}")
            for note in config.notes:
                logger.info(note)
            from inspo.run import run

            return run(args, logger)
        finally:
            console.removeHandler(log_file)
            log_file.close()

    return experiment.run().result


def resumed_seed(values: dict[str, Any]) -> int:
    """The seed of the run that `resume` names, so that its command line need not repeat it."""
    from inspo.utils.checkpoints import find_checkpoint, read_manifest

    folder = find_checkpoint(values["resume"], values["load_step"])
    seed = (read_manifest(folder).get("config") or {}).get("seed")
    if not isinstance(seed, int):
        raise CheckpointError(
            f"resume: {folder} does not say which seed its run had; name the model folder of a "
            "run (results/models/RUN), or give seed=N"
        )
    return seed


def sacred_logger():
    """Sacred's own words, warnings alone. That a run failed or stopped, main says once itself."""
    import logging

    from inspo.utils.logging import get_console_logger

    logger = get_console_logger("sacred", logging.WARNING)
    for handler in logger.handlers:
        handler.addFilter(lambda record: not str(record.msg).startswith(("Failed", "Aborted")))
    return logger


def make_results_folder(folder: Path) -> None:
    """Make the folder, or say now, in a line, that nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise ConfigError(
            f"local_results_path: the folder {folder} cannot be made: {error.strerror}"
        ) from error
    if not writable:
        raise ConfigError(f"local_results_path: no right to write in {folder}")


def unique_token(values: dict[str, Any]) -> str:
    """A name that no other run has: two of the same microsecond differ by their process."""
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")
    return f"{values['name']}_seed{values['seed']}_{map_label(values)}_{time}_{os.getpid()}"


def record_of(config: Config, argv: list[str]) -> dict[str, Any]:
    """What the configuration does not say and a reader of the results will ask."""
    return {
        "command_line": argv,
        "config": config.algorithm,
        "env_config": config.environment,
        "presets": list(config.notes),
        "git_commit": git_commit(PROJECT_ROOT),
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(root: Path) -> str | None:
    """The commit of the checkout, `-dirty` where tracked files differ, those in results/ apart:
    tables rewritten after a run change nothing of the next one. Outside of git, as in the Docker
    image, what the environment says in INSPO_COMMIT, or None."""
    unknown = os.environ.get("INSPO_COMMIT") or None
    status = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results"]
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10
            )
            for words in (["rev-parse", "--verify", "HEAD"], status)
        )
    except (OSError, subprocess.TimeoutExpired):
        return unknown
    if head.returncode or changes.returncode:
        return unknown
    return head.stdout.strip() + ("-dirty" if changes.stdout else "")


def command() -> int:
    """The console command."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
