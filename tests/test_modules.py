"""Networks against their definitions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from cases import LENGTHS, SHAPES, log_softmax_loop, random_batch
from torch import nn

from inspo.modules.agents import REGISTRY
from inspo.modules.autoregressive import AutoregressivePolicy, ConditionalPolicy
from inspo.modules.critics import BLOCK, DuelingCritic
from inspo.modules.mlp import LARGE, MLP, feed_forward

# Critics shared by the agents


def dueling(critic, state, obs, i: int) -> th.Tensor:
    """Q_i(s, o_i, .) `[A]` by the definition: one layer on (s, o_i, identity), one more, and for
    each action its advantage plus the value. state `[S]`, obs `[O]` of agent i."""
    identity = th.zeros(critic.n_agents, dtype=obs.dtype)
    identity[i] = 1
    x = th.cat([state, obs, identity])
    weight = th.cat([critic.state.weight, critic.own.weight], dim=1)
    x = (weight @ x + critic.state.bias).clamp(min=0)
    x = (critic.hidden.weight @ x + critic.hidden.bias).clamp(min=0)
    value = critic.value.weight[0] @ x + critic.value.bias[0]
    return th.stack([w @ x + b + value for w, b in zip(critic.advantage.weight,
                                                      critic.advantage.bias)])  # fmt: skip


def test_values_are_advantage_plus_value_of_state_observation_and_identity():
    th.manual_seed(0)
    critic = DuelingCritic(state_dim=5, obs_dim=4, n_agents=3, n_actions=6, hidden=7).double()
    state, obs = th.randn(8, 5).double(), th.randn(8, 3, 4).double()
    q = critic(state, obs)
    assert q.shape == (8, 3, 6)
    q.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in critic.parameters())
    for m in range(8):
        for i in range(3):
            assert th.allclose(q[m, i], dueling(critic, state[m], obs[m, i], i), atol=1e-12)


def test_evaluation_in_blocks_is_the_forward_pass_without_a_way_back():
    th.manual_seed(0)
    critic = DuelingCritic(state_dim=2, obs_dim=3, n_agents=2, n_actions=4, hidden=8)
    for n_rows in (0, 1, 2 * BLOCK + 3):
        state, obs = th.randn(n_rows, 2), th.randn(n_rows, 2, 3)
        values = critic.evaluate(state, obs)
        th.testing.assert_close(values, critic(state, obs))
        assert not values.requires_grad


# The linear layers of all networks but the recurrent ones


def plain(network: nn.Sequential, x: th.Tensor) -> th.Tensor:
    for layer in network:
        x = layer(x)
    return x


def gradients(network, output, x):
    return th.autograd.grad(output.square().mean(), [x, *network.parameters()])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1,), th.float32), ((4, 3), th.float64), ((LARGE // 64**2 + 1,), th.float32),
     ((90, 3, 5), th.float32), ((90, 3, 5), th.float64)],
)  # fmt: skip
def test_equals_its_layers_one_after_the_other(shape, dtype):
    th.manual_seed(0)
    network = MLP(7, 64, 3).to(dtype)
    x = th.randn(*shape, 7, dtype=dtype, requires_grad=True)
    before = x.detach().clone()
    ours, theirs = network(x), plain(network, x)
    assert th.equal(x, before)
    assert ours.shape == (*shape, 3) and ours.dtype == dtype
    th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(network, ours, x), gradients(network, theirs, x)):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:TF32")  # what else the flag sets
def test_large_products_and_only_they_are_onednns(monkeypatch):
    calls = []
    to_mkldnn = th.Tensor.to_mkldnn
    monkeypatch.setattr(th.Tensor, "to_mkldnn", lambda x: calls.append(len(x)) or to_mkldnn(x))
    network, rows = MLP(7, 64, 3), LARGE // 64**2
    large, small = th.randn(rows, 7), th.randn(rows - 1, 7)
    network(small), network(large[:0])
    assert calls == []
    with th.backends.mkldnn.flags(enabled=False):
        off = network(large)
    assert calls == []
    th.testing.assert_close(network(large), off, rtol=1e-5, atol=1e-6)
    assert calls == [rows]


def test_state_dict_keeps_its_names():
    """Checkpoints of networks made of nn.Sequential can be read."""
    names = [f"{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")]
    assert list(MLP(2, 3, 4).state_dict()) == names
    head, x = nn.Linear(64, 3), th.randn(9, 64)  # and weights may be no layer's
    th.testing.assert_close(feed_forward(x, (2 * head.weight, None)), 2 * x @ head.weight.T)


# The others' policies


def test_others_kl_by_loop():
    """Two agents: exact. Three: over every draw of the predecessors, in the mean."""
    for n in (2, 3):
        th.manual_seed(n)
        others = AutoregressivePolicy(5, n, 3, 8)
        with th.no_grad():
            for p in others.parameters():
                p.add_(0.5 * th.randn(p.shape))
        avail = th.ones(1, n, 3, dtype=th.int)
        avail[0, n - 1, 1] = 0
        log_mu = th.randn(1, n, 3).masked_fill(avail == 0, -1e10).log_softmax(-1)
        log_pi = (2 * th.randn(1, n, 3)).masked_fill(avail == 0, -1e10).log_softmax(-1)
        state = th.randn(1, 5)
        for i in range(n):
            own, expected = 2 * (i == 0), 0.0  # an available action of agent i
            for joint in np.ndindex(*[3] * n):
                if joint[i] != own or not all(avail[0, j, joint[j]] for j in range(n)):
                    continue
                actions = th.tensor([joint])
                p = math.prod(log_pi[0, j, joint[j]].exp().item() for j in range(n) if j != i)
                log_p = sum(log_pi[0, j, joint[j]].item() for j in range(n) if j != i)
                expected += p * (log_p - others(i, state, log_mu, avail, actions).item())
            many = 1 if n == 2 else 10000
            rows = [x.expand(many, *x.shape[1:]) for x in (state, log_mu, avail)]
            data = th.full((many, n), own)
            found = others.others_kl(i, *rows, data, log_pi.expand(many, n, 3))
            assert (data == own).all()  # the caller's actions are left alone
            tolerance = 1e-5 if n == 2 else 0.04
            assert found.mean().item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("i", "n"), [(0, 1), (1, 2), (0, 4), (2, 4)])  # alone: no rows
def test_the_conditional_policy_is_a_network_on_its_one_hot_inputs(i, n):
    th.manual_seed(0)
    a, width = 3, 5
    net = ConditionalPolicy(i, width, n, a, 8)
    state, actions = th.randn(6, width), th.randint(a, (6, n))
    avail = (th.rand(6, n, a) < 0.7).int()
    avail.scatter_(-1, actions.unsqueeze(-1), 1)
    found = net(state, avail, actions)
    others = [j for j in range(n) if j != i]
    assert found.shape == (6, n - 1, a)
    for m in range(6):
        for place, j in enumerate(others):
            x = th.zeros(width + (n - 1) + a + (n - 1) * a)
            x[:width] = state[m]
            x[width + place] = 1
            x[width + n - 1 + actions[m, i]] = 1
            for k in range(place):  # those before j, in their order
                x[width + n - 1 + a + k * a + actions[m, others[k]]] = 1
            logits = net.out(net.hidden(net.first(x).relu()).relu())
            expected = log_softmax_loop(logits, avail[m, j])
            possible = avail[m, j] > 0
            assert th.allclose(found[m, place][possible], expected[possible], atol=1e-5)
            assert (found[m, place][~possible] < -1e9).all()


# Agents (see test_controllers.py as well)


ARGS = SimpleNamespace(**SHAPES, hidden_dim=8)


@pytest.mark.parametrize("name", [name for name in REGISTRY if not name.endswith("_ns")])
def test_a_shared_agent_treats_all_agents_alike(name):
    batch = random_batch(LENGTHS, ARGS)
    agent = REGISTRY[name](4, ARGS)
    packed = batch.packed
    rows = packed.pack(batch["obs"])
    turned = agent.unroll(rows[:, [2, 0, 1]], packed)
    assert th.allclose(turned, agent.unroll(rows, packed)[:, [2, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in REGISTRY if name.startswith("rnn")])
def test_a_recurrent_agent_remembers_its_own_past_alone(name):
    batch = random_batch([6, 6], ARGS)
    agent = REGISTRY[name](4, ARGS)
    packed = batch.packed

    def play(obs):
        return packed.unpack(agent.unroll(packed.pack(obs), packed))

    before = play(batch["obs"])
    changed = batch["obs"].clone()
    changed[0, 2, 1] += 1.0  # episode 0, step 2, agent 1
    moved = (play(changed) - before).abs().sum(-1) > 1e-7  # [B, T, n]
    expected = th.zeros_like(moved)
    expected[0, 2:, 1] = True
    assert th.equal(moved, expected)
