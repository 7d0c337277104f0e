"""Batches as learners read them, the replay buffer, and the pure functions on them."""

import math

import cases
import numpy as np
import pytest
import torch as th

from inspo.components.episode_batch import EpisodeBatch
from inspo.components.replay_buffer import ReplayBuffer
from inspo.components.schedules import hold_decay, linear
from inspo.components.transitions import Transitions
from inspo.utils import rl_utils

# Packed episodes


def test_rows_are_the_filled_cells():
    batch = cases.random_batch(cases.LENGTHS, pad=3)
    packed = batch.packed
    cells = [divmod(c, batch.max_seq_length) for c in packed.index.tolist()]
    # time first, episodes second, the longest first: 6, 4, 3 and 1 transitions
    expected = [(e, t) for t in range(7) for e in (2, 0, 3, 1) if t <= cases.LENGTHS[e]]
    assert cells == expected
    assert packed.time.tolist() == [t for _, t in expected]
    rows = packed.pack(batch["obs"])
    assert all(th.equal(row, batch["obs"][e, t]) for row, (e, t) in zip(rows, expected))
    assert th.equal(batch.rows("obs"), rows)
    assert packed.sizes == [4, 4, 3, 3, 2, 1, 1] and batch.n_filled == len(rows) == 18
    told = EpisodeBatch(batch.data, np.array(cases.LENGTHS), np.array([False, True] * 2))
    assert th.equal(told.packed.index, packed.index)
    assert batch.ended.tolist() == told.ended.tolist() == [False, True, False, True]


@pytest.mark.parametrize("pad", [0, 3])
def test_round_trips(pad):
    batch = cases.random_batch(cases.LENGTHS, pad=pad)
    packed = batch.packed
    filled = batch["filled"][..., None]
    rows = packed.pack(batch["obs"])
    assert th.equal(packed.unpack(rows), batch["obs"] * filled)
    assert th.equal(packed.pack(packed.unpack(rows)), rows)

    now = packed.transitions
    some = packed.unpack(rows[now], now)
    for e in range(batch.batch_size):
        for t in range(batch.max_seq_length):
            wanted = batch["obs"][e, t] if (e, t) in cases.transitions_of(batch) else th.zeros(3, 4)
            assert th.equal(some[e, t], wanted)


# Transitions, read cell by cell


@pytest.fixture
def made():
    args = cases.make_args("qmix", "matrix")
    batch = cases.random_batch([4, 1, 6], args, pad=2)
    return Transitions(batch, cases.make_mac(args)), batch, args


def filled_cells(batch):
    """(episode, step) of every filled step, over time first, the longest episode first."""
    steps, order = range(batch.max_seq_length), cases.longest_first(batch)
    return [(e, t) for t in steps for e in order if batch["filled"][e, t, 0]]


def test_rows_hold_what_the_episodes_hold(made):
    data, batch, args = made
    cells = filled_cells(batch)
    assert len(cells) == len(data.state) == 4 + 1 + 6 + 3
    for row, (e, t) in enumerate(cells):
        for rows, key in ((data.state, "state"), (data.obs, "obs"), (data.avail, "avail_actions")):
            assert th.equal(rows[row], batch[key][e, t])
        for i in range(args.n_agents):
            assert th.equal(data.inputs[row, i], cases.inputs_loop(batch, args, e, t, i))


def test_transitions_begin_and_lead_where_the_episodes_do(made):
    data, batch, _ = made
    cells = filled_cells(batch)
    begins = [cells[row] for row in data.now]
    assert begins == cases.transitions_of(batch) and len(data) == len(begins) == 11
    assert [cells[row] for row in data.then] == [(e, t + 1) for e, t in begins]
    values = th.randn(len(cells), 3, 4)
    for k, (e, t) in enumerate(begins):
        assert th.equal(data.actions[k], batch["actions"][e, t, :, 0])
        assert data.reward[k] == batch["reward"][e, t, 0]
        assert data.terminated[k] == batch["terminated"][e, t, 0]
        for i in range(3):
            taken = values[data.now[k], i, batch["actions"][e, t, i, 0]]
            assert data.taken(values)[k, i] == taken


