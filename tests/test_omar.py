"""OMAR: its losses by loops, when targets are copied, and where it ends on the matrix games."""

import copy
import math

import pytest
import torch as th
from cases import (
    descend_plainly,
    make_args,
    make_learner,
    play_agent,
    random_batch,
    td_lambda_loop,
    transitions_of,
)
from test_critics import dueling

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.transitions import Transitions
from inspo.envs.matrix import PAYOFFS
from inspo.offline.game_data import JOINT_POLICIES, exact_counts

LENGTHS = [4, 1, 6, 3]
RATE = 0.02


def make_omar(**overrides):
    args = make_args("omar", grad_norm_clip=1e9, gamma=0.9, **overrides)
    th.manual_seed(0)
    learner, logger = make_learner(args)
    with th.no_grad():  # the targets must differ from the networks, or a mix-up would not show
        for network in (learner.target_mac.agent, learner.target_critics):
            for p in network.parameters():
                p.add_(0.3 * th.randn(p.shape))
    return learner, logger, args


def available(batch, e, t, i):
    return [
        a for a in range(batch["avail_actions"].shape[-1]) if batch["avail_actions"][e, t, i, a]
    ]


def targets_loop(learner, batch, args, cells):
    """(e, t, i) -> y: the smaller one of both target critics' TD(lambda) returns."""
    agent = copy.deepcopy(learner.target_mac.agent).double()
    critics = copy.deepcopy(learner.target_critics).double()
    state, obs = batch["state"].double(), batch["obs"].double()
    y = {}
    for i in range(args.n_agents):
        logits = play_agent(agent, batch, args, i)
        returns = []
        for critic in critics:
            values = {}
            for e, t in cells:
                choice = available(batch, e, t + 1, i)
                best = max(choice, key=lambda a, at=(e, t + 1): float(logits[at][a].detach()))
                q = dueling(critic, state[e, t + 1], obs[e, t + 1, i], i)
                values[e, t] = q[best].detach()
            returns.append(td_lambda_loop(batch, values, args.gamma, args.td_lambda))
        for e, t in cells:
            y[e, t, i] = min(r[e, t] for r in returns)
    return y


def critic_loss_loop(critics, batch, args, cells, y):
    """(squared errors, CQL) of both critics: sums over critics of means over cells and agents."""
    state, obs = batch["state"].double(), batch["obs"].double()
    td, cql = 0.0, 0.0
    for critic in critics:
        for e, t in cells:
            for i in range(args.n_agents):
                q = dueling(critic, state[e, t], obs[e, t, i], i)
                taken = q[batch["actions"][e, t, i, 0]]
                lse = th.log(sum(th.exp(q[a]) for a in available(batch, e, t, i)))
                td = td + (taken - y[e, t, i]) ** 2
                cql = cql + lse - taken
    count = len(cells) * args.n_agents
    return td / count, cql / count


def policy_loss_loop(agent, critic, batch, args, cells):
    """(L_pg, L_omar)."""
    state, obs = batch["state"].double(), batch["obs"].double()
    gradient, omar = 0.0, 0.0
    for i in range(args.n_agents):
        logits = play_agent(agent, batch, args, i)
        for e, t in cells:
            choice = available(batch, e, t, i)
            total = sum(th.exp(logits[e, t][a]) for a in choice)
            pi = {a: th.exp(logits[e, t][a]) / total for a in choice}
            q = dueling(critic, state[e, t], obs[e, t, i], i).detach()
            taken = int(batch["actions"][e, t, i, 0])
            advantage = q[taken] - sum(pi[a].detach() * q[a] for a in choice)
            gradient = gradient - advantage * th.log(pi[taken] + 1e-5)
            best = max(choice, key=lambda a, q=q: float(q[a]))
            omar = omar + sum((pi[a] - float(a == best)) ** 2 for a in choice) / args.n_actions
    count = len(cells) * args.n_agents
    return gradient / count, omar / count


