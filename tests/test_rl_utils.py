"""The pure functions of the learners against loops and by hand."""

import math

import pytest
import torch as th
from cases import log_softmax_loop, random_batch, td_lambda_loop, transitions_of

from inspo.components.packed import PackedEpisodes
from inspo.components.schedules import hold_decay, linear
from inspo.utils.rl_utils import (
    entropy,
    explained_variance,
    gather_actions,
    kl_divergence,
    masked_log_softmax,
    masked_logsumexp,
    soft_update,
    td_lambda_targets,
)

LENGTHS = [4, 1, 7, 5, 2]


@pytest.mark.parametrize("td_lambda", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("pad", [0, 6])
def test_td_lambda_is_the_backward_recursion(td_lambda, pad):
    batch = random_batch(LENGTHS, pad=pad)  # episodes 1 and 3 end, the others are cut
    next_values = th.randn(len(LENGTHS), batch.max_seq_length - 1)
    expected = td_lambda_loop(batch, next_values, 0.9, td_lambda)
    filled = batch["filled"][..., 0]
    mask = (filled[:, :-1] * filled[:, 1:]).float()
    found = td_lambda_targets(
        batch["reward"][:, :-1, 0],
        batch["terminated"][:, :-1, 0].float(),
        mask,
        next_values,
        0.9,
        td_lambda,
    )
    for (e, t), value in expected.items():
        assert found[e, t].item() == pytest.approx(float(value), abs=1e-5)
    assert found[mask == 0].abs().sum() == 0

    packed = PackedEpisodes(batch["filled"])
    now = packed.transitions
    several = th.stack([next_values, next_values + 1, 2 * next_values])  # of an agent each
    rows = packed.td_lambda(
        packed.pack(batch["reward"])[now, 0],
        packed.pack(batch["terminated"])[now, 0].float(),
        th.nn.functional.pad(several, (0, 1)).flatten(1)[:, packed.index[now]],
        0.9,
        td_lambda,
    )
    assert rows.shape == (3, len(now))
    for found, values in zip(rows, several):
        expected = td_lambda_loop(batch, values, 0.9, td_lambda)
        wanted = [float(expected[cell]) for cell in transitions_of(batch)]
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_terminal_takes_no_value_and_a_cut_takes_all_of_it():
    def target(terminated, td_lambda):
        args = [th.tensor([[x]]) for x in (1.0, terminated, 1.0, 10.0)]
        return td_lambda_targets(*args, gamma=0.5, td_lambda=td_lambda).item()

    for td_lambda in (0.0, 0.6, 1.0):
        assert target(0.0, td_lambda) == 6.0
        assert target(1.0, td_lambda) == 1.0


def test_an_unavailable_action_has_no_probability_no_weight_and_no_gradient():
    batch = random_batch([20])
    avail = batch["avail_actions"][0]  # [T, n, A]
    logits = (5 * th.randn(avail.shape)).masked_fill(avail == 0, 50.0).requires_grad_()
    log_p = masked_log_softmax(logits, avail)
    lse = masked_logsumexp(logits, avail)
    for t in range(len(avail)):
        for i in range(avail.shape[1]):
            expected = log_softmax_loop(logits[t, i].detach(), avail[t, i])
            assert th.allclose(log_p[t, i], expected, atol=1e-5)
            possible = [math.exp(logits[t, i, a].item()) for a in range(4) if avail[t, i, a]]
            assert lse[t, i].item() == pytest.approx(math.log(sum(possible)), rel=1e-5)
    assert (log_p.exp()[avail == 0] == 0).all()
    assert th.allclose(log_p.exp().sum(-1), th.ones(avail.shape[:-1]), atol=1e-6)
    (log_p.exp() * th.randn(avail.shape)).sum().backward(retain_graph=True)
    lse.sum().backward()
    assert (logits.grad[avail == 0] == 0).all()


def test_kl_and_entropy_over_available_actions():
    batch = random_batch([15])
    avail = batch["avail_actions"][0]
    log_p = masked_log_softmax(th.randn(avail.shape), avail)
    log_q = masked_log_softmax(th.randn(avail.shape), avail)
    kl, h = kl_divergence(log_p, log_q), entropy(log_p)
    for t in range(len(avail)):
        for i in range(avail.shape[1]):
            p = [(math.exp(log_p[t, i, a]), a) for a in range(4) if avail[t, i, a]]
            by_hand = sum(x * float(log_p[t, i, a] - log_q[t, i, a]) for x, a in p)
            assert kl[t, i].item() == pytest.approx(by_hand, abs=1e-6)
            assert h[t, i].item() == pytest.approx(-sum(x * math.log(x) for x, _ in p), abs=1e-6)
            if len(p) == 1:
                assert kl[t, i] == 0
                assert h[t, i] == 0
    assert kl_divergence(log_p, log_p).abs().max() == 0


def test_gather_actions_soft_update_and_explained_variance():
    values, actions = th.randn(3, 2, 4), th.randint(4, (3, 2))
    taken = gather_actions(values, actions)
    assert all(taken[m, i] == values[m, i, actions[m, i]] for m in range(3) for i in range(2))
    target, online = th.nn.Linear(3, 2), th.nn.Linear(3, 2)
    before = [p.clone() for p in target.parameters()]
    source = [p.clone() for p in online.parameters()]
    soft_update(target, online, 0.25)
    for p, old, new in zip(target.parameters(), before, source):
        assert th.allclose(p, 0.75 * old + 0.25 * new, atol=1e-7)
    assert all(th.equal(p, s) for p, s in zip(online.parameters(), source))
    x = th.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(x + 7, x).item() == 1  # a constant bias is not variance
    assert explained_variance(th.zeros(4), x).item() == pytest.approx(0)
    assert explained_variance(-x, x).item() == pytest.approx(-3)


def test_schedules():
    values = [linear(1.0, 0.2, 100, t) for t in (-5, 0, 50, 100, 1000)]
    assert values == pytest.approx([1, 1, 0.6, 0.2, 0.2])
    assert linear(1.0, 0.2, 0, 0) == 0.2  # nothing to anneal
    assert hold_decay(8.0, 0.5, 0.25, 0.75, -0.3) == 8
    assert hold_decay(8.0, 0.5, 0.25, 0.75, 0.2) == 8
    assert hold_decay(8.0, 0.5, 0.25, 0.75, 0.5) == pytest.approx(2)  # half way, in logarithms
    assert hold_decay(8.0, 0.5, 0.25, 0.75, 0.7499) == pytest.approx(0.5, rel=1e-2)
    assert hold_decay(8.0, 0.5, 0.25, 0.75, 0.75) == 0
    assert hold_decay(0.0, 0.5, 0.25, 0.75, 0.5) == 0
