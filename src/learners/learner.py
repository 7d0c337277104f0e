"""What every learner has: networks and optimisers that can be moved, saved and put back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.controllers.basic_controller import BasicMAC
from inspo.utils.settings import Settings

# What an optimiser keeps of each parameter.
MOMENTS: dict[type, set[str]] = {
    th.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    th.optim.RMSprop: {"step", "square_avg"},
}


class StatsLogger(Protocol):
    """What learners need of a logger: the harness's, or EPyMARL's behind the plugin."""

    def log_stats(self, stats: Mapping[str, Any], t: int) -> None: ...


class Learner:
    """Subclasses fill `networks` and `optimisers` and write `train`.

    Attributes:
        networks: name -> module; `agent` is the controller's and stands here too.
        optimisers: name -> optimiser.
        updates: number of calls of `train` so far.
        needs_behaviour: whether batches must carry what `offline.behaviour` computes; then
            `start_from(behaviour)` is called once before the first `train`.
        stage: what it trains just now, where that is not everything; for the progress display.
    """

    needs_behaviour = False
    stage = ""

    def __init__(
        self, mac: BasicMAC, scheme: dict[str, Any], logger: StatsLogger, args: Settings
    ) -> None:
        self.args = args
        self.mac = mac
        self.logger = logger
        self.n_agents = args.n_agents
        self.n_actions = args.n_actions
        self.updates = 0
        self.log_t = -args.log_interval - 1  # the first update is logged
        self.networks: dict[str, th.nn.Module] = {"agent": mac.agent}
        self.optimisers: dict[str, th.optim.Optimizer] = {}

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        raise NotImplementedError

    def start_from(self, behaviour: Any) -> None:
        """Take what is needed of an `offline.behaviour.Behaviour`; what batches carry is enough."""

    def log_due(self, t_env: int) -> bool:
        """Whether `log_interval` steps have passed since the last time this was true."""
        if t_env - self.log_t < self.args.log_interval:
            return False
        self.log_t = t_env
        return True

    def cuda(self) -> None:
        for network in self.networks.values():
            network.cuda()

    def state_dict(self) -> dict[str, Any]:
        """All that `train` depends on, in types that a `weights_only` load accepts."""
        return {
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimisers": {name: opt.state_dict() for name, opt in self.optimisers.items()},
            "updates": self.updates,
            "log_t": self.log_t,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
            _require_moments(optimiser, name)
        self.updates, self.log_t = state["updates"], state["log_t"]

    def save_models(self, path: str | Path) -> None:
        """Write `agent.th` (what acting needs) and `learner.th` (what training on needs)."""
        self.mac.save_models(path)
        th.save(self.state_dict(), Path(path) / "learner.th")

    def load_models(self, path: str | Path) -> None:
        # On a GPU, Adam would have to wait for its counts of steps at every update.
        state = th.load(Path(path) / "learner.th", map_location="cpu", weights_only=True)
        self.load_state_dict(state)


def _require_moments(optimiser: th.optim.Optimizer, name: str) -> None:
    """ValueError unless what the optimiser has kept of its steps fits its parameters."""
    expected = MOMENTS.get(type(optimiser))
    for parameter, kept in optimiser.state.items():
        if expected and kept.keys() != expected:
            raise ValueError(f"optimisers.{name}.state: expected {', '.join(sorted(expected))}")
        for key, value in kept.items():
            if key != "step" and value.shape != parameter.shape:
                raise ValueError(f"optimisers.{name}.state: {key} has shape {list(value.shape)}")


def optimise(loss: th.Tensor, optimiser: th.optim.Optimizer, clip: float) -> th.Tensor:
    """One step down `loss`. Returns the norm of the gradient before it was clipped."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = th.nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return norm
