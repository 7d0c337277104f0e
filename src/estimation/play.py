"""Playing policies in their simulator, where there is one: what estimates are compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from inspo.components.episode_batch import build_scheme
from inspo.estimation.policies import Policy
from inspo.offline.collect import acting_settings
from inspo.offline.offline_dataset import DatasetMetadata
from inspo.runners import REGISTRY as runner_REGISTRY
from inspo.utils.config import load_config
from inspo.utils.errors import ConfigError
from inspo.utils.phases import Phase
from inspo.utils.seeding import seed_everything
from inspo.utils.settings import Settings


def game_of(env: str, map_name: str, env_args: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The configuration under which an environment is played; env_args on top of its own."""
    argv = ["--config=bc", f"--env-config={env}", "with", f"map_name={map_name}", f"seed={seed}"]
    values: dict[str, Any] = load_config(argv).values
    values["env_args"] |= env_args
    return values


def play(
    policies: Sequence[Policy],
    facts: DatasetMetadata,
    n_episodes: int,
    seed: int = 0,
    phase: Callable[..., Phase] = Phase,
) -> Iterator[tuple[float, float]]:
    """The mean return of each policy over `n_episodes` played episodes, and its standard error.

    The simulator has the settings under which the data were collected, and every policy starts from
    the same seed. ConfigError if no simulator is known for the data's environment, or if it is of
    other shapes than the data.
    """
    values = game_of(facts.env, facts.map_name, json.loads(facts.env_args or "{}"), seed)
    for policy in policies:
        acting = acting_settings(policy.settings)
        acting |= {"test_greedy": policy.greedy, "test_epsilon": policy.epsilon}
        args = Settings({**values, **acting}, {"device": "cpu"})
        seed_everything(seed)
        runner = runner_REGISTRY[args.runner](args, None)
        try:
            info: dict[str, Any] = runner.get_env_info()
            if info != facts.env_info():
                raise ConfigError(
                    f"the simulator of {facts.env} {facts.map_name} has other numbers than the "
                    f"data: expected {facts.env_info()}, found {info}. Leave out --play"
                )
            runner.setup(build_scheme(info), {"agents": facts.n_agents}, None, policy.mac)
            with phase(f"playing {policy.name}", n_episodes, unit="episode", brief=True) as bar:
                returns = np.array(runner.test(n_episodes, bar.update).returns)
        finally:
            runner.close_env()
        yield float(returns.mean()), float(returns.std() / math.sqrt(len(returns)))
