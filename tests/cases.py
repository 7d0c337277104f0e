"""What the tests share: arguments, random batches, loops and a logger of learners; a process."""

from __future__ import annotations

import os
import signal
import warnings
from types import SimpleNamespace

import torch as th

from inspo.components.episode_batch import EpisodeBatch, build_scheme
from inspo.controllers import REGISTRY as mac_REGISTRY
from inspo.learners import REGISTRY as learner_REGISTRY
from inspo.modules.autoregressive import AutoregressivePolicy
from inspo.tabular import matrix_games
from inspo.utils.config import load_config

LENGTHS = [4, 1, 6, 3]  # of the episodes in most tests
SHAPES = {"n_agents": 3, "n_actions": 4, "state_shape": 5, "obs_shape": 4, "episode_limit": 9}


def make_args(alg: str, env: str = "matrix_offline", **overrides) -> SimpleNamespace:
    """The configuration of `alg` without presets, narrow networks, SHAPES, `overrides` on top."""
    values = load_config([f"--config={alg}", f"--env-config={env}", "with", "use_presets=False"])
    args = SimpleNamespace(**values.values, **SHAPES)
    for group in {"behaviour", "retention"} & vars(args).keys():
        setattr(args, group, SimpleNamespace(**getattr(args, group)))
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
    learner = learner_REGISTRY[args.learner](make_mac(args), scheme_of(args), logger, args)
    if getattr(learner, "with_others", False):  # InSPO's, which `start_from` would bring
        with th.random.fork_rng():  # what is drawn next is the same with and without it
            shape = args.state_shape, args.n_agents, args.n_actions, 8
            learner.others = AutoregressivePolicy(*shape)
    return learner, logger


def build(alg: str, **overrides):
    """(learner, logger, args) without clipping, and with targets unlike what they follow."""
    args = make_args(alg, **({"grad_norm_clip": 1e9, "gamma": 0.9} | overrides))
    th.manual_seed(0)
    learner, logger = make_learner(args)
    with th.no_grad():  # alike, a mix-up would not show
        for name, network in learner.networks.items():
            for p in network.parameters() if name.startswith("target_") else ():
                p.add_(0.3 * th.randn(p.shape))
    return learner, logger, args


def descend_plainly(learner, lr: float = 0.1) -> None:
    """Gradient descent in place of Adam, whose first step is the sign of rounding errors too."""
    for name, optimiser in learner.optimisers.items():
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        learner.optimisers[name] = th.optim.SGD(parameters, lr)


def descend(parameters, loss, lr: float):
    """One such step down `loss`, in place."""
    parameters = list(parameters)
    gradients = th.autograd.grad(loss, parameters, allow_unused=True)
    with th.no_grad():
        for p, g in zip(parameters, gradients):
            p -= lr * (0.0 if g is None else g)


