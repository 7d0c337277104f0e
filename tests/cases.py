"""What the tests of the learners share: arguments, random batches, loops, a logger."""

from __future__ import annotations

from types import SimpleNamespace

import torch as th

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.utils.config import load_config

SHAPES = {"n_agents": 3, "n_actions": 4, "state_shape": 5, "obs_shape": 4, "episode_limit": 9}


def make_args(alg: str, env: str = "matrix_offline", **overrides) -> SimpleNamespace:
    """The configuration of `alg` without presets, narrow networks, SHAPES, `overrides` on top."""
    values = load_config([f"--config={alg}", f"--env-config={env}", "with", "use_presets=False"])
    args = SimpleNamespace(**values.values, **SHAPES)
    vars(args).update(
        {"seed": 3, "device": "cpu", "hidden_dim": 8, "log_interval": 1, "t_max": 100}
        | {"critic_hidden_dim": 8}
        | overrides
    )
    return args


def scheme_of(args) -> dict:
    return build_scheme({key: getattr(args, key) for key in SHAPES})


def make_mac(args):
    return mac_REGISTRY[args.mac](scheme_of(args), {"agents": args.n_agents}, args)


def make_learner(args, logger=None):
    """(learner, logger); the global seed decides about the weights."""
    logger = logger or MemoryLogger()
    return learner_REGISTRY[args.learner](make_mac(args), scheme_of(args), logger, args), logger


def descend_plainly(learner, lr: float = 0.1) -> None:
    """Gradient descent in place of Adam, whose first step is the sign of rounding errors too."""
    for name, optimiser in learner.optimisers.items():
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        learner.optimisers[name] = th.optim.SGD(parameters, lr)


class MemoryLogger:
    """Keeps what is logged: key -> list of floats."""

    def __init__(self):
        self.stats: dict[str, list[float]] = {}

    def log_stat(self, key, value, t):
        self.stats.setdefault(key, []).append(float(value))

    def log_stats(self, stats, t):
        for key, value in stats.items():
            self.log_stat(key, value, t)

    def info(self, message):
        pass


def log_softmax_loop(logits, avail) -> th.Tensor:
    """log-probabilities of one row `[A]` by the definition; -1e10 where unavailable."""
    possible = [a for a in range(len(avail)) if avail[a]]
    total = sum(th.exp(logits[a]) for a in possible)
    out = [
        logits[a] - th.log(total) if avail[a] else logits[a] * 0 - 1e10 for a in range(len(avail))
    ]
    return th.stack(out)


def random_batch(lengths, args=None, seed: int = 0, terminated=None, pad: int = 0) -> EpisodeBatch:
    """Episodes of the given numbers of transitions with random contents and masks.

    Agent 0 has a single available action in about a third of the steps. Odd episodes end with a
    terminal, even ones are cut, unless `terminated` says otherwise. Whatever is not filled holds
    rubbish, which nothing may read. `pad`: so many rows of rubbish more than the longest episode.
    """
    args = args or SimpleNamespace(**SHAPES)
    g = th.Generator().manual_seed(seed)
    b, n, a = len(lengths), args.n_agents, args.n_actions
    t = max(lengths) + 1
    avail = (th.rand(b, t, n, a, generator=g) < 0.7).int()
    lone = th.rand(b, t, generator=g) < 0.3
    avail[:, :, 0][lone] = 0
    first = th.randint(a, (b, t, n, 1), generator=g)
    avail.scatter_(-1, first, 1)  # at least one
    actions = th.multinomial(avail.float().flatten(0, 2), 1, generator=g).view(b, t, n, 1)
    masked = th.randn(b, t, n, a, generator=g).masked_fill(avail == 0, -1e10)
    data = {
        "state": th.randn(b, t, args.state_shape, generator=g),
        "obs": th.randn(b, t, n, args.obs_shape, generator=g),
        "actions": actions,
        "avail_actions": avail,
        "reward": th.randn(b, t, 1, generator=g),
        "terminated": th.zeros(b, t, 1, dtype=th.uint8),
        "filled": th.zeros(b, t, 1, dtype=th.long),
        "behaviour_log_probs": masked.log_softmax(-1),
        "behaviour_log_prob_others": -th.rand(b, t, n, generator=g) - 0.5,
    }
    ends = [e % 2 == 1 for e in range(b)] if terminated is None else terminated
    for e, length in enumerate(lengths):
        data["filled"][e, : length + 1] = 1
        data["terminated"][e, length - 1] = int(ends[e])
    return padded(EpisodeBatch(data), pad)


def padded(batch: EpisodeBatch, rows: int) -> EpisodeBatch:
    """`batch` with `rows` more unfilled steps of rubbish."""
    data = {}
    for key, value in batch.data.items():
        extra = value.new_full((len(value), rows, *value.shape[2:]), 1 if key != "filled" else 0)
        data[key] = th.cat([value, extra], dim=1)
    return EpisodeBatch(data)


def transitions_of(batch: EpisodeBatch) -> list[tuple[int, int]]:
    """(episode, step) of every transition, by the definition."""
    filled = batch["filled"]
    return [
        (e, t)
        for e in range(batch.batch_size)
        for t in range(batch.max_seq_length - 1)
        if filled[e, t, 0] and filled[e, t + 1, 0]
    ]


def td_lambda_loop(batch, next_values, gamma, td_lambda) -> dict[tuple[int, int], th.Tensor]:
    """(episode, step) -> G, by the backward recursion; `next_values[e, t]` is V(s_{t+1})."""
    targets = {}
    for e in range(batch.batch_size):
        length = int(batch["filled"][e].sum()) - 1
        for t in reversed(range(length)):
            reward, ended = batch["reward"][e, t, 0].double(), bool(batch["terminated"][e, t, 0])
            value = next_values[e, t]
            if t + 1 < length:
                value = (1 - td_lambda) * value + td_lambda * targets[e, t + 1]
            targets[e, t] = reward + (0.0 if ended else gamma * value)
    return targets


def inputs_loop(batch, args, e: int, t: int, i: int) -> th.Tensor:
    """What agent i sees in step t of episode e: obs, last action one-hot, identity one-hot."""
    parts = [batch["obs"][e, t, i]]
    if args.obs_last_action:
        onehot = th.zeros(args.n_actions)
        if t > 0:
            onehot[batch["actions"][e, t - 1, i, 0]] = 1
        parts.append(onehot)
    if args.obs_agent_id:
        onehot = th.zeros(args.n_agents)
        onehot[i] = 1
        parts.append(onehot)
    return th.cat(parts)


def play_agent(network, batch, args, i: int) -> dict[tuple[int, int], th.Tensor]:
    """(episode, step) -> outputs `[A]` of agent i's `network`, one step after the other."""
    outputs = {}
    dtype = next(network.parameters()).dtype
    for e in range(batch.batch_size):
        hidden = network.init_hidden()
        for t in range(int(batch["filled"][e].sum())):
            x = inputs_loop(batch, args, e, t, i).to(dtype)
            out, hidden = network(x.unsqueeze(0), hidden)
            outputs[e, t] = out[0]
    return outputs
