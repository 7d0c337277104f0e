"""Where a run stands, and its checkpoints: everything that going on to the same numbers needs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from inspo.utils.checkpoints import (
    Checkpoint,
    Stateful,
    find_checkpoint,
    get_random_states,
    list_steps,
    load_checkpoint,
    naming,
    put_back,
    read_manifest,
    save_checkpoint,
    set_random_states,
)
from inspo.utils.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentFailure,
    TrainingFailure,
    UserError,
)
from inspo.utils.interrupts import GracefulExit, out_of_memory
from inspo.utils.keys import resume_differences, spread_over_t_max
from inspo.utils.logging import Logger
from inspo.utils.settings import Settings


class Trained(Stateful, Protocol):
    def check_finite(self) -> None: ...

    def take_over(self, networks: Mapping[str, Any], /) -> list[str]: ...


BUILT_BY = ("agent", "hidden_dim", "obs_last_action", "obs_agent_id", "standardise")
"""What decides about the weights of the agents' networks, beside the map."""


@dataclass
class Progress:
    """All the counters that a resumed run must find again. Steps are those of `t_env`."""

    t_env: int = 0
    episode: int = 0
    played: int = 0  # episodes played since the last update (online)
    last_test: int | None = None
    last_log: int = 0
    last_save: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # of the tests

    def test_due(self, interval: int) -> bool:
        return self.last_test is None or self.t_env - self.last_test >= interval

    def log_due(self, interval: int) -> bool:
        if self.t_env - self.last_log < interval:
            return False
        self.last_log = self.t_env
        return True


class Pace:
    """Updates per second since the last call, tests and saving included."""

    def __init__(self, updates: int):
        self.updates, self.time = updates, time.monotonic()

    def __call__(self, updates: int) -> float:
        now = time.monotonic()
        rate = (updates - self.updates) / max(now - self.time, 1e-9)
        self.updates, self.time = updates, now
        return rate