def descend_in_minibatches(parameters, losses_of, rows, lr, minibatch, epochs) -> list:
    """Steps down the first of `losses_of(rows)` in minibatches, drawn as the learners draw them.

    Returns the means of all the losses over the steps.
    """
    steps, parameters = [], list(parameters)
    for _ in range(epochs):
        order = th.randperm(len(rows)).tolist()
        for first in range(0, len(rows), minibatch):
            losses = losses_of([rows[k] for k in order[first : first + minibatch]])
            descend(parameters, losses[0], lr)
            steps.append([loss.item() for loss in losses])
    assert len(steps) == epochs * -(-len(rows) // minibatch)
    return [sum(losses) / len(steps) for losses in zip(*steps)]


def same_weights(found, expected) -> bool:
    return all(th.equal(p, q) for p, q in zip(found.parameters(), expected.parameters()))


def assert_close_weights(found, expected, atol: float = 1e-5) -> None:
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert th.allclose(p.double(), q.double(), atol=atol), (p.double() - q).abs().max()


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
    """(episode, step) of every transition by the definition, over time first as learners do, and
    the longest episode first."""
    filled = batch["filled"]
    return [
        (e, t)
        for t in range(batch.max_seq_length - 1)
        for e in longest_first(batch)
        if filled[e, t, 0] and filled[e, t + 1, 0]
    ]


def longest_first(batch: EpisodeBatch) -> list[int]:
    return sorted(range(batch.batch_size), key=lambda e: -int(batch["filled"][e].sum()))


def available(batch: EpisodeBatch, e: int, t: int, i: int) -> list[int]:
    return batch["avail_actions"][e, t, i].nonzero().flatten().tolist()


def without_choice(batch: EpisodeBatch, agents=slice(None)) -> EpisodeBatch:
    """`batch`, in which what these agents did is all that they could do."""
    onehot = th.zeros_like(batch["avail_actions"]).scatter(-1, batch["actions"], 1)
    batch["avail_actions"][:, :, agents] = onehot[:, :, agents]
    batch["behaviour_log_probs"][:, :, agents] = (onehot[:, :, agents] - 1.0) * 1e10
    return batch


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


def game_data(map_name: str, quality: str, copies: int = 1):
    """(joint actions `[E, 2]`, payoffs `[A, A]`): a matrix dataset's exact proportions."""
    payoff = th.tensor(matrix_games.payoff_tensor(map_name), dtype=th.float32)
    joint, counts = map(th.as_tensor, matrix_games.frequencies(map_name, quality))
    total = 12 if map_name == "xor" else int(counts.sum())
    joint = joint.repeat_interleave(counts * (total // int(counts.sum())), dim=0)
    return joint.repeat(copies, 1), payoff


def game_batch(joint, payoff) -> EpisodeBatch:
    """Episodes of one step, all in the same state, and the shares of each agent's actions."""
    e, width = len(joint), len(payoff)
    rows = th.stack([joint, th.zeros_like(joint)], dim=1).unsqueeze(-1)  # the step and the last row
    reward = payoff[tuple(joint.T)]
    shares = th.nn.functional.one_hot(joint, width).float().mean(0)
    return EpisodeBatch(
        {
            "state": th.ones(e, 2, 1),
            "obs": th.ones(e, 2, 2, 1),
            "actions": rows,
            "avail_actions": th.ones(e, 2, 2, width, dtype=th.int),
            "reward": th.stack([reward, th.zeros(e)], dim=1).unsqueeze(-1),
            "terminated": th.tensor([1, 0], dtype=th.uint8).repeat(e, 1).unsqueeze(-1),
            "filled": th.ones(e, 2, 1, dtype=th.long),
            "behaviour_log_probs": shares.log().clamp(min=-1e10).expand(e, 2, 2, width),
        }
    )


def game_learner(alg: str, n_actions: int, **overrides):
    """(learner, logger) for two agents who see nothing."""
    shape = {"n_agents": 2, "n_actions": n_actions, "state_shape": 1, "obs_shape": 1}
    plain = {"episode_limit": 1, "agent": "mlp", "obs_last_action": False}
    narrow = {"hidden_dim": 32, "critic_hidden_dim": 32, "log_interval": 10**9}
    th.manual_seed(0)
    return make_learner(make_args(alg, **(shape | plain | narrow | overrides)))


def train_on_game(alg: str, map_name: str, quality: str, updates: int, copies=1, **overrides):
    """(what each agent's network says of its actions `[2, A]`, expected return, learner)."""
    joint, payoff = game_data(map_name, quality, copies)
    batch = game_batch(joint, payoff)
    learner, _ = game_learner(alg, len(payoff), t_max=updates, **overrides)
    for k in range(updates):
        learner.train(batch, k, 8)
    learner.mac.init_hidden(len(joint))
    one, two = learner.mac.forward(batch, 0)[0]
    return th.stack([one, two]), float(one @ payoff @ two), learner


def start_child(function) -> int:
    """The number of a forked process that calls `function`, for its exit status if it returns one.

    For what needs files alone: of the parent's threads there are none in it.
    """
    with warnings.catch_warnings(action="ignore"):  # jax warns of the threads that it may have
        pid = os.fork()
    if not pid:
        signal.alarm(120)
        try:
            os._exit(function() or 0)
        finally:
            os._exit(1)
    return pid


def status_of(pid: int) -> int:
    """The exit status of a child when it has ended; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_child(function) -> int:
    return status_of(start_child(function))
