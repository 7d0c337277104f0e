"""ICQ: weights, mixer and losses by loops, and where it ends on the matrix games."""

import copy
import math
from types import SimpleNamespace

import cases
import pytest
import torch as th
from test_modules import dueling

from inspo.learners.icq_learner import step_weights, supported_mean
from inspo.modules.mixers.convex import ConvexMixer
from inspo.modules.mixers.qmix import QMixer

RATE = 0.02


# The weights


def weights_loop(values: dict) -> dict:
    """(e, t) -> softmax over all the episodes of `values` at step t, times their number."""
    found = {}
    for e, t in values:
        same = [v for (_, u), v in values.items() if u == t]
        found[e, t] = len(same) * math.exp(values[e, t]) / sum(math.exp(v) for v in same)
    return found


def test_weights_are_the_softmax_of_each_steps_valid_episodes_times_their_number():
    g = th.Generator().manual_seed(1)
    time = th.tensor([0, 0, 0, 1, 1, 1, 2, 2, 4])
    valid = th.tensor([1, 1, 0, 1, 1, 1, 0, 0, 1]).bool()
    values = 3 * th.randn(9, 2, generator=g)
    values[2] = 1e4  # what is not valid may be anything
    found = step_weights(values, valid, time, 6)
    for k in range(2):
        cells = {(m, int(time[m])): float(values[m, k]) for m in range(9) if valid[m]}
        for (m, _), weight in weights_loop(cells).items():
            assert found[m, k].item() == pytest.approx(weight, rel=1e-5)
    assert (found[~valid] == 0).all()
    sums = th.zeros(6, 2).index_add(0, time, found)
    expected = th.tensor([2.0, 3.0, 0.0, 0.0, 1.0, 0.0]).unsqueeze(-1).expand(6, 2)
    assert th.allclose(sums, expected, atol=1e-5)


def test_weights_of_large_values_are_finite():
    values = th.tensor([[5e4], [5e4 - 1], [-5e4]])
    found = step_weights(values, th.ones(3).bool(), th.zeros(3, dtype=th.long), 1)
    p = 1 / (1 + math.exp(-1))
    assert found.squeeze().tolist() == pytest.approx([3 * p, 3 * (1 - p), 0.0], rel=1e-5)


# The mixer


def mixing_weights(mixer, state) -> list:
    """k of one state by the definition: sum over the embedding of |W| |v|, then normalised."""
    w = (mixer.hyper_w.weight @ state + mixer.hyper_w.bias).abs()
    v = (mixer.hyper_v.weight @ state + mixer.hyper_v.bias).abs()
    width = mixer.embed_dim
    raw = [sum(w[i * width + e] * v[e] for e in range(width)) for i in range(mixer.n_agents)]
    return [k / sum(raw) for k in raw]


def test_the_mixer_is_a_convex_combination():
    th.manual_seed(0)
    sizes = {"state_shape": 5, "n_agents": 3, "mixing_embed_dim": 4}
    mixer = ConvexMixer(SimpleNamespace(**sizes)).double()
    states, qs = th.randn(20, 5).double(), th.randn(20, 3).double()
    k = mixer.shares(states)
    assert k.shape == (20, 3)
    assert (k >= 0).all() and th.allclose(k.sum(-1), th.ones(20).double())
    for m in range(20):
        expected = th.stack(mixing_weights(mixer, states[m]))
        assert th.allclose(k[m], expected)
        assert mixer(qs, states)[m].item() == pytest.approx((expected * qs[m]).sum().item())


def test_the_shares_of_qmix_are_its_derivatives_where_it_is_linear():
    th.manual_seed(0)
    sizes = {"state_shape": 5, "n_agents": 3, "mixing_embed_dim": 4, "hypernet_embed": 6}
    mixer = QMixer(SimpleNamespace(**sizes)).double()
    mixer.hyper_b1.bias.data += 100  # every unit above 0, where ELU is the identity
    states, qs = th.randn(20, 5).double(), th.randn(20, 3).double().requires_grad_()
    (slope,) = th.autograd.grad(mixer(qs, states).sum(), qs)
    assert th.allclose(mixer.shares(states), slope / slope.sum(-1, keepdim=True))


