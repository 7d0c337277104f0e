"""The behaviour policies of a dataset: fitted once, then evaluated once over all of its rows.

Individual policies mu_i by behaviour cloning (InSPO, Eq. 21) and the autoregressive one of the
other agents mu^{-i}(a^{-i} | s, a^i) (Eq. 22), both early-stopped on held-out episodes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch as th
from inspo.components.packed import PackedEpisodes
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.offline.buffer import OfflineBuffer
from inspo.utils.rl_utils import cosine_rate, gather_actions, masked_log_softmax
from inspo.utils.seeding import spawn_seeds

FORMAT = 1  # part of the cache's key: raise it when the meaning of the files changes
BLOCK = 256  # episodes evaluated at once


@dataclass
class Behaviour:
    """Fitted behaviour policies and what they say of every row of the dataset.

    Attributes:
        agent: weights of the individual policies, for a controller with the same agents.
        others: the autoregressive policy of the other agents; None if nobody asked for it.
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
    mac,
    args,
    content_hash: str,
    cache_dir: Path,
    say: Callable[[str], None],
    check: Callable[[], None],
) -> Behaviour:
    """The behaviour policies from the cache, or fitted now and put there.

    The cache's key is made of the dataset's content, every setting that the fit depends on, and the
    seed: two seeds never share one by accident.

    Args:
        mac: a controller whose agents are of the class to fit; only its shape is used.
        say: gets a line of text at each stage.
        check: called at every update; raises if the run was asked to stop.
    """
    settings = {
        "format": FORMAT,
        "dataset": content_hash,
        "behaviour": dict(args.behaviour),
        "agent": [args.agent, args.hidden_dim, args.obs_last_action, args.obs_agent_id],
        "seed": args.seed,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir / f"behaviour_{key}.th"
    state_dim = buffer.rows["state"].shape[-1]

    def make_others() -> AutoregressivePolicy | None:
        if args.behaviour["others"] == "none":
            return None
        width = args.behaviour["others_hidden_dim"]
        others = AutoregressivePolicy(state_dim, args.n_agents, args.n_actions, width)
        return others.to(buffer.device)

    others = make_others()
    if path.exists():
        try:
            saved = th.load(path, map_location=buffer.device, weights_only=True)
            others_weights = saved.pop("others")
            if others is not None:
                others.load_state_dict(others_weights)
            say(f"behaviour policies: read from {path}")
            return Behaviour(others=others, **saved)
        except Exception as error:
            say(f"behaviour policies: {path} cannot be read ({error}); fitting them again")
    # A generator of its own would not reach the layers' initialisation: the global state is set
    # for the fit and put back, so that a run that finds the cache full draws the same numbers.
    with th.random.fork_rng([buffer.device] if buffer.device.type == "cuda" else []):
        th.manual_seed(spawn_seeds(args.seed, "behaviour", 1)[0])
        fitted = _fit(buffer, copy.deepcopy(mac), make_others(), args, say, check)
    _save(path, fitted)
    return fitted


def _save(path: Path, fitted: Behaviour) -> None:
    others = None if fitted.others is None else fitted.others.state_dict()
    content = vars(fitted) | {"others": others}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        th.save(content, temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a cache that cannot be written is only not there


def _fit(buffer, mac, others, args, say, check) -> Behaviour:
    settings = args.behaviour
    order = np.random.default_rng(spawn_seeds(args.seed, "held_out", 1)[0]).permutation(len(buffer))
    n_held_out = min(max(1, int(settings["held_out"] * len(buffer))), len(buffer) - 1)
    held_out, training = order[:n_held_out], order[n_held_out:]
    if len(training) == 0:
        held_out = training = order  # one episode: nothing can be held out

    reset_parameters(mac.agent)
    individual = _fit_individual(buffer, mac, settings, training, held_out, say, check)
    log_probs = _evaluate_individual(buffer, mac)
    say(f"behaviour policies: held-out NLL {individual:.4f} per agent and step")

    report = {"behaviour_nll": individual}
    if settings["others"] == "autoregressive":
        start, end = _fit_others(buffer, others, log_probs, settings, training, held_out, check)
        say(f"others' policy: held-out NLL {end:.4f} (product of the individual ones {start:.4f})")
        report |= {"others_nll": end, "others_nll_product": start}
    log_prob_others = None if others is None else _evaluate_others(buffer, others, log_probs)
    return Behaviour(mac.agent.state_dict(), others, log_probs, log_prob_others, report)


def reset_parameters(network: th.nn.Module) -> None:
    """Initialise every layer anew."""
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _individual_nll(mac, batch) -> th.Tensor:
    """-log mu_i(a_i), the mean over transitions, `[n]`."""
    packed = PackedEpisodes(batch["filled"])
    now = packed.transitions
    avail = packed.pack(batch["avail_actions"])[now]
    actions = packed.pack(batch["actions"]).squeeze(-1)[now]
    log_policy = masked_log_softmax(mac.unroll(batch, packed)[now], avail)
    return -gather_actions(log_policy, actions).mean(0)


def _fit_individual(buffer, mac, settings, training, held_out, say, check) -> float:
    """Eq. 21 for all agents; leaves the best weights in `mac`. Returns the held-out NLL."""
    rng = np.random.default_rng(int(th.randint(2**31, ())))
    optimiser = th.optim.Adam(mac.parameters(), lr=settings["lr"])

    def held_out_nll() -> float:
        with th.no_grad():
            blocks = np.array_split(held_out, -(-len(held_out) // BLOCK))
            nll = [_individual_nll(mac, buffer.batch(b)).mean() * len(b) for b in blocks]
        return float(sum(nll)) / len(held_out)

    stopping = EarlyStopping(mac.agent, settings["patience"])
    for update in range(settings["updates"]):
        check()
        cosine_rate(optimiser, settings["lr"], update / settings["updates"])
        size = min(settings["batch_size"], len(training))
        batch = buffer.batch(rng.choice(training, size, replace=False))
        loss = _individual_nll(mac, batch).sum()  # a sum: the agents' fits do not touch each other
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        th.nn.utils.clip_grad_norm_(mac.parameters(), settings["grad_norm_clip"])
        optimiser.step()
        if (update + 1) % settings["eval_interval"] == 0 or update + 1 == settings["updates"]:
            nll = held_out_nll()
            say(f"behaviour policies: update {update + 1}, held-out NLL {nll:.4f}")
            if stopping.observe(nll):
                break
    return stopping.restore()


class EarlyStopping:
    """Keeps the weights of the smallest loss; says when it has not fallen for a while."""

    def __init__(self, network: th.nn.Module, patience: int):
        self.network, self.patience = network, patience
        self.best, self.weights, self.waited = float("inf"), None, 0

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


@th.no_grad()
def _evaluate_individual(buffer, mac) -> th.Tensor:
    """log mu_i over all actions for every row of the dataset, `[rows, n, A]`."""
    values = []
    for first in range(0, len(buffer), BLOCK):
        episodes = np.arange(first, min(first + BLOCK, len(buffer)))
        batch = buffer.batch(episodes)
        packed = PackedEpisodes(batch["filled"])
        log_policy = masked_log_softmax(
            mac.unroll(batch, packed), packed.pack(batch["avail_actions"])
        )
        padded = packed.unpack(log_policy)  # back from time-major to the dataset's order
        values.append(padded[batch["filled"].squeeze(-1) > 0])
    return th.cat(values)


def _rows(buffer, episodes) -> th.Tensor:
    """Row numbers of the transitions of the given episodes."""
    starts, lengths = buffer.offsets[episodes], buffer.lengths[episodes]
    steps = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return th.from_numpy(np.repeat(starts, lengths) + steps).to(buffer.device)


def _others_inputs(buffer, log_probs, rows):
    data = buffer.rows
    return (
        data["state"][rows],
        log_probs[rows],
        data["avail_actions"][rows],
        data["actions"][rows].squeeze(-1),
    )


def _fit_others(
    buffer, others, log_probs, settings, training, held_out, check
) -> tuple[float, float]:
    """Eq. 22; leaves the best weights in `others`. Returns the held-out NLL before and after."""
    n = others.n_agents
    pairs = n * max(n - 1, 1)
    rows, test_rows = _rows(buffer, training), _rows(buffer, held_out)
    optimiser = th.optim.Adam(others.parameters(), lr=settings["others_lr"])

    def nll(inputs) -> th.Tensor:
        return -sum(others(i, *inputs).mean() for i in range(n)) / pairs

    def held_out_nll() -> float:
        with th.no_grad():
            blocks = test_rows.split(4096)
            sums = [nll(_others_inputs(buffer, log_probs, b)) * len(b) for b in blocks]
        return float(sum(sums)) / len(test_rows)

    stopping = EarlyStopping(others, settings["patience"])
    start = held_out_nll()
    stopping.observe(start)
    for update in range(settings["others_updates"]):
        check()
        cosine_rate(optimiser, settings["others_lr"], update / settings["others_updates"])
        drawn = rows[th.randint(len(rows), (settings["others_batch_size"],), device=rows.device)]
        loss = nll(_others_inputs(buffer, log_probs, drawn))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        due = (update + 1) % settings["eval_interval"] == 0
        if (due or update + 1 == settings["others_updates"]) and stopping.observe(held_out_nll()):
            break
    return start, stopping.restore()


@th.no_grad()
def _evaluate_others(buffer, others, log_probs) -> th.Tensor:
    """log mu^{-i}(a^{-i} | s, a^i) for every row, `[rows, n]`."""
    values = []
    for rows in th.arange(len(log_probs), device=buffer.device).split(16384):
        inputs = _others_inputs(buffer, log_probs, rows)
        values.append(th.stack([others(i, *inputs) for i in range(others.n_agents)], dim=-1))
    return th.cat(values)
