"""The command line: `python src/main.py --config=ALG --env-config=ENV with key=value ...`.

Builds the final configuration, then runs it once as a Sacred experiment. `--help` says more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file of a checkout, whose src/ is the package inspo
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "package")

from inspo.utils.command_line import help_text
from inspo.utils.config import Config, load_config, map_label, sacred_folder, to_yaml
from inspo.utils.errors import CheckpointError
from inspo.utils.interrupts import exit_status
from inspo.utils.provenance import record_of
from inspo.utils.quiet import silence_third_parties
from inspo.utils.settings import Settings

if TYPE_CHECKING:
    import logging

    import sacred


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0; 2: the user's error; 130, 143: stopped)."""
    words = sys.argv[1:] if argv is None else argv
    stopped = "stopped by SIGINT before there was anything to save"
    return exit_status(lambda: run_command(words), stopped)


def run_command(argv: Sequence[str]) -> int:
    """Do what the command line says."""
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
    return "\n".join(head) + "\n" + to_yaml(config.values)


def run_experiment(config: Config, argv: Sequence[str]) -> Any:
    """One Sacred run of one configuration; returns what `run.run` returned.

    Torch and Sacred are imported here, so that the help and errors need not wait for them.
    """
    silence_third_parties()
    import torch

    from inspo.utils.devices import choose_device
    from inspo.utils.logging import Logger, add_file, get_console_logger
    from inspo.utils.seeding import draw_seed, seed_everything

    values = dict(config.values)
    if values["seed"] is None:
        values["seed"] = resumed_seed(values) if values["resume"] else draw_seed()
    device, device_note = choose_device(values["use_cuda"])
    facts = {"device": device, "unique_token": unique_token(values)}
    settings = Settings(values).with_facts(**facts)
    experiment = make_experiment(values, sacred_folder(values))
    console = get_console_logger()

    @experiment.main
    def sacred_main(_run: sacred.run.Run) -> Any:
        run_folder = Path(_run.observers[0].dir)
        log_file = add_file(console, run_folder / "cout.txt")
        try:
            logger = Logger(console, bars=settings.use_progress_bar)
            logger.setup_sacred(_run)
            _run.info.update(record_of(config, argv))
            torch.set_num_threads(settings.torch_threads)
            seed_everything(settings.seed)
            if settings.use_tensorboard:
                logger.setup_tb(
                    Path(settings.local_results_path) / "tb_logs" / settings.unique_token
                )
            if settings.use_wandb:
                logger.setup_wandb(settings)
            logger.info(f"{settings.unique_token} on {settings.device}; recorded in {run_folder}")
            if device_note:
                logger.warning(device_note)
            for note in config.notes:
                logger.info(note)
            from inspo.run import run

            return run(settings, logger)
        finally:
            console.removeHandler(log_file)
            log_file.close()
            if log_file.failure:
                _run.observers[0].failures["cout.txt"] = log_file.failure

    result = experiment.run().result
    experiment.observers[0].require_written()
    return result


def make_experiment(values: dict[str, Any], folder: Path) -> sacred.Experiment:
    """A Sacred experiment that records into `folder` and prints nothing of its own."""
    import sacred

    from inspo.utils.sacred_files import RecordObserver

    # No capture: Sacred's would swallow the progress bar. Our log writes cout.txt by itself.
    sacred.SETTINGS["CAPTURE_MODE"] = "no"
    sacred.SETTINGS["DISCOVER_SOURCES"] = "none"
    sacred.SETTINGS["DISCOVER_DEPENDENCIES"] = "none"
    sacred.SETTINGS["CONFIG"]["READ_ONLY_CONFIG"] = False
    sacred.SETTINGS["HOST_INFO"]["INCLUDE_GPU_INFO"] = False  # it would call nvidia-smi
    experiment = sacred.Experiment(values["name"], save_git_info=False)
    experiment.logger = sacred_logger()  # type: ignore[assignment]
    experiment.observers.append(RecordObserver(folder, copy_sources=False))
    experiment.add_config(values)
    return experiment


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


def sacred_logger() -> logging.Logger:
    """Sacred's own messages, warnings alone. That a run failed or stopped is said once, by main."""
    import logging

    from inspo.utils.logging import get_console_logger

    logger = get_console_logger("sacred", logging.WARNING)
    for handler in logger.handlers:
        handler.addFilter(lambda record: not str(record.msg).startswith(("Failed", "Aborted")))
    return logger


def unique_token(values: dict[str, Any]) -> str:
    """The name of a run's folder of models, unique even among runs that start together."""
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")
    return f"{values['name']}_seed{values['seed']}_{map_label(values)}_{time}_{os.getpid()}"


if __name__ == "__main__":
    sys.exit(main())