def test_the_baseline_is_over_the_actions_that_the_data_support():
    q = th.tensor([[1.0, 2.0, 50.0], [1.0, 2.0, 50.0], [1.0, 2.0, 50.0]])
    pi = th.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    mu = th.tensor([[0.6, 0.39, 0.01], [0.94, 0.03, 0.03], [0.5, 0.5, 0.0]])
    found = supported_mean(q, pi.clamp(min=1e-20).log(), mu.clamp(min=1e-20).log(), 0.05)
    assert found.tolist() == pytest.approx([0.4 + 1.2, 1.0, 1.5])
    alike = th.full((1, 3), 1 / 3)  # none above the threshold: the likeliest ones count
    assert supported_mean(q[:1], pi[:1].log(), alike.log(), 0.4).item() == pytest.approx(25.8)


# The losses


def targets_loop(learner, batch, args, cells, log_pi):
    """(e, t) -> y."""
    critic = copy.deepcopy(learner.target_critic).double()
    mixer = copy.deepcopy(learner.target_mixer).double()
    state, obs = batch["state"].double(), batch["obs"].double()
    totals = {}
    for e, t in cells:
        k = mixing_weights(mixer, state[e, t + 1])
        total = 0.0
        for i in range(args.n_agents):
            q = dueling(critic, state[e, t + 1], obs[e, t + 1, i], i)
            if (e, t + 1) in cells:
                value = q[batch["actions"][e, t + 1, i, 0]]
            else:  # the last row: there is no action in the data
                value = sum(log_pi[i][e, t + 1][a].exp() * q[a] for a in range(args.n_actions))
            total = total + k[i] * value
        totals[e, t] = float(total.detach())
    bootstrapping = {c: v for c, v in totals.items() if not batch["terminated"][c[0], c[1], 0]}
    weights = weights_loop({c: v / args.target_temperature for c, v in bootstrapping.items()})
    values = {c: th.tensor(weights.get(c, 0.0) * totals[c]).double() for c in cells}
    return cases.td_lambda_loop(batch, values, args.gamma, args.td_lambda)


def critic_loss_loop(critic, mixer, batch, args, cells, y):
    state, obs = batch["state"].double(), batch["obs"].double()
    loss = 0.0
    for e, t in cells:
        k = mixing_weights(mixer, state[e, t])
        total = 0.0
        for i in range(args.n_agents):
            q = dueling(critic, state[e, t], obs[e, t, i], i)
            total = total + k[i] * q[batch["actions"][e, t, i, 0]]
        loss = loss + (total - y[e, t]) ** 2
    return loss / len(cells)


def baseline_loop(q, log_pi, log_mu, support):
    """sum over b of pi(b) Q(b), over the b that count."""
    counted = [a for a in range(len(q)) if log_mu[a].exp() > support or log_mu[a] == log_mu.max()]
    total = sum(log_pi[a].exp() for a in counted)
    return sum(log_pi[a].exp() / total * q[a] for a in counted)


def policy_loss_loop(log_pi, critic, mixer, batch, args, cells):
    state, obs = batch["state"].double(), batch["obs"].double()
    loss = 0.0
    for i in range(args.n_agents):
        advantages = {}
        for e, t in cells:
            q = dueling(critic, state[e, t], obs[e, t, i], i)
            log_mu = batch["behaviour_log_probs"][e, t, i]
            mean = baseline_loop(q, log_pi[i][e, t], log_mu, args.support)
            advantages[e, t] = float((q[batch["actions"][e, t, i, 0]] - mean).detach())
        weights = weights_loop({c: v / args.policy_temperature for c, v in advantages.items()})
        for e, t in cells:
            k = float(mixing_weights(mixer, state[e, t])[i].detach())
            taken = log_pi[i][e, t][batch["actions"][e, t, i, 0]]
            loss = loss - k * weights[e, t] * taken
    return loss / (len(cells) * args.n_agents)