def test_returns_are_those_of_the_recursion(made):
    data, batch, _ = made
    values = th.randn(len(data))
    cells = filled_cells(batch)
    begins = [cells[row] for row in data.now]
    expected = cases.td_lambda_loop(batch, dict(zip(begins, values.double())), 0.9, 0.7)
    found = data.td_lambda(values, 0.9, 0.7)
    assert found.tolist() == pytest.approx([float(expected[cell]) for cell in begins], rel=1e-5)
    paid = data.td_lambda(values, 0.9, 0.7, data.reward + 1)
    assert (paid > found + 0.99).all()  # every reward of the return is the one given


# The replay buffer of the online learners


KEYS = ("state", "obs", "actions", "avail_actions", "reward", "terminated", "filled")


def episodes(lengths, seed):
    """Whole rows of the limit (9 transitions), zeros where not filled, as a runner gives them."""
    batch = cases.random_batch(lengths, seed=seed, pad=10 - max(lengths) - 1)
    filled = batch["filled"]
    data = {}
    for key in KEYS:
        mask = filled.view(*filled.shape, *[1] * (batch[key].dim() - 3))
        data[key] = batch[key] * mask.to(batch[key].dtype)
    return EpisodeBatch(data)


def make_buffer(size=5, seed=0):
    return ReplayBuffer(cases.scheme_of(cases.make_args("qmix", "matrix")), 3, size, 10, seed)


def signature(batch, e):
    return tuple(batch["state"][e, 0].tolist())


def test_the_latest_episodes_remain():
    buffer = make_buffer(5)
    first, second = episodes([3, 9, 2], 1), episodes([4, 1, 5], 2)
    assert not buffer.can_sample(1)
    buffer.insert_episode_batch(first)
    assert buffer.can_sample(3)
    assert not buffer.can_sample(4)
    buffer.insert_episode_batch(second)
    assert buffer.episodes_in_buffer == 5
    drawn = buffer.sample(5)
    held = {signature(drawn, e) for e in range(5)}
    wanted = {signature(first, e) for e in (1, 2)} | {signature(second, e) for e in range(3)}
    assert held == wanted


def test_samples_are_trimmed_whole_and_without_replacement():
    buffer = make_buffer(5)
    source = episodes([3, 6, 2, 4, 1], 1)
    buffer.insert_episode_batch(source)
    place = {signature(source, e): e for e in range(5)}
    seen = set()
    for _ in range(30):
        batch = buffer.sample(3)
        chosen = [place[signature(batch, e)] for e in range(3)]
        assert len(set(chosen)) == 3
        seen.update(chosen)
        assert batch.max_seq_length == max([3, 6, 2, 4, 1][e] for e in chosen) + 1
        for key in KEYS:
            assert th.equal(batch[key], source[key][chosen, : batch.max_seq_length])
    assert seen == set(range(5))


def test_a_restored_buffer_goes_on_the_same_way():
    buffer, twin = make_buffer(4, seed=5), make_buffer(4, seed=99)
    twin.insert_episode_batch(episodes([9, 9], 7))  # to be forgotten
    buffer.insert_episode_batch(episodes([3, 6, 2], 1))
    buffer.sample(2)
    twin.load_state_dict(make_buffer(4).state_dict())
    assert not twin.can_sample(1)  # an empty one is saved too
    twin.load_state_dict(buffer.state_dict())
    for part in (buffer, twin):
        part.insert_episode_batch(episodes([4, 2], 3))  # wraps around
    for _ in range(5):
        a, b = buffer.sample(3), twin.sample(3)
        assert all(th.equal(a[key], b[key]) for key in KEYS)


# Pure functions, by loops and by hand