class Saver:
    """Writes checkpoints that hold everything, and puts a run back where one was written.

    `agent`, `learner` and `runner` go into every checkpoint; `parts`, which may be large (the
    replay buffer of an online run), into the two newest alone.
    """

    def __init__(
        self,
        args: Settings,
        logger: Logger,
        agent: Stateful,
        learner: Trained,
        progress: Progress,
        runner: Stateful | None,
        parts: Mapping[str, Stateful],
    ):
        self.args, self.logger, self.agent, self.learner = args, logger, agent, learner
        self.progress, self.runner, self.parts = progress, runner, parts
        self.config = args.as_dict()
        self.folder = Path(args.local_results_path) / "models" / args.unique_token

    def save_if_due(self) -> None:
        p = self.progress
        if self.args.save_model and p.t_env - p.last_save >= self.args.save_model_interval:
            self.save()

    def save(self) -> None:
        a, p = self.args, self.progress
        self.learner.check_finite()
        p.last_save = p.t_env
        # Before the checkpoint that refers to it: a kill in between leaves the older pair whole.
        save_checkpoint(
            self.folder / "resume",
            p.t_env,
            {name: part.state_dict() for name, part in self.parts.items()},
            keep_checkpoints=2,
        )
        save_checkpoint(
            self.folder,
            p.t_env,
            {
                "agent.th": self.agent.state_dict(),
                "learner.th": self.learner.state_dict(),
                "run.th": {
                    "progress": vars(p).copy(),
                    "random": get_random_states(),
                    "logger": self.logger.state_dict(),
                    "runner": self.runner.state_dict() if self.runner else None,
                },
            },
            {"alg": a.name, "env": a.env, "map_name": a.map_name, "config": self.config},
            keep_checkpoints=a.keep_checkpoints,
        )

    @contextmanager
    def explaining_failures(self) -> Iterator[None]:
        """What ends the run early says what is saved.

        A run whose environment keeps failing can go on from here; one whose numbers are no longer
        finite saves nothing more, so that the checkpoints of before stand. One that finds no memory
        is saved; of an update that was cut short, what it had changed by then stays.
        """
        try:
            yield
        except TrainingFailure as failure:
            kept = [
                f"the last checkpoint is {self.folder / str(s)}" for s in list_steps(self.folder)
            ]
            raise TrainingFailure(
                f"{failure}. Nothing of it is saved; {(kept or ['there is no checkpoint'])[-1]}"
            ) from failure
        except EnvironmentFailure as failure:
            self.save()
            raise EnvironmentFailure(
                f"{failure}\nSaved step {self.progress.t_env}; go on with resume={self.folder}"
            ) from failure
        except (MemoryError, RuntimeError) as error:
            said = out_of_memory(error)
            if not said:
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what the update needed
            if self.args.device != "cpu":
                torch.cuda.empty_cache()
            self.save()
            raise UserError(
                f"{said}. Saved step {self.progress.t_env}. Make room on {self.args.device}, then "
                f"go on with resume={self.folder}; or start anew with a smaller batch_size, "
                "hidden_dim or critic_hidden_dim"
            ) from None

    def finish(self, stop: GracefulExit) -> None:
        """The last checkpoint, if there is one; raises Interrupted if the run was asked to stop."""
        self.learner.check_finite()
        if self.args.save_model or stop.requested:
            self.save()
        stop.check(f"saved step {self.progress.t_env}; go on with resume={self.folder}")

    def begin(self) -> None:
        """Start where the configuration says: anew, from a checkpoint's weights, or resuming."""
        if self.args.resume:
            self.resume()
        elif self.args.checkpoint_path:
            self.start_from_weights()

    def start_from_weights(self) -> None:
        """A new run from the networks and optimisers of `checkpoint_path` at its step, as PyMARL's.

        Everything else is the new run's: configuration, random numbers, statistics, folder. An
        online run may begin with the networks of another algorithm; then it begins at step 0.
        """
        a, p = self.args, self.progress
        if not a.offline:
            other = read_manifest(find_checkpoint(a.checkpoint_path, a.load_step)).get("alg")
            if other != a.name:
                return self.take_a_head_start()
        only = ["learner.th", "run.th"]
        saved = load_checkpoint(a.checkpoint_path, a.load_step, expect={"alg": a.name}, only=only)
        if saved.step >= a.t_max:
            raise ConfigError(
                f"t_max: expected more than {saved.step}, the step of checkpoint_path from which "
                f"training goes on, found {a.t_max}. To test it, add evaluate=True"
            )
        put_back(self.learner, saved.entry("learner.th"), saved.folder / "learner.th")
        state = saved.entry("run.th")
        with naming(saved.folder / "run.th"):
            p.episode = state["progress"]["episode"]
        p.t_env = p.last_log = p.last_save = saved.step
        self.logger.info(f"training goes on from the weights of {saved.folder}")

    def take_a_head_start(self) -> None:
        """A new run with the agents of another algorithm, and what the learner can use beside them.

        CheckpointError for another environment or map; ConfigError for agents of another kind,
        which names the keys that make them fit.
        """
        a = self.args
        place = {"env": a.env, "map_name": a.map_name}
        saved = load_checkpoint(a.checkpoint_path, a.load_step, expect=place, only=["learner.th"])
        theirs, alg = saved.text.get("config", {}), saved.text.get("alg")
        if theirs.get("agent_output_type") != a.agent_output_type:
            raise ConfigError(
                f"{saved.folder} is of {alg}, whose agents give {theirs.get('agent_output_type')}, "
                f"while those of {a.name} give {a.agent_output_type}. Policies (pi_logits) go on "
                "with mappo, action values (q) with qmix"
            )
        theirs = {"standardise": False} | theirs  # what runs of before November 2026 did
        keys = [f"{key}={theirs.get(key)}" for key in BUILT_BY if theirs.get(key) != a[key]]
        if keys:
            raise ConfigError(
                f"{saved.folder} is of {alg}, whose agents are built otherwise than those of "
                f"{a.name} here: add {' '.join(keys)}"
            )
        networks = saved.entry("learner.th").get("networks", {})
        with naming(saved.folder / "learner.th"):
            self.agent.load_state_dict(networks["agent"])
            taken = ", ".join(["agents", *self.learner.take_over(networks)])
        self.logger.info(
            f"a head start from {saved.folder}, a run of {alg}: {taken}; the rest begins anew"
        )

    def resume(self) -> None:
        """Continue the run whose model folder is `resume`, in that folder."""
        a = self.args
        # To the CPU: what belongs on the device is moved there, and Adam's counts of steps, which
        # on a GPU it would have to wait for at every update, stay.
        saved = load_checkpoint(a.resume, a.load_step, expect={"alg": a.name})
        self._check_config(saved)
        parts = load_checkpoint(
            find_checkpoint(Path(a.resume) / "resume", saved.step), map_location=a.device
        )
        if parts.step != saved.step:
            raise CheckpointError(
                f"{a.resume}: step {saved.step} cannot be resumed from, its buffer was replaced by "
                f"that of step {parts.step}. Use load_step=0, the last step."
            )
        self.folder = Path(a.resume)
        put_back(self.learner, saved.entry("learner.th"), saved.folder / "learner.th")
        for name, part in self.parts.items():
            put_back(part, parts.entry(name), parts.folder / name)
        state = saved.entry("run.th")
        with naming(saved.folder / "run.th"):
            vars(self.progress).update(state["progress"])
            self.logger.load_state_dict(state["logger"])
            if self.runner:
                self.runner.load_state_dict(state["runner"])
            set_random_states(state["random"])
        self.logger.info(f"resumed {self.folder} at step {saved.step}")

    def _check_config(self, saved: Checkpoint) -> None:
        differing = resume_differences(saved.text.get("config", {}), self.config)
        if not differing:
            return
        listed = "; ".join(f"{key} was {old!r} and is {new!r}" for key, old, new in differing)
        advice = "Resume with the command line of that run"
        spread = ", ".join(spread_over_t_max(self.config))
        if spread and [key for key, *_ in differing] == ["t_max"]:
            advice = (
                f"A longer run would be another one from its start, since t_max is the length of "
                f"the schedules of {spread}. {advice}, or start a new run from its weights "
                "(checkpoint_path)"
            )
        raise CheckpointError(
            f"{saved.folder} is of a run with another configuration: {listed}. {advice}."
        )