@pytest.mark.parametrize(
    ("td_lambda", "minibatch", "epochs", "support"), [(0.0, 1000, 1, 0.3), (0.8, 5, 2, 0.0)]
)
def test_losses_and_steps_are_those_of_the_loops(td_lambda, minibatch, epochs, support):
    learner, logger, args = cases.build(
        "icq",
        td_lambda=td_lambda,
        critic_minibatch=minibatch,
        critic_epochs=epochs,
        support=support,
        target_temperature=0.7,  # at 1000 all weights are nearly 1
    )
    batch = cases.random_batch(cases.LENGTHS, args, pad=2)
    cases.descend_plainly(learner, RATE)
    agent = copy.deepcopy(learner.mac.agent).double()
    critic = copy.deepcopy(learner.critic).double()
    mixer = copy.deepcopy(learner.mixer).double()
    rows = cases.transitions_of(batch)
    log_pi = []
    for i in range(args.n_agents):
        logits = cases.play_agent(agent, batch, args, i)
        avail = batch["avail_actions"][:, :, i]
        log_pi.append({c: cases.log_softmax_loop(x, avail[c]) for c, x in logits.items()})
    y = targets_loop(learner, batch, args, rows, log_pi)

    th.manual_seed(7)  # the order in which minibatches are drawn
    both = th.nn.ModuleList([critic, mixer])
    (critic_loss,) = cases.descend_in_minibatches(
        both.parameters(),
        lambda cells: [critic_loss_loop(critic, mixer, batch, args, cells, y)],
        rows, RATE, minibatch, epochs,
    )  # fmt: skip
    policy_loss = policy_loss_loop(log_pi, critic, mixer, batch, args, rows)
    cases.descend(agent.parameters(), policy_loss, RATE)

    th.manual_seed(7)
    learner.train(batch, 0, 8)
    expected = {
        "critic_loss": critic_loss,
        "policy_loss": policy_loss.item(),
        "target_mean": sum(float(v) for v in y.values()) / len(y),
    }
    for key, value in expected.items():
        assert logger.stats[key] == [pytest.approx(value, rel=1e-4, abs=1e-5)], key
    cases.assert_close_weights(th.nn.ModuleList([learner.critic, learner.mixer]), both)
    cases.assert_close_weights(learner.mac.agent, agent, 1e-6)


# What the values add up to: the additive fit of the payoffs that occur in the data.
@pytest.mark.parametrize(
    ("map_name", "quality", "action", "value"),
    [
        ("xor", "b", 1, -2.0),  # Q_tot(A, A) = 0, (A, B) = (B, A) = 1: both play B
        ("m_ne", "balanced", 2, 20.0),  # -11.7, -10, -6.7
        ("m_ne", "imbalanced", 0, 5.0),  # 0, -17, -16
    ],
)
def test_where_it_ends_on_the_matrix_games(map_name, quality, action, value):
    pi, found, _ = cases.train_on_game(
        "icq", map_name, quality, 200, lr=0.005, critic_lr=0.005, critic_minibatch=2000
    )
    assert pi.argmax(-1).tolist() == [action, action]
    assert found == pytest.approx(value, abs=0.3)


def test_the_policy_is_the_datas_tilted_by_its_advantages():
    """XOR (b), a policy temperature of 1: pi(B) / pi(A) = mu(B) / mu(A) exp(Q(B) - Q(A))."""
    pi, _, learner = cases.train_on_game(
        "icq", "xor", "b", 400, lr=0.001, critic_lr=0.001, critic_minibatch=2000,
        policy_temperature=1.0,
    )  # fmt: skip
    q = learner.critic(th.ones(1, 1), th.ones(1, 2, 1))[0]
    k = learner.mixer.shares(th.ones(1, 1))[0]
    assert th.allclose(k * (q[:, 1] - q[:, 0]), th.ones(2), atol=0.01)  # B adds 1 to Q_tot
    assert th.allclose((pi[:, 1] / pi[:, 0]), 0.5 * (q[:, 1] - q[:, 0]).exp(), rtol=0.02)