@pytest.mark.parametrize(("td_lambda", "pad"), [(0.0, 6), (0.6, 0), (1.0, 6)])
def test_td_lambda_is_the_backward_recursion(td_lambda, pad):
    batch = cases.random_batch(cases.LENGTHS, pad=pad)  # episodes 1 and 3 end, the others are cut
    next_values = th.randn(len(cases.LENGTHS), batch.max_seq_length - 1)
    expected = cases.td_lambda_loop(batch, next_values, 0.9, td_lambda)
    filled, reward, ended = (batch[k][..., 0] for k in ("filled", "reward", "terminated"))
    mask, ended = (filled[:, :-1] * filled[:, 1:]).float(), ended.float()
    found = rl_utils.td_lambda_targets(
        reward[:, :-1], ended[:, :-1], mask, next_values, 0.9, td_lambda
    )
    for (e, t), value in expected.items():
        assert found[e, t].item() == pytest.approx(float(value), abs=1e-5)
    assert found[mask == 0].abs().sum() == 0

    packed = batch.packed
    now = packed.transitions
    several = th.stack([next_values, next_values + 1, 2 * next_values])  # of an agent each
    values = th.nn.functional.pad(several, (0, 1)).flatten(1)[:, packed.index[now]]
    rows = packed.td_lambda(
        packed.pack(reward)[now], packed.pack(ended)[now], values, 0.9, td_lambda
    )
    assert rows.shape == (3, len(now))
    for found, values in zip(rows, several):
        expected = cases.td_lambda_loop(batch, values, 0.9, td_lambda)
        wanted = [float(expected[cell]) for cell in cases.transitions_of(batch)]
        assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def test_an_unavailable_action_has_no_probability_no_weight_and_no_gradient():
    batch = cases.random_batch([20])
    avail = batch["avail_actions"][0]  # [T, n, A]
    logits = (5 * th.randn(avail.shape)).masked_fill(avail == 0, 50.0).requires_grad_()
    log_p = rl_utils.masked_log_softmax(logits, avail)
    lse = rl_utils.masked_logsumexp(logits, avail)
    for t in range(len(avail)):
        for i in range(avail.shape[1]):
            expected = cases.log_softmax_loop(logits[t, i].detach(), avail[t, i])
            assert th.allclose(log_p[t, i], expected, atol=1e-5)
            possible = [math.exp(logits[t, i, a].item()) for a in range(4) if avail[t, i, a]]
            assert lse[t, i].item() == pytest.approx(math.log(sum(possible)), rel=1e-5)
    assert (log_p.exp()[avail == 0] == 0).all()
    assert th.allclose(log_p.exp().sum(-1), th.ones(avail.shape[:-1]), atol=1e-6)
    (log_p.exp() * th.randn(avail.shape)).sum().backward(retain_graph=True)
    lse.sum().backward()
    assert (logits.grad[avail == 0] == 0).all()


def test_kl_and_entropy_over_available_actions():
    batch = cases.random_batch([15])
    avail = batch["avail_actions"][0]
    log_p = rl_utils.masked_log_softmax(th.randn(avail.shape), avail)
    log_q = rl_utils.masked_log_softmax(th.randn(avail.shape), avail)
    kl, h = rl_utils.kl_divergence(log_p, log_q), rl_utils.entropy(log_p)
    for t in range(len(avail)):
        for i in range(avail.shape[1]):
            p = [(math.exp(log_p[t, i, a]), a) for a in range(4) if avail[t, i, a]]
            by_hand = sum(x * float(log_p[t, i, a] - log_q[t, i, a]) for x, a in p)
            assert kl[t, i].item() == pytest.approx(by_hand, abs=1e-6)
            assert h[t, i].item() == pytest.approx(-sum(x * math.log(x) for x, _ in p), abs=1e-6)
            if len(p) == 1:
                assert kl[t, i] == 0
                assert h[t, i] == 0
    assert rl_utils.kl_divergence(log_p, log_p).abs().max() == 0


def test_gather_actions_soft_update_and_explained_variance():
    values, actions = th.randn(3, 2, 4), th.randint(4, (3, 2))
    taken = rl_utils.gather_actions(values, actions)
    assert all(taken[m, i] == values[m, i, actions[m, i]] for m in range(3) for i in range(2))
    target, online = th.nn.Linear(3, 2), th.nn.Linear(3, 2)
    before = [p.clone() for p in target.parameters()]
    source = [p.clone() for p in online.parameters()]
    rl_utils.soft_update([target], [online], 0.25)
    for p, old, new in zip(target.parameters(), before, source):
        assert th.allclose(p, 0.75 * old + 0.25 * new, atol=1e-7)
    assert all(th.equal(p, s) for p, s in zip(online.parameters(), source))
    x = th.tensor([1.0, 2.0, 3.0, 4.0])
    assert rl_utils.explained_variance(x + 7, x).item() == 1  # a constant bias is not variance
    assert rl_utils.explained_variance(th.zeros(4), x).item() == pytest.approx(0)
    assert rl_utils.explained_variance(-x, x).item() == pytest.approx(-3)


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
