"""What a run does, and which keys count in it: a key that would be ignored is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inspo.utils.errors import ConfigError
from inspo.utils.nested import get

TRAIN, EVALUATE, COLLECT = "training", "evaluate=True", "collect.n_episodes=N"
# Where a key counts that does not count everywhere.
COUNTS_IN = {
    "resume": (TRAIN,),
    "record": (EVALUATE,),
    "save_replay": (EVALUATE,),
    "collect.path": (COLLECT,),
}


def mode_of(values: Mapping[str, Any]) -> str:
    """What the configuration asks for; ConfigError if it asks for two things."""
    evaluate, collect = get(values, "evaluate"), get(values, "collect.n_episodes")
    if evaluate and collect:
        raise ConfigError(f"{EVALUATE} and collect.n_episodes={collect} exclude each other")
    return EVALUATE if evaluate else COLLECT if collect else TRAIN


def check_mode(values: Mapping[str, Any]) -> None:
    """ConfigError for a key that the run would ignore, or could not act on."""
    mode = mode_of(values)
    for key, modes in COUNTS_IN.items():
        if get(values, key) and mode not in modes:
            raise ConfigError(
                f"{key} counts in {' or '.join(modes)} alone, and this is {mode}. Leave it out"
            )
    checkpoint, resume = get(values, "checkpoint_path"), get(values, "resume")
    if checkpoint and resume:
        raise ConfigError(
            "resume goes on with a run as it was, checkpoint_path starts a new one from its "
            "weights: give one of the two"
        )
    if mode != TRAIN and not checkpoint:
        raise ConfigError(
            f"checkpoint_path is empty: {mode} needs the model folder of a run, "
            "as in `with evaluate=True checkpoint_path=results/models/RUN`"
        )
    if step := get(values, "load_step"):
        _check_step(step, "checkpoint_path" if checkpoint else "resume", checkpoint or resume)
    if mode == EVALUATE and get(values, "test_nepisode") == 0:
        raise ConfigError("test_nepisode: expected at least 1 with evaluate=True, found 0")
    if mode == TRAIN and not get(values, "offline"):
        for key in filter(lambda key: get(values, key), ("dataset.path", "quality")):
            raise ConfigError(
                f"{key}: this environment trains online and reads no data. Use the environment "
                "that ends in _offline, as in --env-config=matrix_offline"
            )


def _check_step(step: int, key: str, path: str | None) -> None:
    if not path:
        raise ConfigError(f"load_step={step} chooses a step of checkpoint_path or resume: give one")
    name = Path(path).name
    if name.isdigit() and int(name) != step:
        raise ConfigError(
            f"{key} names step {name}, and load_step={step} another one. "
            "Name the folder of the run, or leave load_step out"
        )