@pytest.mark.parametrize(
    ("td_lambda", "minibatch", "epochs"), [(0.0, 1000, 1), (0.6, 1000, 1), (0.6, 5, 2)]
)
def test_losses_and_steps_are_those_of_the_loops(td_lambda, minibatch, epochs):
    learner, logger, args = make_omar(
        td_lambda=td_lambda, critic_minibatch=minibatch, critic_epochs=epochs, omar_coef=0.3
    )
    batch = random_batch(LENGTHS, args, pad=2)
    descend_plainly(learner, RATE)
    agent = copy.deepcopy(learner.mac.agent).double()
    critics = copy.deepcopy(learner.critics).double()
    place = Transitions(batch, learner.mac).packed.index[Transitions(batch, learner.mac).now]
    rows = [divmod(int(cell), batch.max_seq_length) for cell in place]
    assert sorted(rows) == transitions_of(batch)
    y = targets_loop(learner, batch, args, rows)

    th.manual_seed(7)  # the order in which minibatches are drawn
    td, cql = [], []
    for _ in range(epochs):
        order = th.randperm(len(rows)).tolist()
        for first in range(0, len(rows), minibatch):
            cells = [rows[k] for k in order[first : first + minibatch]]
            td_loss, cql_loss = critic_loss_loop(critics, batch, args, cells, y)
            gradients = th.autograd.grad(td_loss + 5.0 * cql_loss, list(critics.parameters()))
            with th.no_grad():
                for p, g in zip(critics.parameters(), gradients, strict=True):
                    p -= RATE * g
            td.append(td_loss.item())
            cql.append(cql_loss.item())
    gradient, omar = policy_loss_loop(agent, critics[0], batch, args, rows)
    policy_gradients = th.autograd.grad(0.7 * gradient + 0.3 * omar, list(agent.parameters()))

    th.manual_seed(7)
    learner.train(batch, 0, 8)
    expected = {
        "critic_td_loss": sum(td) / len(td),
        "critic_cql_loss": sum(cql) / len(cql),
        "policy_gradient_loss": gradient.item(),
        "omar_loss": omar.item(),
        "target_mean": sum(float(v) for v in y.values()) / len(y),
    }
    assert len(td) == epochs * math.ceil(len(rows) / minibatch)
    for key, value in expected.items():
        assert logger.stats[key] == [pytest.approx(value, rel=1e-4, abs=1e-5)], key
    for p, wanted in zip(learner.critics.parameters(), critics.parameters(), strict=True):
        assert th.allclose(p.double(), wanted, atol=1e-5)
    for p, old, g in zip(learner.mac.parameters(), agent.parameters(), policy_gradients):
        assert th.allclose(p.double(), old - RATE * g, atol=1e-6)


def test_the_second_critic_has_heads_of_its_own():
    learner, _, args = make_omar()
    first, second = learner.critics
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert not shared
    before = copy.deepcopy(second)
    learner.train(random_batch(LENGTHS, args), 0, 8)
    for p, old in zip(second.parameters(), before.parameters()):
        assert not th.equal(p, old)


