"""OMAR: its losses by loops, and where it ends on the matrix games."""

import copy
import math

import cases
import pytest
import torch as th
from test_modules import dueling

RATE = 0.02


def targets_loop(learner, batch, args, cells):
    """(e, t, i) -> y: the smaller one of both target critics' TD(lambda) returns."""
    agent = copy.deepcopy(learner.target_mac.agent).double()
    critics = copy.deepcopy(learner.target_critics).double()
    state, obs = batch["state"].double(), batch["obs"].double()
    y = {}
    for i in range(args.n_agents):
        logits = cases.play_agent(agent, batch, args, i)
        returns = []
        for critic in critics:
            values = {}
            for e, t in cells:
                choice = cases.available(batch, e, t + 1, i)
                best = max(choice, key=lambda a, at=(e, t + 1): float(logits[at][a].detach()))
                q = dueling(critic, state[e, t + 1], obs[e, t + 1, i], i)
                values[e, t] = q[best].detach()
            returns.append(cases.td_lambda_loop(batch, values, args.gamma, args.td_lambda))
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
                lse = th.log(sum(th.exp(q[a]) for a in cases.available(batch, e, t, i)))
                td = td + (taken - y[e, t, i]) ** 2
                cql = cql + lse - taken
    count = len(cells) * args.n_agents
    return td / count, cql / count


def policy_loss_loop(agent, critic, batch, args, cells):
    """(L_pg, L_omar)."""
    state, obs = batch["state"].double(), batch["obs"].double()
    gradient, omar = 0.0, 0.0
    for i in range(args.n_agents):
        logits = cases.play_agent(agent, batch, args, i)
        for e, t in cells:
            choice = cases.available(batch, e, t, i)
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


@pytest.mark.parametrize(("td_lambda", "minibatch", "epochs"), [(0.0, 1000, 1), (0.6, 5, 2)])
def test_losses_and_steps_are_those_of_the_loops(td_lambda, minibatch, epochs):
    learner, logger, args = cases.build(
        "omar", td_lambda=td_lambda, critic_minibatch=minibatch, critic_epochs=epochs, omar_coef=0.3
    )
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, RATE)
    agent = copy.deepcopy(learner.mac.agent).double()
    critics = copy.deepcopy(learner.critics).double()
    rows = cases.transitions_of(batch)
    y = targets_loop(learner, batch, args, rows)

    def losses_of(cells):
        td_loss, cql_loss = critic_loss_loop(critics, batch, args, cells, y)
        return td_loss + 5.0 * cql_loss, td_loss, cql_loss

    th.manual_seed(7)  # the order in which minibatches are drawn
    _, td, cql = cases.descend_in_minibatches(
        critics.parameters(), losses_of, rows, RATE, minibatch, epochs
    )
    gradient, omar = policy_loss_loop(agent, critics[0], batch, args, rows)
    cases.descend(agent.parameters(), 0.7 * gradient + 0.3 * omar, RATE)

    th.manual_seed(7)
    learner.train(batch, 0, 8)
    expected = {
        "critic_td_loss": td,
        "critic_cql_loss": cql,
        "policy_gradient_loss": gradient.item(),
        "omar_loss": omar.item(),
        "target_mean": sum(float(v) for v in y.values()) / len(y),
    }
    for key, value in expected.items():
        assert logger.stats[key] == [pytest.approx(value, rel=1e-4, abs=1e-5)], key
    cases.assert_close_weights(learner.critics, critics)
    cases.assert_close_weights(learner.mac.agent, agent, 1e-6)


# What independent learners see: the mean payoff of each action of one's own over the data.
@pytest.mark.parametrize(
    ("map_name", "quality", "cql_alpha", "action", "value"),
    [
        ("xor", "b", 1.0, 1, -2.0),  # A 1/2, B 1: both play B
        ("xor", "b", 5.0, 0, 0.0),  # A is twice as frequent, which counts for more from 4/3 on
        ("m_ne", "balanced", 1.0, 2, 20.0),  # -11.7, -10, -6.7
        ("m_ne", "imbalanced", 1.0, 0, 5.0),  # 0, -17, -16
    ],
)
def test_where_it_ends_on_the_matrix_games(map_name, quality, cql_alpha, action, value):
    pi, found, _ = cases.train_on_game(
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
    _, _, learner = cases.train_on_game(
        "omar", "xor", "b", 250, cql_alpha=alpha, critic_lr=0.01, critic_minibatch=2000
    )
    for critic in learner.critics:
        q = critic(th.ones(1, 1), th.ones(1, 2, 1))[0]
        assert th.allclose(q, th.tensor(values(p)).expand(2, 2), atol=0.02)
