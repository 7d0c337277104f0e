"""The behaviour policies of a dataset: fitted once, then evaluated once over all of its rows.

Individual policies mu_i by behaviour cloning (InSPO, Eq. 21) and the autoregressive one of the
other agents mu^{-i}(a^{-i} | s, a^i) (Eq. 22), both early-stopped on held-out episodes, of which
no copy is trained on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.controllers.basic_controller import BasicMAC
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.offline.buffer import OfflineBuffer
from inspo.offline.duplicates import members
from inspo.utils import files
from inspo.utils.errors import TrainingFailure
from inspo.utils.phases import Phase
from inspo.utils.rl_utils import cosine_rate, gather_actions, masked_log_softmax
from inspo.utils.seeding import spawn_seeds
from inspo.utils.settings import Settings

Log = Callable[[str], None]
Check = Callable[[], None]

FORMAT = 1  # part of the cache's key: raise it when the meaning of the files changes
BLOCK = 256  # episodes evaluated at once


@dataclass
class Behaviour:
    """Fitted behaviour policies and what they say of every row of the dataset.

    Attributes:
        agent: weights of the individual policies, for a controller with the same agents.
        others: the autoregressive policy of the other agents; None where the learner needs none.
        log_probs: `[rows, n, A]`, log mu_i over all actions, about -1e10 where unavailable.
        log_prob_others: `[rows, n]`, log mu^{-i}(a^{-i} | s, a^i) of the actions in the data; None
            without `others`.
        report: held-out negative log-likelihoods and updates, for the log.
    """

    agent: dict[str, th.Tensor]
    others: AutoregressivePolicy | None
    log_probs: th.Tensor
    log_prob_others: th.Tensor | None
    report: dict[str, float]

    def annotate(self, buffer: OfflineBuffer) -> None:
        """Give every batch of `buffer` the keys that the learners read."""
        buffer.add("behaviour_log_probs", self.log_probs)
        if self.log_prob_others is not None:
            buffer.add("behaviour_log_prob_others", self.log_prob_others)


def obtain(
    buffer: OfflineBuffer,
    mac: BasicMAC,
    args: Settings,
    content_hash: str,
    cache_dir: Path,
    log: Log,
    check: Check,
    phase: Callable[..., Phase] = Phase,
) -> Behaviour:
    """The behaviour policies from the cache, or fitted now and put there.

    The cache's key is made of the dataset's content, every setting that the fit depends on, and the
    seed: two seeds never share one by accident.

    Args:
        mac: a controller whose agents are of the class to fit; only its shape is used.
        log: gets a line of text at each stage.
        check: called at every update; raises if the run was asked to stop.
        phase: begins the phase of each fit and evaluation.
    """
    seed = args.seed or 0
    settings = {
        "format": FORMAT,
        "dataset": content_hash,
        "behaviour": dict(args.behaviour),
        "agent": [args.agent, args.hidden_dim, args.obs_last_action, args.obs_agent_id],
        "seed": args.seed,
    }
    if len(np.unique(buffer.originals)) < len(buffer):
        settings["held_out"] = "with their copies"  # not as fits were made once
    if args.standardise:
        settings["standardise"] = True
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir / f"behaviour_{key}.th"
    others = _make_others(buffer, args)
    if path.exists():
        try:
            saved = th.load(path, map_location=buffer.device, weights_only=True)
            others_weights = saved.pop("others")
            if others is not None:
                others.load_state_dict(others_weights)
            log(f"behaviour policies: read from {path}")
            return Behaviour(others=others, **saved)
        except Exception as error:
            log(f"behaviour policies: {path} cannot be read ({error}); fitting them again")
    # A generator of its own would not reach the layers' initialisation: the global state is set
    # for the fit and put back, so that a run that reads the cache draws the same numbers.
    with th.random.fork_rng([buffer.device] if buffer.device.type == "cuda" else []):
        th.manual_seed(spawn_seeds(seed, "behaviour", 1)[0])
        try:
            fit = _Fit(buffer, args, log, check, phase)
            fitted = fit.policies(copy.deepcopy(mac), _make_others(buffer, args))
        except KeyboardInterrupt:
            log("behaviour policies: stopped while they were fitted; nothing of the fit is saved")
            raise
    _save(path, fitted, log)
    return fitted


def _make_others(buffer: OfflineBuffer, args: Settings) -> AutoregressivePolicy | None:
    if args.behaviour.others == "none":
        return None
    state_dim, width = buffer.rows["state"].shape[-1], args.behaviour.others_hidden_dim
    return AutoregressivePolicy(state_dim, args.n_agents, args.n_actions, width).to(buffer.device)


def _save(path: Path, fitted: Behaviour, log: Log) -> None:
    """Put the fit into the cache; where that cannot be, the run goes on without."""
    others = None if fitted.others is None else fitted.others.state_dict()
    try:
        with files.temporary(path) as new:
            th.save(vars(fitted) | {"others": others}, new)
            os.replace(new, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch, where the disk is full
        log(f"warning: behaviour policies: {path} cannot be written ({error}); going on without it")


def reset_parameters(network: th.nn.Module) -> None:
    """Initialise every layer anew."""
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


class EarlyStopping:
    """Keeps the weights of the smallest loss; says when it has not fallen for a while."""

    def __init__(self, network: th.nn.Module, patience: int):
        self.network, self.patience = network, patience
        self.best, self.waited = float("inf"), 0
        self.weights: dict[str, Any] | None = None

    def observe(self, loss: float) -> bool:
        """Whether to stop: `patience` observations in a row were no better than the best."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            self.weights = copy.deepcopy(self.network.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> float:
        """Put the best weights back. Returns their loss."""
        if self.weights is not None:
            self.network.load_state_dict(self.weights)
        return self.best


