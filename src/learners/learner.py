"""What every learner has: networks and optimisers that can be moved, saved and put back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.controllers.basic_controller import BasicMAC
from inspo.learners.targets import TargetSchedule
from inspo.utils.errors import TrainingFailure
from inspo.utils.nested import flatten
from inspo.utils.settings import Settings

# What an optimiser keeps of each parameter.
MOMENTS: dict[type, set[str]] = {
    th.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    th.optim.RMSprop: {"step", "square_avg"},
}
UNCHECKED_STEPS = 500  # at most, on a GPU, where looking at a norm waits for all that was started
LARGE_RATE = 0.1  # of learning: no sensible one is as large


class StatsLogger(Protocol):
    """What learners need of a logger: the harness's, or EPyMARL's behind the plugin."""

    def log_stats(self, stats: Mapping[str, Any], t: int) -> None: ...


class Learner:
    """Subclasses fill `networks` and `optimisers` and write `train`.

    Attributes:
        networks: name -> module; `agent` is the controller's and stands here too.
        optimisers: name -> optimiser.
        updates: number of calls of `train` so far.
        needs_behaviour: what `fits_behaviour` says.
        stage: what it trains just now, where that is not everything; for the progress display.
    """

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
        self.needs_behaviour = self.fits_behaviour(args)
        self.log_t = -args.log_interval - 1  # the first update is logged
        self.networks: dict[str, th.nn.Module] = {"agent": mac.agent}
        self.optimisers: dict[str, th.optim.Optimizer] = {}
        # Names of the optimisers, number of the update, losses and norms of the gradients `[k]`.
        self._unchecked: list[tuple[Sequence[str], int, th.Tensor, th.Tensor]] = []

    def train(self, batch: EpisodeBatch, t_env: int, episode_num: int) -> None:
        raise NotImplementedError

    @classmethod
    def fits_behaviour(cls, args: Settings) -> bool:
        """Whether batches must carry what `offline.behaviour` computes; then
        `start_from(behaviour)` is called once before the first `train`."""
        return False

    def start_from(self, behaviour: Any) -> None:
        """Take what is needed of an `offline.behaviour.Behaviour`; what batches carry is enough."""

    def target_schedule(self, updates: int, transitions: float) -> TargetSchedule | None:
        """How its target networks will have moved after so many updates of `transitions`
        transitions each; None if it has none."""
        return None

    def take_over(self, networks: Mapping[str, Any]) -> list[str]:
        """Begin with those of another algorithm's networks that it has too, beside the agents,
        which are in place. networks: name -> state. Returns the names of those that it took."""
        return []

    def log_due(self, t_env: int) -> bool:
        """Whether `log_interval` steps have passed since the last time this was true."""
        if t_env - self.log_t < self.args.log_interval:
            return False
        self.log_t = t_env
        self.check_steps()
        return True

    def descend(self, name: str, loss: th.Tensor, clip: float) -> th.Tensor:
        """One step of the optimiser `name` down `loss`; the norm of the gradient before clipping.

        TrainingFailure if loss or gradient is not finite: at once on a CPU, on a GPU by the next
        `check_steps`.
        """
        return self.descend_each([name], loss.unsqueeze(0), clip)[0]

    def descend_each(self, names: Sequence[str], losses: th.Tensor, clip: float) -> th.Tensor:
        """`descend` for several at once, losses `[k]`, each of its own optimiser's weights alone;
        the norms `[k]`."""
        norms = optimise(losses, [self.optimisers[name] for name in names], clip)
        self._unchecked.append((names, self.updates + 1, losses.detach(), norms))
        if norms.device.type == "cpu" or len(self._unchecked) == UNCHECKED_STEPS:
            self.check_steps()
        return norms

    def check_steps(self) -> None:
        """TrainingFailure for the first step since the last call whose gradient was not finite."""
        steps, self._unchecked = self._unchecked, []
        if not steps:
            return
        named = [
            (name, update, losses[k]) for n, update, losses, _ in steps for k, name in enumerate(n)
        ]
        norms = th.cat([norms for *_, norms in steps]).tolist()
        for (name, update, loss), norm in zip(named, norms):
            if not math.isfinite(norm):
                groups = [g for opt in self.optimisers.values() for g in opt.param_groups]
                rate = max(group["lr"] for group in groups)  # any one can spoil the others' losses
                raise TrainingFailure(
                    f"update {update}: the step of '{name}' is not finite (loss {loss.item():g}, "
                    f"norm of its gradient {norm:g}), most likely because "
                    + (
                        f"the learning rate of {rate:g} is too large"
                        if rate >= LARGE_RATE
                        else "the rewards, the observations or a coefficient of the loss are too "
                        f"large for 32-bit numbers, or the learning rate of {rate:g} is"
                    )
                )

    def check_finite(self) -> None:
        """TrainingFailure unless all steps and weights are finite. Before anything is saved."""
        self.check_steps()
        for key, value in flatten(self.state_dict()):
            if isinstance(value, th.Tensor) and not value.isfinite().all():
                raise TrainingFailure(
                    f"update {self.updates}: {key} is not finite, most likely because a learning "
                    "rate is too large"
                )

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
            # Rates and the like are the configuration's, never the file's.
            own = {"param_groups": optimiser.state_dict()["param_groups"]}
            optimiser.load_state_dict(state["optimisers"][name] | own)
            _require_moments(optimiser, name)
        self.updates, self.log_t = state["updates"], state["log_t"]

    def save_models(self, path: str | Path) -> None:
        """Write `agent.th` (what acting needs) and `learner.th` (what training on needs)."""
        self.check_finite()
        self.mac.save_models(path)
        th.save(self.state_dict(), Path(path) / "learner.th")

    def load_models(self, path: str | Path) -> None:
        # On a GPU, RMSprop would have to wait for its counts of steps at every update.
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


def adam(parameters: Any, rate: float = 1e-3) -> th.optim.Adam:
    """Adam, whose step is one operation for all of its parameters."""
    return th.optim.Adam(parameters, lr=rate, fused=True)


def optimise(losses: th.Tensor, optimisers: Sequence[th.optim.Optimizer], clip: float) -> th.Tensor:
    """One step of each optimiser down its own loss, `[k]`; the parameters of one are in none of the
    others' losses. Returns the norms of the gradients before they were clipped, `[k]`."""
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    losses.sum().backward()
    of_each = [
        [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        for optimiser in optimisers
    ]
    norms = th.stack(th._foreach_norm([gradient for own in of_each for gradient in own]))
    total = th.stack([own.norm() for own in norms.split([*map(len, of_each)])])
    if clip < math.inf:
        for own, scale in zip(of_each, (clip / (total + 1e-6)).clamp(max=1.0)):
            th._foreach_mul_(own, scale)
    for optimiser in optimisers:
        optimiser.step()
    return total