def test_targets_are_copied_every_so_many_updates_before_the_actors_step():
    learner, _, args = make_omar(target_update_interval=2)
    batch = random_batch(LENGTHS, args)

    def same(a, b):
        return all(th.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

    copied = []
    for _ in range(5):
        before = copy.deepcopy(learner.mac.agent)
        learner.train(batch, 0, 8)
        critics = same(learner.target_critics, learner.critics)
        actors = same(learner.target_mac.agent, before)
        assert critics == actors
        copied.append(critics)
    assert copied == [False, True, False, True, False]


def game(map_name, quality):
    """A batch of one-step episodes with a matrix dataset's exact proportions, and the payoffs."""
    payoff = th.tensor(PAYOFFS[map_name], dtype=th.float32)
    total = {"xor": 12, "m_ne": 9}[map_name] if quality != "imbalanced" else 100
    counts = th.as_tensor(exact_counts(JOINT_POLICIES[map_name, quality][0], total)).flatten()
    joint = th.arange(len(counts)).repeat_interleave(counts)
    width = payoff.shape[1]
    actions = th.stack([joint // width, joint % width], dim=-1)  # [E, 2]
    data = {
        "state": th.ones(len(joint), 2, 1),
        "obs": th.ones(len(joint), 2, 2, 1),
        "actions": th.stack([actions, th.zeros_like(actions)], dim=1).unsqueeze(-1),
        "avail_actions": th.ones(len(joint), 2, 2, width, dtype=th.int),
        "reward": th.stack([payoff.flatten()[joint], th.zeros(len(joint))], dim=1).unsqueeze(-1),
        "terminated": th.tensor([1, 0], dtype=th.uint8).repeat(len(joint), 1).unsqueeze(-1),
        "filled": th.ones(len(joint), 2, 1, dtype=th.long),
    }
    return EpisodeBatch(data), payoff


def train_on(alg, map_name, quality, updates, **overrides):
    """Expected return and policies `[2, A]` after so many updates on the whole dataset."""
    batch, payoff = game(map_name, quality)
    shape = {"n_agents": 2, "n_actions": len(payoff), "state_shape": 1, "obs_shape": 1}
    plain = {"agent": "mlp", "obs_last_action": False, "hidden_dim": 32, "critic_hidden_dim": 32}
    args = make_args(alg, **shape, **plain, **overrides)
    th.manual_seed(0)
    learner, _ = make_learner(args)
    for _ in range(updates):
        learner.train(batch, 0, 8)
    learner.mac.init_hidden(batch.batch_size)
    pi = learner.mac.forward(batch, 0)[0]
    return float(pi[0] @ payoff @ pi[1]), pi, learner


# What independent learners see: the mean payoff of each action of one's own over the data.
@pytest.mark.parametrize(
    ("map_name", "quality", "cql_alpha", "action", "value"),
    [
        ("xor", "b", 1.0, 1, -2.0),  # A 1/2, B 1: both play B
        ("xor", "b", 5.0, 0, 0.0),  # A is twice as frequent, which counts for more from 4/3 on
        ("xor", "c", 1.0, 0, 0.0),  # A 1/2, B -1/2
        ("m_ne", "balanced", 1.0, 2, 20.0),  # -11.7, -10, -6.7
        ("m_ne", "imbalanced", 1.0, 0, 5.0),  # 0, -17, -16
    ],
)
def test_where_it_ends_on_the_matrix_games(map_name, quality, cql_alpha, action, value):
    found, pi, _ = train_on(
        "omar", map_name, quality, 100, cql_alpha=cql_alpha, lr=0.01, critic_lr=0.01,
        critic_minibatch=2000,
    )  # fmt: skip
    assert pi.argmax(-1).tolist() == [action, action]
    assert found == pytest.approx(value, abs=0.3)


def test_critics_on_xor_b_are_at_the_balance_of_error_and_conservatism():
    """2 mu(a) (Q(a) - r(a)) + alpha (softmax Q(a) - mu(a)) = 0 with mu = (2/3, 1/3), r = (1/2, 1),
    solved for p = softmax Q(A) by bisection."""
    alpha = 1.0

    def values(p):
        return 0.5 - alpha * (p - 2 / 3) / (4 / 3), 1 - alpha * (2 / 3 - p) / (2 / 3)

    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        a, b = values(p)
        low, high = (p, high) if 1 / (1 + math.exp(b - a)) > p else (low, p)
    _, _, learner = train_on(
        "omar", "xor", "b", 250, cql_alpha=alpha, critic_lr=0.01, critic_minibatch=2000
    )
    for critic in learner.critics:
        q = critic(th.ones(1, 1), th.ones(1, 2, 1))[0]
        assert th.allclose(q, th.tensor(values(p)).expand(2, 2), atol=0.02)