class _Fit:
    """Fits both kinds of policies to one split of the episodes.

    training, held_out: numbers of episodes; the same if there is only one.
    """

    def __init__(
        self,
        buffer: OfflineBuffer,
        args: Settings,
        log: Log,
        check: Check,
        phase: Callable[..., Phase],
    ):
        self.buffer, self.settings = buffer, args.behaviour
        self.log, self.check, self.phase = log, check, phase
        seed = spawn_seeds(args.seed or 0, "held_out", 1)[0]
        distinct = np.unique(buffer.originals)
        order = distinct[np.random.default_rng(seed).permutation(len(distinct))]
        n_held_out = min(max(1, int(self.settings.held_out * len(order))), len(order) - 1)
        # With one episode nothing can be held out.
        parts = (order[:n_held_out], order[n_held_out:]) if n_held_out else (order, order)
        self.held_out, self.training = (members(buffer.originals, part) for part in parts)

    def policies(self, mac: BasicMAC, others: AutoregressivePolicy | None) -> Behaviour:
        reset_parameters(mac.agent)
        individual = self._fit_individual(mac)
        log_probs = self._evaluate_individual(mac)
        self.log(f"behaviour policies: held-out NLL {individual:.4f} per agent and step")
        report = {"behaviour_nll": individual}
        if others is None:
            return Behaviour(mac.agent.state_dict(), None, log_probs, None, report)
        if self.settings.others == "autoregressive":
            start, end = self._fit_others(others, log_probs)
            self.log(
                f"others' policy: held-out NLL {end:.4f} (product of the individual ones "
                f"{start:.4f})"
            )
            report |= {"others_nll": end, "others_nll_product": start}
        log_prob_others = self._evaluate_others(others, log_probs)
        return Behaviour(mac.agent.state_dict(), others, log_probs, log_prob_others, report)

    def _descend(
        self,
        name: str,
        stopping: EarlyStopping,
        rate: float,
        updates: int,
        loss: Callable[[], th.Tensor],
        held_out_nll: Callable[[], float],
        clip: float = math.inf,
    ) -> float:
        """Adam on `loss` until the held-out NLL no longer falls. Leaves the best weights; returns
        their NLL. name: for the log. loss: of a batch that it draws."""
        parameters = list(stopping.network.parameters())
        optimiser = th.optim.Adam(parameters, lr=rate)
        note = "may stop early"
        with self.phase(f"fitting {name}", updates, unit="update") as phase:
            for update in range(updates):
                self.check()
                cosine_rate(optimiser, rate, update / updates)
                value = loss()
                optimiser.zero_grad(set_to_none=True)
                value.backward()
                if clip < math.inf:
                    th.nn.utils.clip_grad_norm_(parameters, clip)
                optimiser.step()
                phase.update(1, note)
                if (update + 1) % self.settings.eval_interval == 0 or update + 1 == updates:
                    nll = held_out_nll()
                    self.log(f"{name}: update {update + 1}, held-out NLL {nll:.4f}")
                    if not math.isfinite(nll):
                        raise TrainingFailure(
                            f"{name}: at update {update + 1} the held-out NLL is {nll:g}, most "
                            f"likely because the learning rate of {rate:g} (behaviour.lr, "
                            "behaviour.others_lr) or the observations are too large"
                        )
                    note = f"may stop early, held-out NLL {nll:.4f}"
                    if stopping.observe(nll):
                        break
        return stopping.restore()

    # Eq. 21

    def _fit_individual(self, mac: BasicMAC) -> float:
        """For all agents; leaves the best weights in `mac`. Returns the held-out NLL."""
        settings, held_out = self.settings, self.held_out
        rng = np.random.default_rng(int(th.randint(2**31, ())))
        size = min(settings.batch_size, len(self.training))

        def loss() -> th.Tensor:
            batch = self.buffer.batch(rng.choice(self.training, size, replace=False))
            return individual_nll(mac, batch).sum()  # the agents' fits do not touch each other

        def held_out_nll() -> float:
            with th.no_grad():
                blocks = np.array_split(held_out, -(-len(held_out) // BLOCK))
                nll = [individual_nll(mac, self.buffer.batch(b)).mean() * len(b) for b in blocks]
            return float(sum(nll)) / len(held_out)

        stopping = EarlyStopping(mac.agent, settings.patience)
        descent = stopping, settings.lr, settings.updates, loss, held_out_nll
        return self._descend("behaviour policies", *descent, clip=settings.grad_norm_clip)

    @th.no_grad()
    def _evaluate_individual(self, mac: BasicMAC) -> th.Tensor:
        """log mu_i over all actions for every row of the dataset, `[rows, n, A]`."""
        values, total = [], len(self.buffer)
        with self.phase("evaluating behaviour policies", total, unit="episode") as phase:
            for first in range(0, total, BLOCK):
                batch = self.buffer.batch(np.arange(first, min(first + BLOCK, total)))
                log_policy = masked_log_softmax(mac.unroll(batch), batch.rows("avail_actions"))
                padded = batch.packed.unpack(
                    log_policy
                )  # back from time-major to the dataset's order
                values.append(padded[batch["filled"].squeeze(-1) > 0])
                phase.update(batch.batch_size)
        return th.cat(values)

    # Eq. 22

    def _fit_others(
        self, others: AutoregressivePolicy, log_probs: th.Tensor
    ) -> tuple[float, float]:
        """Leaves the best weights in `others`. Returns the held-out NLL before and after."""
        n, settings = others.n_agents, self.settings
        pairs = n * max(n - 1, 1)
        rows, test_rows = self._rows(self.training), self._rows(self.held_out)

        def nll(rows: th.Tensor) -> th.Tensor:
            inputs = self._others_inputs(log_probs, rows)
            total = sum((others(i, *inputs).mean() for i in range(n)), start=th.zeros(()))
            return -total / pairs

        def loss() -> th.Tensor:
            size = (settings.others_batch_size,)
            return nll(rows[th.randint(len(rows), size, device=rows.device)])

        def held_out_nll() -> float:
            with th.no_grad():
                sums = [nll(block) * len(block) for block in test_rows.split(4096)]
            return float(sum(sums)) / len(test_rows)

        stopping = EarlyStopping(others, settings.patience)
        start = held_out_nll()
        stopping.observe(start)
        descent = stopping, settings.others_lr, settings.others_updates, loss, held_out_nll
        return start, self._descend("others' policy", *descent)

    @th.no_grad()
    def _evaluate_others(self, others: AutoregressivePolicy, log_probs: th.Tensor) -> th.Tensor:
        """log mu^{-i}(a^{-i} | s, a^i) for every row, `[rows, n]`."""
        values, total = [], len(log_probs)
        with self.phase("evaluating others' policy", total, unit="row") as phase:
            for rows in th.arange(total, device=self.buffer.device).split(16384):
                inputs = self._others_inputs(log_probs, rows)
                of_agents = [others(i, *inputs) for i in range(others.n_agents)]
                values.append(th.stack(of_agents, dim=-1))
                phase.update(len(rows))
        return th.cat(values)

    def _rows(self, episodes: np.ndarray) -> th.Tensor:
        """Row numbers of the transitions of the given episodes."""
        starts, lengths = self.buffer.offsets[episodes], self.buffer.lengths[episodes]
        steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return th.from_numpy(np.repeat(starts, lengths) + steps).to(self.buffer.device)

    def _others_inputs(self, log_probs: th.Tensor, rows: th.Tensor) -> tuple[th.Tensor, ...]:
        data = self.buffer.rows
        actions = data["actions"][rows].squeeze(-1)
        return data["state"][rows], log_probs[rows], data["avail_actions"][rows], actions


def individual_nll(mac: BasicMAC, batch: EpisodeBatch) -> th.Tensor:
    """-log mu_i(a_i), the mean over transitions, `[n]`."""
    now = batch.packed.transitions
    actions = batch.rows("actions").squeeze(-1)[now]
    log_policy = masked_log_softmax(mac.unroll(batch)[now], batch.rows("avail_actions")[now])
    return -gather_actions(log_policy, actions).mean(0)
