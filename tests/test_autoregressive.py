"""The others' policies: the KL to them over all joint actions, and one agent's net by rows."""

import math

import numpy as np
import pytest
import torch as th
from cases import log_softmax_loop

from inspo.modules.autoregressive import AutoregressivePolicy, ConditionalPolicy


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
            many = 1 if n == 2 else 20000
            rows = [x.expand(many, *x.shape[1:]) for x in (state, log_mu, avail)]
            data = th.full((many, n), own)
            found = others.others_kl(i, *rows, data, log_pi.expand(many, n, 3))
            assert (data == own).all()  # the caller's actions are left alone
            tolerance = 1e-5 if n == 2 else 0.03
            assert found.mean().item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(("i", "n"), [(0, 2), (1, 2), (0, 4), (2, 4)])
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


def test_the_conditional_policy_of_a_lone_agent_has_no_rows():
    net = ConditionalPolicy(0, 5, 1, 3, 8)
    avail = th.ones(6, 1, 3, dtype=th.int)
    assert net(th.randn(6, 5), avail, th.zeros(6, 1, dtype=th.long)).shape == (6, 0, 3)
